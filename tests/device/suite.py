"""The whole selection of `make test` on this machine's device, in slices, and `archport check` of every plugin.

    python tests/device/suite.py [--slices 4] [--slice 2] [--workers 15] [--out FOLDER] [--commit HASH]

Every slice is one run of pytest of at most eight minutes, for machines that are lent by the minute: `--slice` runs one,
and a later call with the same `--out` adds its own. The last lines are the sums, and one line `TEST-DEVICE {...}` for
programs. It needs no network; what is missing in this Python can be on PYTHONPATH. Exit code 1 when a test or a check
failed, or when files changed between slices. Knows nothing of what the tests test.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
SELECTION = "not packaging and not truth and not bulk and not real"
LIMIT = 8 * 60
SOURCES = ("core", "plugins", "tests", "examples", "benchmarks", "docs", "pyproject.toml", "conftest.py")
SHIPPED = ("qwen3", "qwen35", "qwen3_vl", "bidirectional")


def plugins() -> dict[str, str]:
    """Every plugin of this tree -> the folder that holds its package, "" for the shipped ones."""
    outside = (ROOT / "tests" / "outside").glob("*_model.py")
    examples = (ROOT / "examples" / "third_party").glob("*/archport_*/__init__.py")
    return {
        **dict.fromkeys(SHIPPED, ""),
        **{each.parent.name: str(each.parents[1].relative_to(ROOT)) for each in sorted(examples)},
        **{each.stem.removesuffix("_model"): "tests/outside" for each in sorted(outside)},
    }


CHECKED = plugins()


def digest() -> str:
    """A hash of everything that is run or read, so that all slices are known to be of one tree."""
    total = hashlib.sha256()
    for top in SOURCES:
        path = ROOT / top
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(str(file.relative_to(ROOT)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def commit() -> str:
    """The checked-out commit, or "" where the tree has no history."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def device_name() -> str:
    done = subprocess.run(
        [sys.executable, "-c", "import archport\nfrom archport.device.facts import this_device\nd = this_device()\n"
         "print(d.kind, d.name, sep=' ')"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr.strip()[-200:]


def slice_of(at: int, of: int) -> list[str]:
    """Test files of slice `at` (from 1) of `of`; the large ones spread by size, which goes with their time."""
    files = [each for top in ("tests", "plugins") for each in (ROOT / top).rglob("test_*.py")]
    files.sort(key=lambda each: (-each.stat().st_size, str(each)))
    # Those right under `tests` run whole programs, those of plugins compile kernels: what takes longest begins first.
    chosen = sorted(files[at - 1 :: of], key=lambda each: (each.parent != ROOT / "tests", each))
    return [str(each.relative_to(ROOT)) for each in chosen]


def run_slice(at: int, of: int, workers: int, out: Path, limit: int) -> None:
    """One run of pytest; its outcomes are in OUT/slice-AT.jsonl as they come."""
    outcomes = out / f"slice-{at}-of-{of}.jsonl"
    outcomes.unlink(missing_ok=True)
    spread = ["-n", str(workers), "--dist", "worksteal"] if importlib.util.find_spec("xdist") and workers > 1 else []
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "outcomes", *spread]
    command += [f"--outcomes={outcomes}", "--tb=short", "-m", SELECTION, *slice_of(at, of)]
    with (out / f"slice-{at}-of-{of}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            code = -1
    # 0 and 1 are pytest's for a run that came to its end.
    if code not in (0, 1):
        row = {"test": f"slice {at} of {of}", "outcome": "error", "seconds": 0, "why": f"ended with {code}"}
        with outcomes.open("a") as file:
            file.write(json.dumps(row) + "\n")


def checked(name: str, out: Path) -> str:
    """What `archport check` says of a plugin: "ok", or its last line."""
    folder = CHECKED[name]
    path = os.pathsep.join(filter(None, [str(ROOT / folder) if folder else "", os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", "from archport.cli import main; main()", "check", name],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    (out / f"check-{name}.log").write_text(done.stdout + done.stderr)
    return "ok" if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[-1][:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=0, help="how many; 2 with pytest-xdist, else 8")
    parser.add_argument("--slice", type=int, help="run this one alone, from 1")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "test-device")
    parser.add_argument("--commit", default="", help="what is run, where the tree has no history")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of a slice")
    parser.add_argument("--no-checks", action="store_true", help="leave `archport check` out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    slices = args.slices or (2 if importlib.util.find_spec("xdist") else 8)
    before, start = digest(), time.monotonic()
    tree = args.out / "tree.txt"
    if args.slice and tree.exists() and tree.read_text() != before:
        sys.exit(f"{args.out} holds slices of another tree; remove it, or give another --out")
    if not args.slice:
        # Of an earlier run, perhaps of another tree.
        for old in args.out.glob("slice-*"):
            old.unlink()
    tree.write_text(before)
    names = [] if args.no_checks else list(CHECKED)
    # Beside the tests, with a share of the machine.
    with ThreadPoolExecutor(max(1, args.workers // 3)) as pool:
        found = pool.map(lambda name: checked(name, args.out), names)
        for at in [args.slice] if args.slice else range(1, slices + 1):
            run_slice(at, slices, args.workers, args.out, args.limit)
        checks = dict(zip(names, found, strict=True))
    ran = sorted(args.out.glob(f"slice-*-of-{slices}.jsonl"))
    rows = [json.loads(line) for file in ran for line in file.read_text().splitlines()]
    counts = Counter(row["outcome"] for row in rows)
    elsewhere = sum("only on " in row.get("why", "") for row in rows if row["outcome"] == "skipped")
    for row in rows:
        if row["outcome"] in ("failed", "error"):
            print(f"{row['outcome'].upper()} {row['test']}")
    for name, said in checks.items():
        print(f"archport check {name}: {said}")
    summary = {
        "commit": args.commit or commit(),
        "tree": before,
        "device": device_name(),
        **{key: counts[key] for key in ("passed", "failed", "error", "skipped")},
        "skipped_for_another_device": elsewhere,
        "skipped_for_a_package": sum("which `make test` installs" in row.get("why", "") for row in rows),
        "slices": len(ran),
        "checks_ok": sum(said == "ok" for said in checks.values()),
        "checks": len(checks),
        "seconds": round(time.monotonic() - start),
    }
    changed = digest() != before
    if changed:
        print("files changed while the tests ran: these counts are of no commit")
    print("TEST-DEVICE " + json.dumps(summary))
    bad = counts["failed"] + counts["error"] + sum(said != "ok" for said in checks.values())
    sys.exit(1 if bad or changed or not counts["passed"] else 0)


if __name__ == "__main__":
    main()
