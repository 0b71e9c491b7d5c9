"""The report itself: its parts one after another within a bound of time, written after each, whatever happens in it.

A part that fails, that time ran out for or that the user interrupts says so in the file; what was done before stays.
Where a device takes the process down, the file names the part that ran.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import archport
from archport.contract import DeviceFacts, InputError
from archport.device import tf32
from archport.device.facts import this_device
from archport.testing.device_report.privacy import Scrubber

Examine = Callable[[], tuple[list[tuple[str, str]], list[str]]]
FORMAT = 1
SECONDS, QUICK_SECONDS = 180.0, 45.0
# The latest that a part may start something new, as a share of all the time; what it leaves is the next one's.
_UNTIL = {"machine": 1.0, "doctor": 1.0, "routes": 1.0, "attention": 0.25, "benchmark": 0.4, "memory": 0.55, "kit": 1.0}
PARTS = tuple(_UNTIL)
NOTES = (
    "No part of archport, this report included, had run on a Mac's GPU when it was written: sizes, routes and limits "
    "of Metal come from MLX's sources and from what others published. This file is for what is wrong there.",
    "Paths, addresses, and names of the user and the host are taken out; read it before you send it.",
)
# Values from fixed lists, which no name of a user may replace.
_WORDS = frozenset(
    {"status", "tier", "kind", "check", "plugin", "unit", "stage", "backend", "route", "table", "table_forced", "blas"}
)


def schema() -> dict[str, Any]:
    """The JSON schema of a report (draft 2020-12)."""
    return json.loads(files("archport.testing.device_report").joinpath("schema.json").read_text(encoding="utf-8"))


@dataclass(slots=True)
class _Clock:
    """Time since the report began, and its bound, in seconds."""

    limit: float
    started: float

    def passed(self) -> float:
        return time.perf_counter() - self.started

    def until(self, share: float) -> Callable[[], bool]:
        return lambda: self.passed() >= share * self.limit


def write_report(
    path: Path,
    *,
    quick: bool = False,
    seconds: float | None = None,
    device: DeviceFacts | None = None,
    parts: Iterable[str] = PARTS,
    examine: Examine | None = None,
    told: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Examine this machine and write what was found, after each part.

    Args:
        quick: less of everything, within `QUICK_SECONDS`.
        seconds: another bound; nothing new is started after it.
        device: what the machine is taken for; found out when left out.
        parts: the ones to run.
        examine: what `archport doctor` finds: facts as (name, value), and faults. Left out, that part does not run.
        told: given a line about each part as it begins.

    Returns:
        What the file holds.

    Raises:
        InputError: the file can't be written, before anything runs.
        KeyboardInterrupt: after what was done is written.
    """
    limit = seconds or (QUICK_SECONDS if quick else SECONDS)
    clock, scrubber = _Clock(limit, time.perf_counter()), Scrubber()
    report: dict[str, Any] = {
        "format": FORMAT,
        "archport": archport.__version__,
        "notes": list(NOTES),
        "quick": quick,
        "complete": False,
        "seconds": 0.0,
        "parts": {name: {"status": "not run", "seconds": 0.0} for name in PARTS},
        **{name: None for name in PARTS},
    }

    def write() -> None:
        report["seconds"] = round(clock.passed(), 2)
        _write(path, scrubber.everything(report, keep=_WORDS))

    write()
    chosen = [name for name in PARTS if name in set(parts) and (name != "doctor" or examine is not None)]
    for name in chosen:
        told(f"{name} ...")
        state, began = report["parts"][name], clock.passed()
        state["status"] = "running"
        write()
        try:
            _part(name, report, clock, quick=quick, device=device, examine=examine, write=write)
            state["status"] = "done"
        except KeyboardInterrupt:
            state["status"] = "interrupted"
            raise
        # Whatever breaks here is what the report is for.
        except Exception as error:
            state["status"] = "failed"
            state["error"] = f"{type(error).__name__}: {error}"[:1000]
        finally:
            state["seconds"] = round(clock.passed() - began, 2)
            write()
    report["complete"] = all(report["parts"][name]["status"] == "done" for name in PARTS)
    write()
    return scrubber.everything(report, keep=_WORDS)


def _part(
    name: str,
    report: dict[str, Any],
    clock: _Clock,
    *,
    quick: bool,
    device: DeviceFacts | None,
    examine: Examine | None,
    write: Callable[[], None],
) -> None:
    """Run a part; entries of long ones are there as soon as they are made."""
    # Before any product: MLX reads its switch once.
    tf32.choose_precision()
    facts, done = device or this_device(), clock.until(_UNTIL[name])
    if name == "machine":
        from archport.testing.device_report.machine import about_machine

        report[name] = about_machine(facts)
    elif name == "doctor" and examine is not None:
        known, faults = examine()
        # Where models come from is nobody's business, and the executable is a path.
        report[name] = {"facts": {key: value for key, value in known if key not in ("hub", "python")}, "faults": faults}
    elif name == "routes":
        from archport.testing.device_report.paths import routes

        report[name] = routes(facts)
    else:
        report[name] = []
        _fill(report[name], _entries(name, facts, done, quick=quick), write)


def _entries(name: str, facts: DeviceFacts, done: Callable[[], bool], *, quick: bool) -> Iterable[dict[str, Any]]:
    if name == "attention":
        from archport.testing.device_report.paths import attention

        return attention(facts, done, quick=quick)
    from archport.testing.device_report import models

    if name == "benchmark":
        return models.benchmark(done, on_cpu=facts.kind == "cpu")
    return models.memory(done) if name == "memory" else models.kit(done, quick=quick)


def _fill(entries: list[dict[str, Any]], made: Iterable[dict[str, Any]], write: Callable[[], None]) -> None:
    """Take entries as they are made, and write what there is about once a second."""
    written = time.perf_counter()
    for entry in made:
        entries.append(entry)
        if time.perf_counter() - written > 1:
            write()
            written = time.perf_counter()


def _write(path: Path, report: dict[str, Any]) -> None:
    """Put the report in its place whole, so that whoever reads the file meanwhile finds one."""
    try:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(report, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    # A name that is none has no neighbours either.
    except (OSError, ValueError) as error:
        raise InputError(
            f"--report {str(path)!r} can't be written ({error}); name a file in a folder that is"
        ) from error
