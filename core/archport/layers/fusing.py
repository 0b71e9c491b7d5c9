"""Chains of elementwise operations as one kernel, where a device gains from it. Knows nothing of what they compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import mlx.core as mx


def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Compile a function of arrays on a GPU: a dozen passes over memory become one.

    On a CPU compiling needs a compiler on the machine and gains less. Inside a transformation it becomes part of that.
    """
    compiled = mx.compile(function)

    @wraps(function)
    def run(*arrays: mx.array) -> mx.array:
        on_gpu = mx.default_device().type != mx.DeviceType.cpu
        return (compiled if on_gpu else function)(*arrays)

    return run
