"""What launches of our own kernels share: whether they run here, whether they are worth it, and numbers they are told.

A kernel of our own takes the host longer to describe than one of MLX's operations, so below some size, where the host
binds, it is not worth its launches. In a trace each launch is described once, and fewer of them are always faster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

_here = threading.local()


@contextmanager
def described_once() -> Iterator[None]:
    """Inside this block a function is traced for many runs."""
    before = getattr(_here, "once", False)
    _here.once = True
    try:
        yield
    finally:
        _here.once = before


def enough(elements: int, fewest: int) -> bool:
    """Whether so many elements are worth a kernel that the host is slow to describe: `fewest` of them, or any once."""
    return elements >= fewest or getattr(_here, "once", False)


@cache
def cuda() -> bool:
    """Whether this MLX runs on CUDA."""
    import mlx.core as mx

    return mx.cuda.is_available()


@lru_cache(maxsize=64)
def numbers(*values: float) -> mx.array:
    """float32 numbers on the device, made once: every layer asks for the same."""
    import mlx.core as mx

    made = mx.array(values, mx.float32)
    mx.eval(made)
    return made


@lru_cache(maxsize=64)
def integers(*values: int) -> mx.array:
    """int32 numbers on the device, made once."""
    import mlx.core as mx

    made = mx.array(values, mx.int32)
    mx.eval(made)
    return made
