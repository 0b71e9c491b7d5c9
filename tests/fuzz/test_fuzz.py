"""A sample of every kind of case of `make fuzz`, in this process: each works or is refused on purpose."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archport.device.facts import this_device
from fuzz import run
from fuzz.cases import Outcome, Seen, judged, write_bases
from fuzz.kinds import NAMES, kinds
from fuzz.run import drawn
from fuzz.worker import COMPILING, MOST_SECONDS

COUNT = 18
SEEN = Seen()
NUMBERS: Iterator[int] = itertools.count()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "bases"
    write_bases(folder)
    return folder


def outcome(kind: Any, case: Any, bases: Path) -> tuple[Outcome, float]:
    # Of this thread: a GPU's driver has threads that wait busily.
    start = time.thread_time()
    found = judged(kind, case, bases, bases.parent / f"case-{next(NUMBERS)}", SEEN)
    return found, time.thread_time() - start


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs("av")) if name == "video" else name for name in NAMES]
)
def test_a_sample_works_or_is_refused_on_purpose(name: str, bases: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kind, reached = kinds()[name], 0
    most = MOST_SECONDS + (COMPILING if this_device().kind != "cpu" else 0)
    for case in drawn(kind, COUNT, 100):
        found, seconds = outcome(kind, case, bases)
        assert found.verdict != "bare", f"{case!r}\n{found.told}"
        assert seconds < most, f"{case!r} took {seconds:.1f} s"
        reached += found.reached
    assert reached, "no case came to a forward pass"


def test_an_error_that_nobody_raised_on_purpose_is_a_fault(bases: Path):
    class Broken:
        FILES = True

        def run(self, case: Any, bases: Path, place: Path, seen: Seen) -> None:
            raise case

    broken: Any = Broken()
    assert outcome(broken, ValueError("bare"), bases)[0].verdict == "bare"
    assert outcome(broken, BaseException("worse"), bases)[0].verdict == "bare"


@pytest.mark.truth
def test_a_case_that_goes_too_far_is_ended_and_the_next_one_runs(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cases = [("texts", ("bert", "embed", [f"a{index}"] * 3, None)) for index in range(2)]
    monkeypatch.setattr(run, "_CLOCK", 0.0)
    ended = next(run.outcomes(cases[:1], bases, tmp_path, 1))[2]
    assert ended.verdict == "bare"
    assert ended.told.startswith("killed")
    monkeypatch.setattr(run, "_CLOCK", 60.0)
    assert [found[2].verdict for found in run.outcomes(cases, bases, tmp_path, 1)] == ["worked", "worked"]


def test_the_same_number_draws_the_same_cases():
    kind = kinds()["configs"]
    assert repr(drawn(kind, 5, 1)) == repr(drawn(kind, 5, 1)) != repr(drawn(kind, 5, 2))
