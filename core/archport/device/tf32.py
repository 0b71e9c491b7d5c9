"""Float32 products on a GPU: in full precision, or rounded to the ten bits of TF32 where the user asks for speed.

MLX's default is TF32; transformers' and torch's is not. The switch is one per process, and MLX reads it at its first
product, so a load sets it and an import does not (docs/adr/0012). Knows nothing of models.
"""

from __future__ import annotations

import functools
import os
import warnings

import mlx.core as mx

SWITCH = "MLX_ENABLE_TF32"


def wanted() -> bool:
    """Whether the environment asks for TF32. Unset, it does not."""
    return os.environ.get(SWITCH, "0").strip() not in ("", "0")


def choose_precision() -> None:
    """Have MLX multiply float32 in full precision, unless the environment says otherwise. Call before any product."""
    if mx.default_device().type != mx.DeviceType.cpu:
        os.environ.setdefault(SWITCH, "0")


@functools.cache
def in_use() -> bool:
    """Whether float32 products of MLX's default device are rounded to TF32 in this process; makes one to see."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return False
    choose_precision()
    # Twelve bits after the point: TF32 keeps ten.
    value = 1 + 2.0**-12
    product = mx.full((64, 64), value, dtype=mx.float32) @ mx.eye(64)
    return bool(mx.any(product != value).item())


def warn_if_rounded() -> None:
    """Warn where MLX read its switch before archport could set it, so that float32 results have ten bits."""
    if wanted() or not in_use():
        return
    warnings.warn(
        f"MLX multiplied matrices before archport's first load and rounds float32 to TF32 (10 bits) in this process: "
        f"results differ from the reference by about 1e-3. Set {SWITCH}=0 before Python starts, or load the model "
        f"first; {SWITCH}=1 asks for TF32 and silences this",
        RuntimeWarning,
        stacklevel=3,
    )
