"""A pytest plugin that writes one JSON line per test as it ends, so that a run that is stopped has counts too.

`-p outcomes --outcomes=FILE`, with this folder on the path. Works under xdist: the controller hears of every test,
and where a host has several NVIDIA GPUs its workers take them in turn, each seeing one, as a user's process would.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

# What a log needs of a traceback to tell its kind; the rest is in pytest's own output.
TAIL = 3_000


def see_one_gpu() -> None:
    """Gives this worker of xdist one of several GPUs, before MLX is imported; nothing where there is one or none."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if worker and count > 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(int(worker.removeprefix("gw")) % count))


see_one_gpu()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file for one JSON line per test")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    # Workers report to the controller, which writes.
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(path), "outcomes-writer")


class Outcomes:
    """Writes {"test", "outcome", "seconds", "why"} per test; outcome is passed, failed, skipped or error."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        row = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 3)}
        if report.outcome != "passed":
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            row["why"] = why[-TAIL:]
        self._file.write(json.dumps(row) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            row = {"test": report.nodeid, "outcome": "error", "seconds": 0.0, "why": report.longreprtext[-TAIL:]}
            self._file.write(json.dumps(row) + "\n")

    def pytest_sessionfinish(self) -> None:
        self._file.close()
