"""The CUDA headers that MLX compiles kernels with at run time: where it looks for them, and which are not there.

MLX takes the first folder that exists: of NVIDIA's Python packages next to its own, then of the toolkit. It compiles
a kernel when it first needs it, so a missing header shows in the middle of a request, as "Failed to compile kernel".
Knows nothing of kernels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# Folders of NVIDIA's packages for CUDA 13 and 12, below the folder that holds mlx.
PACKAGED = {"13": Path("nvidia", "cu13", "include"), "12": Path("nvidia", "cuda_runtime", "include")}
# What a kernel includes -> what needs it. Products of quantised weights use the tensor cores through mma.h, which CUDA
# 13's packages keep apart from the runtime's, and mlx[cuda13] does not ask for.
NEEDED = {"cuda_fp16.h": "every compiled kernel", "crt/mma.h": "products of quantised weights"}
HOMES = ("CUDA_HOME", "CUDA_PATH")
TOOLKIT = Path("/usr/local/cuda")


@dataclass(frozen=True, slots=True)
class Headers:
    """What was found.

    Args:
        folder: where MLX looks; None where there is no such folder.
        missing: headers that are not there.
        advice: what is wrong and what to do; "" when nothing is.
    """

    folder: Path | None
    missing: tuple[str, ...]
    advice: str


def installed_major() -> str:
    """CUDA's version that this MLX was built for, "12" or "13"."""
    try:
        distribution("mlx-cuda-12")
    except PackageNotFoundError:
        return "13"
    return "12"


def search(
    packages: Path | None = None,
    *,
    major: str | None = None,
    environment: Mapping[str, str] = os.environ,
    toolkit: Path = TOOLKIT,
) -> Headers:
    """Look where MLX looks.

    Args:
        packages: the folder that holds mlx; this process's by default.
        major: CUDA's version, "12" or "13"; the installed MLX's by default.
    """
    if packages is None:
        import mlx.core as mx

        packages = Path(mx.__file__).parents[1]
    major = major or installed_major()
    packaged = packages / PACKAGED[major]
    home = next((environment[name] for name in HOMES if environment.get(name)), str(toolkit))
    folder = packaged if packaged.is_dir() else Path(home, "include")
    if not folder.is_dir():
        return Headers(
            None,
            tuple(NEEDED),
            f"no CUDA headers, which MLX compiles kernels with: neither {packaged} nor {folder} is a folder. Install "
            f"{_packages(major)}, or the CUDA {major} toolkit and set CUDA_HOME to it",
        )
    missing = tuple(name for name in NEEDED if not (folder / name).is_file())
    if not missing:
        return Headers(folder, (), "")
    uses = ", ".join(f"{name} (for {NEEDED[name]})" for name in missing)
    aside = f", or remove {folder} and set CUDA_HOME to a CUDA {major} toolkit" if folder == packaged else ""
    return Headers(
        folder,
        missing,
        f"{folder} lacks {uses}: MLX would fail to compile kernels in the middle of a request. Install "
        f"{_packages(major)} into the Python that runs archport{aside}",
    )


def _packages(major: str) -> str:
    """What holds the headers, in pip's words."""
    return "nvidia-cuda-runtime and nvidia-cuda-crt" if major == "13" else "nvidia-cuda-runtime-cu12"
