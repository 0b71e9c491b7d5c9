"""Whether operations are described to the device each time they run, or once for many times, inside a trace of MLX's.

A kernel of our own takes the host longer to describe than one of MLX's operations, so below some size, where the host
binds, it is not worth its launches. In a trace each launch is described once, and fewer of them are always faster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
