"""A job of `archport batch` that is killed at three random moments, on a CPU: rows, bytes, memory, speed.

    python benchmarks/bulk_cpu.py synthetic --rows 1000000      a 2-layer checkpoint, short passages
    python benchmarks/bulk_cpu.py real --rows 20000             all-MiniLM-L6-v2, this machine's documentation

The job is killed with SIGKILL at three moments drawn from its first half, and resumed. Then every id has to be there
once, every vector has to be that of `Model.embed`, and an uninterrupted run of every eighth part has to give the same
bytes. Memory is the resident set of the last process, which does half of the rows at least, sampled twice a second.
Speed is told by the clock and by processor time, because other work may share the machine; `embed` runs on the same
texts.
"""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from archport import engine
from archport.bulk import read

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "goldens" / "bert-plain"
WORDS = (
    *("sea", "wind", "stone", "river", "light", "paper", "iron", "glass", "cloud", "field"),
    *("road", "house", "bird", "tree", "salt", "sand", "fire", "rain", "snow", "leaf"),
)
PLACES = ("/usr/share/doc", "/usr/share/perl", sys.prefix, "/usr/lib/python3", "/usr/share/common-licenses")


def synthetic(count: int) -> list[str]:
    """Short passages, a tenth of them different."""
    draw, different = random.Random(1), max(1, count // 10)
    some = [" ".join(draw.choices(WORDS, k=3 + at % 6)) + f" {at}" for at in range(different)]
    return [some[at % different] for at in range(count)]


def real(count: int) -> list[str]:
    """Different paragraphs of 40 to 400 characters from text files of this machine, in the order of their paths."""
    found: dict[str, None] = {}
    for place in PLACES:
        for path in sorted(Path(place).rglob("*")):
            if path.suffix not in ("", ".txt", ".md", ".rst", ".pod", ".py") or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="ignore") if path.stat().st_size < 1 << 20 else ""
            for paragraph in re.split(r"\n\s*\n", text):
                words = " ".join(paragraph.split())
                if 40 <= len(words) <= 400 and sum(map(str.isalpha, words)) > 0.7 * len(words):
                    found[words] = None
                    if len(found) == count:
                        return list(found)
    sys.exit(f"only {len(found)} paragraphs on this machine; give --rows {len(found)}")


def command(source: Path, out: Path, model: str, part_rows: int, *more: str) -> list[str]:
    run = "import archport; from archport.cli import main; main()"
    options = ["-m", model, "-o", str(out), "--part-rows", str(part_rows), *more]
    return [sys.executable, "-c", run, "batch", str(source), *options]


def resident(process: subprocess.Popen) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


def rows_done(out: Path) -> int:
    path = out / "_parts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(json.loads(line)["count"] for line in lines if line.endswith("}"))


Samples = list[tuple[int, int]]


def killed_and_resumed(
    line: list[str], out: Path, count: int, draw: random.Random, *, longest: float = 5.0
) -> tuple[list[dict], Samples]:
    """(how each process ended, (rows that are there, resident bytes) of the last one over time).

    Args:
        longest: seconds into the part behind a moment, at most, in which a process is killed.
    """
    moments = sorted(draw.uniform(0.02, 0.5) for _ in range(3))
    ended: list[dict] = []
    samples: Samples = []
    for moment in [*moments, None]:
        begin, before, samples = time.monotonic(), os.times(), []
        process = subprocess.Popen([*line, "--resume"], stderr=subprocess.PIPE, text=True)
        # Not when a part is there, but somewhere in the next one.
        late = draw.uniform(0.1 * longest, longest)
        reached: float | None = None
        while process.poll() is None:
            time.sleep(0.1 * longest)
            done = rows_done(out)
            samples.append((done, resident(process)))
            if moment is not None and done >= moment * count:
                reached = reached or time.monotonic()
                if time.monotonic() - reached >= late:
                    process.send_signal(signal.SIGKILL)
                    break
        error = process.communicate()[1]
        after = os.times()
        assert process.returncode in (0, -9), error
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        ended.append(
            {
                "ended": process.returncode,
                "rows": rows_done(out),
                "seconds": round(time.monotonic() - begin, 1),
                "cpu": round(cpu, 1),
                "said": error.strip().splitlines()[-1][-120:] if process.returncode == 0 else "",
            }
        )
    return ended, samples


def by_part(samples: list[tuple[int, int]]) -> list[float]:
    """Mean resident bytes while the last process made each of its parts.

    Of whole parts: what a part holds grows while it is made. The first one, which also makes what is made once, and
    the last, which may be short, are left out.
    """
    parts: dict[int, list[int]] = {}
    for done, size in samples:
        if size:
            parts.setdefault(done, []).append(size)
    means = [float(np.mean(sizes)) for sizes in parts.values()][1:]
    # After the last part nothing is made, and before that it is the short one.
    means = means[:-2] or means
    if len(means) < 2:
        sys.exit("the last process made too few parts while it was watched: give more --rows")
    return means


def tenths(samples: list[tuple[int, int]]) -> tuple[float, float]:
    """Mean resident bytes while the last process made the first and the last tenth of its parts."""
    means = by_part(samples)
    edge = max(1, len(means) // 10)
    return float(np.mean(means[:edge])), float(np.mean(means[-edge:]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=["synthetic", "real"])
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--part-rows", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    count = given.rows or (1_000_000 if given.case == "synthetic" else 20_000)
    part_rows = given.part_rows or (16_384 if given.case == "synthetic" else 1024)
    model = str(TINY) if given.case == "synthetic" else "sentence-transformers/all-MiniLM-L6-v2"
    texts = synthetic(count) if given.case == "synthetic" else real(count)
    folder = Path(tempfile.mkdtemp(prefix="archport-bulk-"))
    source, out = folder / "rows.jsonl", folder / "out"
    with source.open("w", encoding="utf-8") as file:
        for at, text in enumerate(texts):
            file.write(json.dumps({"id": f"passage-{at}", "text": text}) + "\n")
    print(f"{platform.platform()}, Python {platform.python_version()}, mlx {mx.__version__}")
    size, name = source.stat().st_size / 1e6, model.rsplit("/", 1)[-1]
    print(f"{given.case}: {count:,} rows, {size:.1f} MB, parts of {part_rows:,}, {name}")
    print(f"load average at the beginning {os.getloadavg()}", flush=True)
    ended, samples = killed_and_resumed(command(source, out, model, part_rows), out, count, random.Random(given.seed))
    for each in ended:
        print(each, flush=True)
    first, last = tenths(samples)
    held = f"first tenth {first / 1e6:.1f} MB, last tenth {last / 1e6:.1f} MB, {last / first:.3f}x"
    print(f"resident of the last process: {held}")
    loaded = engine.load(model)
    once = list(dict.fromkeys(texts))
    loaded.embed(once[:512])
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    vectors = loaded.embed(once)
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"embed of {len(once):,} texts: {seconds:.1f} s, {cpu:.1f} s of processor time", flush=True)
    place, seen, worst = {text: at for at, text in enumerate(once)}, np.zeros(count, np.int32), 0.0
    for stored in read(out):
        assert not stored.errors
        at = np.array([int(str(id).removeprefix("passage-")) for id in stored.ids])
        np.add.at(seen, at, 1)
        expected = vectors[[place[texts[row]] for row in at]]
        worst = max(worst, float(np.abs(stored.vectors - expected).max() / np.abs(expected).max()))
    print(f"rows lost {int((seen == 0).sum())}, doubled {int((seen > 1).sum())}")
    print(f"largest relative difference from embed {worst:.1e}")
    line = command(source, folder / "again", model, part_rows, "--shard", "3/8")
    again = subprocess.run(line, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    parts = sorted((folder / "again").glob("part-*"))
    same = sum(path.read_bytes() == (out / path.name).read_bytes() for path in parts)
    print(f"an uninterrupted run of every eighth part: {same} of {len(parts)} files have the same bytes")
    if given.case == "real":
        whole = subprocess.Popen(command(source, folder / "whole", model, part_rows), stderr=subprocess.PIPE, text=True)
        begin, before = time.monotonic(), os.times()
        said, after = whole.communicate()[1], os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        print(
            f"an uninterrupted job: {time.monotonic() - begin:.1f} s, {spent:.1f} s of processor time, with its start"
        )
        print(said.strip().splitlines()[-1])
        print(f"speed of the job against embed: {cpu / spent:.3f} by processor time, start of the process included")
    print(f"load average at the end {os.getloadavg()}")
    assert (seen == 1).all()
    assert worst < 1e-4
    assert same == len(parts)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
