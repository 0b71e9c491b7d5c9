"""Threads for host work: those of one request, which end with it, and those of the process, which share out one call's
pieces. Knows nothing of what they compute.

The garbage collector may run in any thread, inside any lock. So nothing here waits or locks when an object is dropped:
`Threads.close` is called by whoever opened them, and threads that nobody closed end by themselves.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from archport.device import vectormath

T = TypeVar("T")

# Longest wait for work that nobody wants any more. A picture is decoded by then; a long film goes on without us, and
# its thread ends after it.
PATIENCE_SECONDS = 2.0


def cores() -> int:
    """Cores this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Threads worth using for float32 work on the host; 0 where MKL is not loaded."""
    return cores() if vectormath.available() else 0


class Coming(Generic[T]):
    """What a thread is making, handed over once.

    A future keeps its error, the error its traceback, and the traceback the frame that holds the future: a cycle that
    keeps a failed request's arrays until the garbage collector comes. So the future goes when its result is taken.
    """

    def __init__(self, future: Future[T]) -> None:
        self._future = [future]

    def take(self) -> T:
        """Wait for the result; raises what the work raised."""
        return self._future.pop().result()


class Threads:
    """The threads of one request, made when there is work; close them, or use a `with` block.

    Args:
        name: of the threads, for people who list them.
        most: threads at once.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        # Its threads end once nobody holds it, which takes no lock.
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[object]] = set()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, work: Callable[[], T]) -> Coming[T]:
        """Work on a thread; pieces begin in the order in which they are given."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most, self._name)
        future: Future[T] = self._pool.submit(work)
        self._running.add(future)  # pyright: ignore[reportArgumentType]
        future.add_done_callback(self._running.discard)  # pyright: ignore[reportArgumentType]
        return Coming(future)

    def close(self) -> None:
        """Forget what has not begun, and wait a little for what has, so that it holds nothing when this returns."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.shutdown(wait=False, cancel_futures=True)
        if not wait(tuple(self._running), PATIENCE_SECONDS).not_done:
            pool.shutdown(wait=True)


def spread(pieces: Iterable[T], worker: Callable[[], Callable[[T], None]], threads: int) -> None:
    """Work on all pieces, on at most `threads` cores; the first exception is raised when all threads have ended.

    Which thread gets a piece is chance, so pieces must not depend on each other. MKL runs on one thread in each:
    whole pieces side by side need no barrier inside every call, which costs most where others share the cores.

    Args:
        worker: makes what works on a piece, once per thread, so that threads can have scratch of their own.
    """
    left, errors = deque(pieces), list[BaseException]()

    def until_none_is_left() -> None:
        try:
            work = worker()
            while True:
                try:
                    piece = left.popleft()
                except IndexError:
                    return
                work(piece)
        except BaseException as error:
            errors.append(error)
            left.clear()

    pool, running = _pool(), list[Future[None]]()
    try:
        for _ in range(min(threads, len(left))):
            running.append(pool.submit(until_none_is_left))
        for each in running:
            each.result()
    except BaseException:
        # An interrupt. The threads write into the caller's arrays: they stop before it goes on.
        left.clear()
        for each in running:
            each.result()
        raise
    if errors:
        try:
            raise errors[0]
        finally:
            # The traceback leads here, so this frame keeps no error.
            errors.clear()


def begin() -> None:
    """Start the threads that `spread` uses and the process keeps, so that no request starts one."""
    _pool()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Kept for the process: MKL holds buffers for every thread that ever called it.
    pool = ThreadPoolExecutor(cores(), "archport", initializer=vectormath.one_thread)
    for _ in range(cores()):
        # A pool makes a thread for work that comes while the others have some.
        pool.submit(time.sleep, 1e-3)
    return pool
