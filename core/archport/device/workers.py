"""Threads for independent pieces of host work. Knows nothing of what they compute."""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from archport.device import vectormath

T = TypeVar("T")


def cores() -> int:
    """Cores this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Threads worth using for float32 work on the host; 0 where MKL is not loaded."""
    return cores() if vectormath.available() else 0


def spread(pieces: Iterable[T], worker: Callable[[], Callable[[T], None]], threads: int) -> None:
    """Work on all pieces, on at most `threads` cores; the first exception is raised when all threads have ended.

    Which thread gets a piece is chance, so pieces must not depend on each other. MKL runs on one thread in each:
    whole pieces side by side need no barrier inside every call, which costs most where others share the cores.

    Args:
        worker: makes what works on a piece, once per thread, so that threads can have scratch of their own.
    """
    left = deque(pieces)

    def until_none_is_left() -> None:
        work = worker()
        while True:
            try:
                piece = left.popleft()
            except IndexError:
                return
            work(piece)

    pool = _pool()
    running = [pool.submit(until_none_is_left) for _ in range(min(threads, len(left)))]
    for each in running:
        each.exception()
    for each in running:
        each.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Kept for the process: MKL holds buffers for every thread that ever called it.
    return ThreadPoolExecutor(cores(), "archport", initializer=vectormath.one_thread)
