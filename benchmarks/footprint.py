"""What an installation weighs and how fast its commands start: the table in docs/install.md.

    python benchmarks/footprint.py                    # builds the wheel, installs it, times, writes results and page
    python benchmarks/footprint.py --starts           # only times commands, of the environment that runs this

Sizes are bytes on disk that one environment grows by, bytecode included, as it gets one extra after another. Starts are
seconds of processor time, user and system, of a process and its children: the least of --runs, which other work on the
machine disturbs least. Exits with 1 where `archport --help` takes more than its bar.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "footprint_cpu.txt"
PAGE = ROOT / "docs" / "install.md"
GOLDEN = ROOT / "tests" / "goldens" / "bert-plain"
# Seconds of processor time that `archport --help` may take.
HELP_BAR = 0.3
# In the order in which they are added; on a Mac plain mlx is the backend.
EXTRAS = (
    ("vision", "video", "bulk", "server") if sys.platform == "darwin" else ("cpu", "vision", "video", "bulk", "server")
)
STARTS: tuple[tuple[str, Sequence[str]], ...] = (
    ("python -c pass", ["python", "-c", "pass"]),
    ("import archport", ["python", "-c", "import archport"]),
    ("from archport import engine", ["python", "-c", "from archport import engine"]),
    ("archport --help", ["archport", "--help"]),
    ("archport --version", ["archport", "--version"]),
    ("archport embed --help", ["archport", "embed", "--help"]),
    ("archport plugins", ["archport", "plugins"]),
    ("archport info -m MODEL", ["archport", "info", "-m", str(GOLDEN)]),
    ("archport plan -m MODEL --tokens 512", ["archport", "plan", "-m", str(GOLDEN), "--tokens", "512"]),
    ("archport embed TEXT -m MODEL (tiny)", ["archport", "embed", "a text", "-m", str(GOLDEN)]),
)


def outside() -> dict[str, str]:
    """This process's variables without what leads to a checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"HF_HUB_OFFLINE": "1"}


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def seconds(binaries: Path, command: Sequence[str], runs: int, variables: dict[str, str]) -> float:
    """The least processor time of a command, after one run that writes its bytecode."""
    words = [str(binaries / command[0]), *command[1:]]
    best = float("inf")
    for run in range(runs + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        best = min(best, spent) if run else best
    return best


def starts(binaries: Path, runs: int, variables: dict[str, str]) -> list[tuple[str, float]]:
    return [(name, seconds(binaries, command, runs, variables)) for name, command in STARTS]


def measured(runs: int) -> tuple[list[tuple[str, int, int]], list[tuple[str, float]]]:
    """[(extra, bytes and packages that it adds)] of an environment that grows, and starts once a backend is there."""
    added: list[tuple[str, int, int]] = []
    times: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "pip", "wheel", "-qqq", "--no-deps", "--wheel-dir", name, str(ROOT)]
        subprocess.run(build, check=True, env=outside())
        (wheel,) = folder.glob("archport-*.whl")
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, env=outside())
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        python = folder / "venv" / "bin" / "python"
        pip = [python, "-m", "pip", "install", "-qqq", "--disable-pip-version-check"]
        total, packages = size(folder / "venv"), len(list(site.glob("*.dist-info")))
        for extra in ("", *EXTRAS):
            subprocess.run([*pip, f"{wheel}[{extra}]" if extra else str(wheel)], check=True, env=outside())
            subprocess.run([python, "-m", "compileall", "-qq", site], check=False, env=outside())
            now, count = size(folder / "venv"), len(list(site.glob("*.dist-info")))
            added.append((extra, now - total, count - packages))
            total, packages = now, count
            print(f"{extra or 'archport':10} {added[-1][1] / 1e6:8.0f} MB {added[-1][2]:4} packages", flush=True)
            if extra == EXTRAS[0]:
                times = starts(folder / "venv" / "bin", runs, outside())
    return added, times


def table(added: list[tuple[str, int, int]], times: list[tuple[str, float]]) -> str:
    """Both as Markdown."""
    rows = [
        f"| {f'`{extra}`' if extra else 'archport'} | {total / 1e6:,.0f} MB | {count} |"
        for extra, total, count in added
    ]
    lines = ["| installed, one after the other | adds on disk | packages |", "|---|---|---|", *rows, ""]
    lines += ["| command | processor time |", "|---|---|", *(f"| `{name}` | {spent:.2f} s |" for name, spent in times)]
    return "\n".join(lines) + "\n"


def written(text: str, made: str) -> str:
    """A page with these tables in place of its own."""
    pattern = r"^\| installed, one after the other .*?^\| command \|.*?\n(?=\n|\Z)"
    text, count = re.subn(pattern, lambda _: made, text, flags=re.M | re.S)
    if count != 1:
        raise ValueError(f"{PAGE} holds {count} pairs of these tables; expected one")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    if asked.starts:
        sizes, times = [], starts(Path(sys.executable).parent, asked.runs, dict(os.environ))
    else:
        sizes, times = measured(asked.runs)
    head = (
        f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} CPUs, load "
    )
    lines = [head + ", ".join(f"{load:.1f}" for load in os.getloadavg())]
    lines += [f"{extra or 'archport':40} adds {total:14,} bytes {count:4} packages" for extra, total, count in sizes]
    lines += [f"{name:40} {spent:8.3f} s of processor time" for name, spent in times]
    spent = dict(times)["archport --help"]
    lines.append(f"archport --help {spent:.3f} s, bar {HELP_BAR} s: {'met' if spent <= HELP_BAR else 'MISSED'}")
    print("\n".join(lines))
    if not asked.starts:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), table(sizes, times)), encoding="utf-8")
    return int(spent > HELP_BAR)


if __name__ == "__main__":
    sys.exit(main())
