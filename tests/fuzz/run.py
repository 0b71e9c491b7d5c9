"""`make fuzz`: thousands of cases of every kind in worker processes that are killed when one goes too far.

    python -m fuzz.run --cases 20000 --seed 0 [--kinds configs,tokenizers_files] [--verbose]

A case may take 2 seconds of CPU and 500 MB beyond an intact load. CPU seconds of the whole process stand for time on a
machine that does nothing else; one that waits is stopped after 30 seconds of the clock. Ends with code 1 when a case
raised an error that nobody raises on purpose, blamed a plugin for a file, or went beyond a bound, when fewer than 1,000
cases of a kind ran although as many were asked for, or when under 30 % of the cases of files reached a forward pass.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz import worker
from fuzz.cases import Outcome, write_bases
from fuzz.kinds import NAMES, kinds

# Seconds of the clock and of CPU, and bytes, after which a worker is killed in the middle of a case.
_CLOCK, _CPU, _BYTES = 30.0, 5.0, 2_000_000_000
FLOOR, REACHED = 1000, 0.3


def drawn(kind: Any, count: int, number: int) -> list[Any]:
    """That many cases of a kind, the same ones for the same number."""
    found: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases())
    def take(case: Any) -> None:
        found.append(case)

    take()
    return found[:count]


class Worker:
    """One process, started again after it was killed."""

    def __init__(self, bases: Path, place: Path) -> None:
        self._bases, self._place = str(bases), str(place)
        self._context = multiprocessing.get_context("spawn")
        self.busy: tuple[str, Any] | None = None
        self._start()

    def _start(self) -> None:
        self._ours, theirs = self._context.Pipe()
        self._process = self._context.Process(target=worker.main, args=(theirs, self._bases, self._place), daemon=True)
        self._process.start()
        theirs.close()
        if not self._ours.poll(300) or self._ours.recv() != "ready":
            raise RuntimeError("a worker did not start")

    def give(self, kind: str, case: Any) -> None:
        self.busy, self._began, self._cpu = (kind, case), time.monotonic(), self._used()[0]
        self._ours.send_bytes(pickle.dumps((kind, case)))

    def answer(self) -> tuple[Outcome, float, int] | None:
        """What became of the case, None while it runs."""
        try:
            if self._ours.poll(0.002):
                self.busy = None
                return self._ours.recv()
        except (EOFError, OSError):
            return self._ended(f"the process died with code {self._process.exitcode}")
        cpu, held = self._used()
        if time.monotonic() - self._began > _CLOCK or cpu - self._cpu > _CPU or held > _BYTES:
            return self._ended("killed")
        return None

    def _ended(self, why: str) -> tuple[Outcome, float, int]:
        cpu, held = self._used()
        self._process.kill()
        self._process.join()
        seconds = max(cpu - self._cpu, time.monotonic() - self._began)
        self.busy = None
        self._start()
        return Outcome("bare", False, f"{why} after {seconds:.1f} s, with {held:,} bytes"), seconds, held

    def _used(self) -> tuple[float, int]:
        """(CPU seconds, bytes) of the process; zeros where the system does not say."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            return 0.0, 0
        ticks = os.sysconf("SC_CLK_TCK")
        return (int(fields[11]) + int(fields[12])) / ticks, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def outcomes(
    cases: list[tuple[str, Any]], bases: Path, place: Path, jobs: int
) -> Iterator[tuple[str, Any, Outcome, float, int]]:
    """(kind, case, outcome, seconds, bytes) of all cases, as they end."""
    workers = [Worker(bases, place) for _ in range(jobs)]
    left = list(reversed(cases))
    try:
        while left or any(each.busy for each in workers):
            for each in workers:
                if each.busy is None and left:
                    each.give(*left.pop())
                if each.busy is not None:
                    kind, case = each.busy
                    if (found := each.answer()) is not None:
                        yield kind, case, *found
    finally:
        for each in workers:
            each.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(NAMES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show why cases were refused")
    asked = parser.parse_args()
    known = {name: module for name, module in kinds().items() if name in asked.kinds.split(",")}
    each = -(-asked.cases // len(known))
    start = time.monotonic()
    todo = [(name, case) for name, kind in known.items() for case in drawn(kind, each, asked.seed + NAMES.index(name))]
    random.Random(asked.seed).shuffle(todo)
    print(f"{len(todo):,} cases drawn in {time.monotonic() - start:.0f} s, seed {asked.seed}", flush=True)
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    spent = 0.0
    with tempfile.TemporaryDirectory(prefix="archport-fuzz-") as home:
        write_bases(Path(home) / "bases")
        place = Path(home) / "cases"
        place.mkdir()
        for number, (kind, case, outcome, seconds, more) in enumerate(
            outcomes(todo, Path(home) / "bases", place, asked.jobs), 1
        ):
            spent += seconds
            counts[kind, "cases"] += 1
            counts[kind, "reached"] += outcome.reached
            beyond = seconds > worker.MOST_SECONDS or more > worker.MOST_BYTES
            counts[kind, "breaches"] += beyond
            counts[kind, outcome.verdict] += not (beyond and outcome.told.startswith("killed"))
            if outcome.verdict == "bare" or beyond:
                told = f"{seconds:.1f} s, {more:,} bytes, {outcome.verdict}: {outcome.told[-1800:]}"
                faults.append(f"{kind} {case!r:.600}\n  {told}")
                print(f"! {faults[-1]}", flush=True)
            elif asked.verbose and outcome.verdict == "refused":
                print(f"- {kind} {case!r:.200}\n  {outcome.told:.300}", flush=True)
            if number % 1000 == 0:
                print(f"{number:,} of {len(todo):,} in {time.monotonic() - start:.0f} s", flush=True)
    return report(known, counts, faults, asked.cases, time.monotonic() - start, spent + time.process_time())


def report(
    known: dict[str, Any], counts: Counter[tuple[str, str]], faults: list[str], asked: int, seconds: float, cpu: float
) -> int:
    """Print the table; 1 when something did not hold."""
    columns = ("cases", "refused", "worked", "reached", "bare", "breaches")
    titles = ("cases", "refused", "worked", "forward pass", "bare errors", "beyond bounds")
    print(f"\n| kind | {' | '.join(titles)} |\n|---|{'---:|' * len(titles)}")
    for name in known:
        print(f"| {name.replace('_', ' ')} | {' | '.join(f'{counts[name, column]:,}' for column in columns)} |")
    totals = [sum(counts[name, column] for name in known) for column in columns]
    print(f"| **all** | {' | '.join(f'{total:,}' for total in totals)} |")
    files = [name for name, module in known.items() if module.FILES]
    of = sum(counts[name, "cases"] for name in files)
    share = sum(counts[name, "reached"] for name in files) / of if of else 1.0
    print(f"\n{share:.0%} of {of:,} cases of files reached a forward pass")
    print(f"{seconds / 60:.1f} minutes by the clock, {cpu / 60:.1f} minutes of CPU")
    few = [name for name in known if asked >= FLOOR * len(known) > counts[name, "cases"] * len(known)]
    if few:
        print(f"fewer than {FLOOR:,} cases: {', '.join(few)}")
    return int(bool(faults or few or share < REACHED))


if __name__ == "__main__":
    sys.exit(main())
