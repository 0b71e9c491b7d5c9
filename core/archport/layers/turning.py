"""Turning the halves of each head by angles, in float32: the inner step of rotary embeddings over several axes.

On a GPU the passes over the arrays are compiled into one. Knows nothing of where angles come from.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx


def turn(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of x's last axis.

    Args:
        x: (..., Dh).
        cos, sin: float32, broadcast against (..., Dh / 2).

    Returns:
        The same shape and type as x.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        return _turn(x, cos, sin)
    return _compiled()(x, cos, sin)


def _turn(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    first, second = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@cache
def _compiled() -> Any:
    return mx.compile(_turn)
