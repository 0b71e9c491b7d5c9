"""What `make test-device` counts: the slices of this run, and with `--slice` those of the same tree and number."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import suite


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command, whose slices pass one test each; gives its summary."""

    def ran(at: int, of: int, workers: int, out: Any, limit: int) -> None:
        (out / f"slice-{at}-of-{of}.jsonl").write_text('{"test": "new", "outcome": "passed"}\n')

    def call(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["suite", "--out", str(tmp_path), "--no-checks", *arguments])
        with pytest.raises(SystemExit):
            suite.main()
        return json.loads(capsys.readouterr().out.partition("TEST-DEVICE ")[2])

    monkeypatch.setattr(suite, "run_slice", ran)
    monkeypatch.setattr(suite, "digest", lambda: "a tree")
    monkeypatch.setattr(suite, "device_name", lambda: "cpu")
    return call


@pytest.mark.parametrize("old", ["slice-1-of-8.jsonl", "slice-3-of-2.jsonl"])
def test_a_whole_run_counts_nothing_that_an_earlier_one_left(run, tmp_path, old):
    (tmp_path / old).write_text('{"test": "old", "outcome": "failed"}\n')
    summary = run("--slices", "2")
    assert (summary["passed"], summary["failed"], summary["slices"]) == (2, 0, 2)


def test_slices_that_are_run_one_by_one_are_summed_where_they_are_of_one_number(run, tmp_path):
    (tmp_path / "slice-1-of-8.jsonl").write_text('{"test": "old", "outcome": "failed"}\n')
    assert run("--slices", "2", "--slice", "1")["passed"] == 1
    summary = run("--slices", "2", "--slice", "2")
    assert (summary["passed"], summary["failed"], summary["slices"]) == (2, 0, 2)
