"""Importing this module raises BackendMissing, which says what to install, where MLX has no backend to run on.

On Linux the wheel of MLX holds no backend: without one of archport's extras its import ends in the name of a library.
"""

from __future__ import annotations

import sys

from archport.contract.errors import BackendMissing

EXTRAS = (
    "pip install 'archport[cpu]', or with an NVIDIA GPU 'archport[cuda13]' (or 'archport[cuda12]' for older drivers)"
    if sys.platform.startswith("linux")
    else "pip install --force-reinstall archport mlx, with a Python for this machine's own processor"
)

try:
    import mlx.core as _  # noqa: F401
except ImportError as error:
    raise BackendMissing(f"MLX has no backend in this environment ({error}). Install one:\n  {EXTRAS}") from error
