"""Vectors in fewer bits. Calibration is per dimension, over the vectors of one call or over others once for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from archport.contract import InputError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]


@dataclass(frozen=True, slots=True)
class Ranges:
    """What 8-bit vectors are measured by.

    Args:
        low, high: of each dimension, (D,) float32.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Width of a level, (D,); 1 where a dimension has one value only."""
        steps = (self.high - self.low) / 255
        return np.where(steps > 0, steps, 1)


def check_precision(precision: str) -> None:
    """Raise InputError for an unknown precision, before any work is done."""
    if precision not in get_args(Precision):
        raise InputError(f"{precision=}; expected one of {', '.join(get_args(Precision))}")


def check_dimensions(dimensions: int | None, width: int) -> None:
    """Raise InputError for a number of dimensions that vectors of this width can't be cut to."""
    if dimensions is not None and not 1 <= dimensions <= width:
        raise InputError(f"{dimensions=}; expected 1 to {width}, the width of this model's vectors")


def calibrated(vectors: np.ndarray, precision: Precision) -> Ranges:
    """Each dimension's range over vectors (N, D), for `int8` and `uint8`.

    Raises:
        InputError: when there is none: no vectors, or all the same.
    """
    if not len(vectors) or (vectors.min(axis=0) == vectors.max(axis=0)).all():
        raise InputError(
            f"precision={precision!r} calibrates each dimension over some vectors, and these {len(vectors)} are all "
            "equal; embed more texts in one call, or quantise float32 vectors with ranges of your own"
        )
    return Ranges(vectors.min(axis=0), vectors.max(axis=0))


def quantise(vectors: np.ndarray, precision: Precision, ranges: Ranges | None = None) -> np.ndarray:
    """Vectors (N, D) float32 in another precision.

    `int8` and `uint8` map each dimension's range to 255 steps; what lies outside becomes the nearest one. `ubinary`
    packs the signs of eight dimensions into a byte, (N, ceil(D / 8)); `binary` is that minus 128, as int8.

    Args:
        ranges: of `int8` and `uint8`; None for those over these vectors.

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
    ranges = ranges or calibrated(vectors, precision)
    levels = np.clip(np.floor((vectors - ranges.low) / ranges.steps), 0, 255)
    return (levels - 128).astype(np.int8) if precision == "int8" else levels.astype(np.uint8)


def restored(values: np.ndarray, precision: Precision, ranges: Ranges | None, width: int) -> np.ndarray:
    """Float32 vectors (N, D) that are near those that were quantised: the middle of their step, or 1 and -1 for a sign.

    Args:
        width: D, which packed signs do not tell.
    """
    if precision == "float32":
        return values.astype(np.float32)
    if precision in ("binary", "ubinary"):
        packed = (values.astype(np.int16) + (128 if precision == "binary" else 0)).astype(np.uint8)
        return np.unpackbits(packed, axis=-1)[:, :width].astype(np.float32) * 2 - 1
    assert ranges is not None, "int8 is stored with its ranges"
    levels = values.astype(np.float32) + (128 if precision == "int8" else 0)
    return (ranges.low + (levels + 0.5) * ranges.steps).astype(np.float32)
