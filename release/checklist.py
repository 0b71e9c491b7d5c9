"""The checklist of a release, as a program: every step is run and told, none is skipped in silence.

python release/checklist.py                   # what fits in an hour or two
python release/checklist.py --long            # and what takes hours or real weights
python release/checklist.py --only dist       # one step

Writes build/release.json. Exits with 1 where a step failed. What it can't do, it names: steps by hand come last.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from distributions import ROOT, distributions, version


@dataclass(frozen=True, slots=True)
class Step:
    """One entry.

    Attributes:
        name: for `--only`.
        what: it shows.
        run: a shell command, or a function that returns what is wrong.
        long: whether it takes hours, or asks for more than a clone.
    """

    name: str
    what: str
    run: str | Callable[[], list[str]]
    long: bool = False


def states() -> list[str]:
    """What of the files contradicts another: versions, ranges, the changes."""
    here, wrong = version(), []
    major, minor = here.split(".")[:2]
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    if cited != [here]:
        wrong.append(f"CITATION.cff states version {', '.join(cited) or 'none'}; archport is {here}")
    wanted = f"archport>={major}.{minor},<{major}.{int(minor) + 1}"
    wrong += [
        f"{one.name} requires {one.requires}; expected {wanted}"
        for one in distributions()
        if one.requires not in ("", wanted)
    ]
    wrong += [
        f"CHANGELOG.md: {problem}" for problem in changes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), here)
    ]
    return wrong


def changes(text: str, here: str) -> list[str]:
    """What is wrong with the changes: sections other than three, lines that are no item, nothing about this version."""
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    titles = [section.partition("\n")[0] for section in sections]
    wrong = (
        []
        if any(re.match(rf"{re.escape(here)}\b|Unreleased$", title) for title in titles)
        else [f"no section of {here}, and none that is unreleased"]
    )
    for title, section in zip(titles, sections, strict=True):
        kinds = re.findall(r"^### (.+)$", section, re.M)
        if kinds != [kind for kind in ("Added", "Changed", "Fixed") if kind in kinds] or not kinds:
            wrong.append(f"{title} has {', '.join(kinds) or 'no parts'}; expected Added, Changed, Fixed, in this order")
        lines = section.partition("\n")[2].splitlines()
        wrong += [
            f"{title}: {line!r} is neither an item nor goes on with one"
            for line in lines
            if line and not line.startswith(("- ", "  ", "### "))
        ]
    return wrong


def clean() -> list[str]:
    done = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [f"not committed: {line}" for line in done.stdout.splitlines()]


STEPS = (
    Step("tree", "nothing is uncommitted", clean),
    Step("states", "versions, ranges and changes agree", states),
    Step("lint", "ruff, pyright, workflows", "make lint types actionlint"),
    Step("pages", "pages and plots are those of the code and the results", "make check-pages"),
    Step("docs", "the site, every link followed", "make docs"),
    Step("test", "the suite", "make test"),
    Step(
        "frozen",
        "plugins of contract 0.1, frozen, and outside plugins",
        ".venv/bin/python -m pytest -q tests/contract_0_1 tests/outside",
    ),
    Step(
        "packaging",
        "fresh environments: the wheel, outside plugins installed, the guide from nothing",
        "make test-packaging",
    ),
    Step("dist", "wheels and sdists of every distribution", "make dist"),
    Step("install", "pip, uv and pipx", "make test-install"),
    Step("publish", "upload to an index on this machine, install from it", "make publish-dry-run"),
    Step("truth", "the long counts, a new user's hour among them", "make truth", long=True),
    Step("real", "real weights against their references", "make test-real", long=True),
    Step("clients", "official clients against a server", "make test-clients", long=True),
    Step("integrations", "host libraries", "make test-integrations", long=True),
    Step("bulk", "pandas, polars, Ray, Dask", "make test-bulk", long=True),
    Step("liars", "every liar of the kit", "make liars", long=True),
    Step("parity", "random checkpoints against transformers", "make parity", long=True),
    Step("fuzz", "20,000 random cases", "make fuzz", long=True),
)
BY_HAND = (
    "make test-device on a GPU of every kind that README names, and archport doctor --report on a Mac",
    "make bench; commit what changed under benchmarks/results, then make pages",
    "give the section Unreleased of CHANGELOG.md this version and a date, CITATION.cff a date-released; push a tag",
    "publish the release on the host: .github/workflows/publish.yml uploads by trusted publishing, of which the index "
    "has to be told once for each distribution (repository, workflow publish.yml, environment pypi)",
    "raise __version__ for the next release, and the range of archport in the plugins' pyproject.toml",
)


def ran(step: Step) -> tuple[str, str]:
    """(outcome, the end of what it printed)."""
    if callable(step.run):
        wrong = step.run()
        return ("FAIL", "\n".join(wrong)) if wrong else ("ok", "")
    done = subprocess.run(
        ["bash", "-c", step.run], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return ("FAIL", "\n".join(lines[-30:])) if done.returncode else ("ok", lines[-1] if lines else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", action="append", choices=[step.name for step in STEPS])
    asked = parser.parse_args()
    rows: list[dict[str, object]] = []
    print(f"archport {version()}, with " + ", ".join(f"{one.name} {one.version}" for one in distributions()[1:]))
    for step in STEPS:
        if asked.only and step.name not in asked.only:
            continue
        begun = time.monotonic()
        outcome, text = ("left out (--long)", "") if step.long and not asked.long and not asked.only else ran(step)
        rows.append(
            {"step": step.name, "outcome": outcome, "seconds": round(time.monotonic() - begun, 1), "text": text}
        )
        print(f"{outcome:18} {step.name:13} {step.what}" + (f"\n{text}" if outcome == "FAIL" else ""), flush=True)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "release.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print("by hand:", *BY_HAND, sep="\n  - ")
    return int(any(row["outcome"] == "FAIL" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
