"""Evaluating work piece by piece so that few pieces hold their temporaries at once, and whether MLX is tracing instead.

A GPU gives the buffers of finished work back from another thread, a little after the work is known to be done, so that
waiting for a piece is not enough: the next one may be allocated next to it. What pieces compute is not known here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx


def traced(*arrays: mx.array | None) -> bool:
    """Whether any of the arrays belongs to a function that MLX is transforming (compile, grad, vmap, export).

    `mx.async_eval` refuses arrays of a transformation, grad included, before it runs anything; `mx.eval` would run
    under grad. Asked on a new one-element slice, because an array that already has its value is never refused.
    Outside a transformation this starts computing the arrays.
    """
    import mlx.core as mx

    held = [array for array in arrays if array is not None and array.size]
    try:
        mx.async_eval([array[(slice(0, 1),) * array.ndim] if array.ndim else array + 0 for array in held])
    except ValueError:
        return True
    return False


def compile_traces() -> bool:
    """Whether `mx.compile` traces functions here: on a CPU without g++ MLX runs them as they are."""
    import mlx.core as mx

    answers: list[bool] = []

    def asked(x: mx.array) -> mx.array:
        answers.append(traced(x))
        return x

    mx.compile(asked)(mx.zeros((1,)))
    return answers[0]


# How long buffers may take to come back before the device is asked to finish everything: 18 us is usual, 230 the most
# that was seen on an H200.
RELEASE_SECONDS = 3e-4


def finish(*arrays: mx.array) -> None:
    """Evaluate, and have every buffer back that the work needed."""
    import mlx.core as mx

    mx.eval(*arrays)
    if mx.default_device() == mx.Device(mx.gpu):
        mx.synchronize()


class Pipeline:
    """Pieces of work started one after another, the next one before the last is done, within a bound of memory.

    Args:
        depth: pieces in flight at most.
    """

    def __init__(self, depth: int) -> None:
        import mlx.core as mx

        self.depth = depth
        # What is in use while nothing of this work is.
        self._base = mx.get_active_memory()
        self._running: list[mx.array] = []

    def start(self, *arrays: mx.array, room: int) -> None:
        """Start evaluating `arrays` as soon as there is room; arrays of a transformation are left alone.

        Args:
            room: bytes above the base that may be in use just before.
        """
        import mlx.core as mx

        full = len(self._running) >= self.depth
        while len(self._running) >= self.depth:
            mx.eval(self._running.pop(0))
        if not (full and self._comes_back(room)) and not self._released(room):
            mx.synchronize()
            self._running.clear()
            # What is left belongs to somebody else, who came after this work began.
            self._base = max(self._base, mx.get_active_memory() - room)
        # One element of its own to wait for: keeping the arrays would keep their memory.
        first = arrays[0]
        done = first[(slice(0, 1),) * first.ndim] + 0
        try:
            mx.async_eval(*arrays, done)
        except ValueError:
            # MLX refuses what belongs to a function that it is transforming (compile, grad, vmap, export).
            return
        self._running.append(done)

    def drain(self) -> None:
        """Wait for all pieces and have their buffers back."""
        import mlx.core as mx

        while self._running:
            mx.eval(self._running.pop(0))
        if mx.default_device() == mx.Device(mx.gpu):
            mx.synchronize()

    def _released(self, room: int) -> bool:
        """Whether no more than `room` is in use, after waiting for it as briefly as helps."""
        import mlx.core as mx

        if mx.get_active_memory() - self._base <= room:
            return True
        while self._running:
            # A piece that runs gives nothing back: looking for it would only keep other threads from the interpreter.
            mx.eval(self._running.pop(0))
            if self._comes_back(room):
                return True
        return self._comes_back(room)

    def _comes_back(self, room: int) -> bool:
        """Whether so little is in use within the time that buffers of finished work take."""
        import mlx.core as mx

        started = time.perf_counter()
        while mx.get_active_memory() - self._base > room:
            if time.perf_counter() - started > RELEASE_SECONDS:
                return False
        return True


class Stretches:
    """Stretches of layers that are being evaluated, over all batches of a request, within what its plan may hold."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(depth=4)

    def start(self, *arrays: mx.array, room: int | None) -> None:
        """Evaluate `arrays`.

        Args:
            room: start that as soon as no more bytes are in use; None: wait until it is done.
        """
        if room is not None:
            self._pipeline.start(*arrays, room=room)
        else:
            self.finish(*arrays)

    def finish(self, *arrays: mx.array) -> None:
        """Evaluate `arrays` and have back what that took, before anything else is started."""
        if not traced(*arrays):
            finish(*arrays)

    def drain(self) -> None:
        """Wait for all stretches, so that what comes next finds none of their temporaries."""
        self._pipeline.drain()


class Chain:
    """Makes pieces of a traced graph depend on each other, where nothing may be evaluated.

    Without that the evaluator walks the graph breadth-first and holds every piece's scratch at once.
    """

    def __init__(self) -> None:
        self._last: mx.array | None = None

    def link(self, piece_input: mx.array) -> mx.array:
        """`piece_input`, made to depend on the piece before."""
        import mlx.core as mx

        if self._last is None:
            return piece_input
        # `mx.depends` says the same but can't be vmapped; a choice never taken reads no value that could spread.
        return mx.where(mx.array(False), self._last[(slice(0, 1),) * self._last.ndim], piece_input)

    def add(self, piece: mx.array) -> None:
        """Note the latest piece."""
        self._last = piece
