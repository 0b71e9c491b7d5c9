"""MLX's pool of freed buffers, kept to what the plans of this process need, and the wired memory of a Mac.

MLX keeps freed buffers for later arrays of nearly their size, by default up to almost all of a GPU's memory. Requests
of ever new lengths fill that with buffers that no later request can use. So the pool gets a limit from the plans that
run: one limit for all models of a process, because MLX has one pool.

Knows nothing of plans: it is told bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from archport.contract import DeviceFacts

# Requests whose needs the limit remembers: mixed traffic keeps its buffers, and a large request is forgotten in time.
REMEMBERED = 64


class Pool:
    """The limit of MLX's pool of freed buffers.

    Args:
        mx: MLX's core module, or what stands in for it in a test.
    """

    def __init__(self, mx: Any) -> None:
        self._mx = mx
        self._needs: deque[int] = deque(maxlen=REMEMBERED)
        self._limit: int | None = None
        self._ceiling: int | None = None
        # Taken at the start of a request only, never where the garbage collector may come.
        self._lock = threading.Lock()

    @property
    def limit(self) -> int | None:
        """Bytes that the pool may hold as far as archport set it; None before the first request."""
        return self._limit

    def hold(self, needed: int, room: int) -> int:
        """Set the limit for a request that is about to run, and return it.

        It is the largest need of the last requests, but no more than `room`, and no more than a limit that somebody
        else set: MLX tells the previous limit when a new one is set, so a change by others is seen then.

        Args:
            needed: bytes of freed buffers that the request's plan can use again.
            room: bytes that the request's budget leaves besides its live arrays.
        """
        with self._lock:
            self._needs.append(needed)
            wanted = max(0, min(max(self._needs), room))
            previous = self._mx.set_cache_limit(wanted)
            if previous != self._limit:
                self._ceiling = previous
            self._limit = wanted if self._ceiling is None else min(wanted, self._ceiling)
            if self._limit != wanted:
                self._mx.set_cache_limit(self._limit)
            return self._limit


_pool: Pool | None = None


def pool() -> Pool:
    """The pool of this process."""
    global _pool
    if _pool is None:
        import mlx.core as mx

        _pool = Pool(mx)
    return _pool


class Bound:
    """The memory limit of MLX while planned requests run on CUDA.

    There the driver maps memory for live arrays and the pool together, in chunks that one buffer of the pool keeps
    mapped: with 2.2 GB of live arrays next to 2.2 GB of freed ones, 6.3 GB stayed mapped. Above its memory limit MLX
    gives freed buffers back before it takes new ones, which leaves those in the pool that the request does use again.

    Args:
        mx: MLX's core module, or what stands in for it in a test.
    """

    def __init__(self, mx: Any) -> None:
        self._mx = mx
        self._running: dict[object, int] = {}
        self._base = 0
        self._usual: int | None = None
        self._limit: int | None = None
        # Taken at the start of a request only, never where the garbage collector may come.
        self._lock = threading.Lock()

    def start(self, request: object, moving: int) -> None:
        """Allow a request so many bytes next to what is live now, until `end`."""
        with self._lock:
            current = self._mx.get_memory_limit()
            if current != self._limit:
                # Of the user, or MLX's own.
                self._usual = current
            if not self._running:
                self._base = self._mx.get_active_memory()
            self._running[request] = moving
            wanted = self._base + sum(list(self._running.values()))
            self._limit = wanted if self._usual is None else min(wanted, self._usual)
            self._mx.set_memory_limit(self._limit)

    def end(self, request: object) -> None:
        """Give the usual limit back, if no other request runs."""
        # No lock, because the garbage collector may close a generator in any thread. One operation on a dict is atomic.
        self._running.pop(request, None)
        if not self._running and self._usual is not None:
            self._mx.set_memory_limit(self._usual)


_bound: Bound | None = None


@contextmanager
def bounded(device: DeviceFacts, moving: int) -> Iterator[None]:
    """Keep live arrays and freed buffers of a request within so many bytes together, on CUDA."""
    if device.kind != "cuda":
        yield
        return
    global _bound
    if _bound is None:
        import mlx.core as mx

        _bound = Bound(mx)
    request = object()
    try:
        _bound.start(request, moving)
        yield
    finally:
        _bound.end(request)


# Requests that keep memory wired, so that the first limit comes back when the last of them ends.
_wiring: dict[object, int] = {}


@contextmanager
def wired(device: DeviceFacts, mx: Any = None) -> Iterator[None]:
    """Keep a running model's memory resident on a Mac, as mlx-lm does; elsewhere this does nothing.

    Without it macOS may page weights out between two requests, and the GPU waits for them. The limit that was set
    before comes back when no request runs any more.
    """
    if device.kind != "metal" or not device.working_set:
        yield
        return
    if mx is None:
        import mlx.core as mx
    request, before = object(), None
    try:
        before = mx.set_wired_limit(device.working_set)
        # No lock, because the garbage collector may close a generator in any thread: one operation on a dict is atomic.
        _wiring[request] = before = next(iter(_wiring.values()), before)
        yield
    finally:
        # Nor is the device waited for: the limit says what stays resident, whatever still runs.
        _wiring.pop(request, None)
        if before is not None and not _wiring:
            mx.set_wired_limit(before)


def free() -> None:
    """Hand back what nobody uses any more."""
    import gc

    import mlx.core as mx

    # Modules refer to one another in circles.
    gc.collect()
    mx.clear_cache()
