"""Random checkpoints of every family through the reference and through archport, row by row: `make parity`.

    PYTHONPATH=tests python -m parity.run --seed 0 --draws 40 --reference .venv-goldens/bin/python

The reference runs in an environment of its own, one process per family; archport in this one. Prints a line per family
and one for all; each wrong draw with the options that alone make it so, and each refusal.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .answers import answer
from .families import FAMILIES
from .judge import Judgement, judge
from .space import Draw, draws

HERE = Path(__file__).parent
# Wrong draws of a family whose options are told apart; beyond these they rarely tell more.
SHRUNK = 6


@dataclass(frozen=True, slots=True)
class Result:
    """One draw and what became of it."""

    draw: Draw
    judgement: Judgement


def judged(found: Sequence[Draw], reference: str, *, keep: Path | None = None) -> list[Result]:
    """The judgement of each draw; checkpoints are written to a folder that is gone afterwards.

    Args:
        reference: the Python of the reference's environment.
        keep: where the checkpoints stay instead.
    """
    work = Path(tempfile.mkdtemp(prefix="parity-")) if keep is None else keep
    work.mkdir(parents=True, exist_ok=True)
    try:
        (work / "draws.json").write_text(json.dumps([asdict(draw) for draw in found]))
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(HERE.parent)}
        subprocess.run([reference, "-m", "parity.reference", str(work)], check=True, env=environment)
        return [Result(draw, _judged(draw, work / str(index))) for index, draw in enumerate(found)]
    finally:
        if keep is None:
            shutil.rmtree(work, ignore_errors=True)


def _judged(draw: Draw, folder: Path) -> Judgement:
    if not (folder / "expected.npz").exists():
        return Judgement("skipped", (folder / "skipped.txt").read_text().strip().splitlines()[-1])
    with np.load(folder / "expected.npz") as stored:
        expected = dict(stored)
    return judge(expected, answer(draw, folder, expected))


def shrunk(draw: Draw, reference: str) -> str:
    """The options without any one of which the draw is not wrong any more; all of them where no one decides."""
    results = judged([draw.without(name) for name in draw.options], reference)
    pairs = zip(draw.options, results, strict=True)
    guilty = [name for name, result in pairs if result.judgement.verdict != "wrong"] or list(draw.options)
    return ", ".join(f"{name}={draw.options[name]!r}" for name in guilty) or "(no option: the default itself)"


def line(name: str, counts: Counter[str]) -> str:
    asked = sum(counts.values()) - counts["skipped"]
    kinds = ("equal", "refused", "wrong", "undecided")
    told = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    return f"{name}: {asked} draws, {told} ({counts['skipped']} that the reference refuses)"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=40, help="per family")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--reference", default=".venv-goldens/bin/python")
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoints, one per family")
    asked = parser.parse_args(arguments)
    logging.getLogger("archport").setLevel(logging.ERROR)
    every: Counter[str] = Counter()
    for family in asked.families.split(","):
        keep = asked.keep / family if asked.keep else None
        results = judged(draws(family, asked.seed, asked.draws), asked.reference, keep=keep)
        counts = Counter(result.judgement.verdict for result in results)
        print(line(family, counts), flush=True)
        wrong = [result for result in results if result.judgement.verdict == "wrong"]
        for at, result in enumerate(wrong):
            blame = f" <- {shrunk(result.draw, asked.reference)}" if at < SHRUNK else ""
            print(f"  wrong {result.draw.architecture} {result.draw.seed}: {result.judgement.why}{blame}", flush=True)
        for result in results:
            if result.judgement.verdict in ("refused", "undecided"):
                why = " ".join(result.judgement.why.split())
                print(f"  {result.judgement.verdict} {result.draw.architecture} {result.draw.seed}: {why}", flush=True)
        every += counts
    print(line(f"parity, seed {asked.seed}", every))
    return 1 if every["wrong"] or every["refused"] > 0.1 * (sum(every.values()) - every["skipped"]) else 0


if __name__ == "__main__":
    sys.exit(main())
