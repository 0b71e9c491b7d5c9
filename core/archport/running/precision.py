"""Vectors in fewer bits. Calibration is per dimension over the vectors of one call."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from archport.contract import InputError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]


def check_precision(precision: str) -> None:
    """Raise InputError for an unknown precision, before any work is done."""
    if precision not in get_args(Precision):
        raise InputError(f"{precision=}; expected one of {', '.join(get_args(Precision))}")


def quantise(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Vectors (N, D) float32 in another precision.

    `int8` and `uint8` map each dimension's range over these N vectors to 255 steps. `ubinary` packs the signs of eight
    dimensions into a byte, (N, ceil(D / 8)); `binary` is that minus 128, as int8.

    Raises:
        InputError: for int8 and uint8 when every vector is the same, since no range can be calibrated.
    """
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if not len(vectors):
        return vectors.astype(np.int8 if precision == "int8" else np.uint8)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    if (low == high).all():
        raise InputError(
            f"precision={precision!r} calibrates each dimension over the vectors of the call, and these {len(vectors)} "
            "are all equal; embed more texts in one call, or quantise float32 vectors with ranges of your own"
        )
    steps = (high - low) / 255
    levels = np.clip(np.floor((vectors - low) / np.where(steps > 0, steps, 1)), 0, 255)
    return (levels - 128).astype(np.int8) if precision == "int8" else levels.astype(np.uint8)
