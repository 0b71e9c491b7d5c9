"""What is published: every distribution of this repository, built into dist/ and looked through.

python release/distributions.py               # build wheels and sdists into dist/, check them strictly
python release/distributions.py --list        # their names, versions and folders

A distribution is a folder with a `pyproject.toml` that git knows; one whose classifiers say "Private :: Do Not Upload"
is an example and is not built. Needs `build` and `twine` in the environment that runs it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PRIVATE = "Private :: Do Not Upload"


@dataclass(frozen=True, slots=True)
class Distribution:
    """One that is published.

    Attributes:
        folder: where its `pyproject.toml` is.
        name: on the index.
        version: of the next release.
        requires: of archport, "" for archport itself.
    """

    folder: Path
    name: str
    version: str
    requires: str

    @property
    def stem(self) -> str:
        """What its files' names begin with."""
        return f"{self.name.replace('-', '_')}-{self.version}"


def projects() -> list[tuple[Path, dict]]:
    """(folder, project table) of every `pyproject.toml` that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    folders = [ROOT / name for name in sorted(listed, key=lambda name: (name.count("/"), name))]
    return [(path.parent, tomllib.loads(path.read_text(encoding="utf-8"))["project"]) for path in folders]


def version() -> str:
    """The version of archport itself, which stands in its package alone."""
    text = (ROOT / "core" / "archport" / "__init__.py").read_text(encoding="utf-8")
    (stated,) = re.findall(r'^__version__ = "([^"]+)"$', text, re.M)
    return stated


def distributions() -> list[Distribution]:
    """All that are published, archport first."""
    return [
        Distribution(folder, about["name"], about.get("version", version()), requirement(about))
        for folder, about in projects()
        if PRIVATE not in about.get("classifiers", [])
    ]


def requirement(about: dict) -> str:
    """What a plugin asks of archport."""
    named = [text for text in about.get("dependencies", []) if re.match(r"archport\b(?!-)", text)]
    return named[0] if named else ""


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, beyond what twine finds."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = next(file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    head = metadata.partition("\n\n")[0]
    wrong = [
        name for name in names if re.search(r"(^|/)(tests?|\.github|__pycache__)/", name) and "/testing/" not in name
    ]
    wrong = [f"{wheel.name} holds {name}" for name in wrong if not name.startswith("archport/")]
    if not any("/licenses/" in name for name in names):
        wrong.append(f"{wheel.name} holds no licence")
    for field in ("License-Expression", "Requires-Python", "Summary", "Description-Content-Type"):
        if f"\n{field}: " not in head:
            wrong.append(f"{wheel.name} states no {field}")
    wrong += [
        f"{wheel.name} requires {line}"
        for line in head.splitlines()
        if line.startswith("Requires-Dist:") and "@" in line
    ]
    return wrong


def unsafe(sdist: Path) -> list[str]:
    """Members of an sdist that would be written outside its folder, or are more than files."""
    with tarfile.open(sdist) as file:
        return [
            f"{sdist.name} holds {member.name}"
            for member in file.getmembers()
            if not (member.isfile() or member.isdir()) or ".." in member.name or member.name.startswith("/")
        ]


def build(into: Path = DIST) -> list[str]:
    """Build all into a folder that is made anew; returns what is wrong."""
    shutil.rmtree(into, ignore_errors=True)
    wrong: list[str] = []
    for one in distributions():
        command = [sys.executable, "-m", "build", "--outdir", str(into), str(one.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            wrong.append(f"{one.name} does not build:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            continue
        wheel, sdist = into / f"{one.stem}-py3-none-any.whl", into / f"{one.stem}.tar.gz"
        wrong += [f"{path.name} was not built" for path in (wheel, sdist) if not path.exists()]
        wrong += faults(wheel) + unsafe(sdist)
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(into.iterdir()))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(checked.stdout, end="")
    if checked.returncode:
        wrong.append(f"twine check: {checked.stdout}{checked.stderr}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true")
    if parser.parse_args().list:
        for one in distributions():
            print(f"{one.name:20} {one.version:8} {one.folder.relative_to(ROOT)}  {one.requires}")
        sys.exit()
    wrong = build()
    print("\n".join(wrong) or f"{len(list(DIST.iterdir()))} files in dist/, nothing is wrong with them")
    sys.exit(bool(wrong))
