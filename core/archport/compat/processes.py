"""Texts in several processes: each is spawned, loads the model by its name and options, and answers chunks of a queue.

Knows no model: a process calls a method of whatever object was pickled for it.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import queue
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from archport.contract import InputError
from archport.device.progress import counted
from archport.device.workers import cores

log = logging.getLogger("archport")

# Texts of a chunk at most, and chunks per process, so that a slow one does not keep the others waiting.
_MOST, _CHUNKS = 5000, 10
_POLL = 1.0

Pool = dict[str, Any]


def started(owner: object, devices: Sequence[str]) -> Pool:
    """Processes that hold a copy of `owner`, one for each device.

    Args:
        devices: "cuda:0" is that GPU of those this process may see, "cpu" the CPU, anything else MLX's default.

    Raises:
        InputError: no device is named.
    """
    if not devices:
        raise InputError("target_devices is empty; expected one name for each process, such as ['cpu', 'cpu']")
    context = multiprocessing.get_context("spawn")
    given, answers = context.Queue(), context.Queue()
    # Pickled here, so that a process chooses its cores before it loads what the object needs.
    pickled = pickle.dumps(owner)
    processes = [
        context.Process(target=_work, args=(str(device), at, len(devices), pickled, given, answers), daemon=True)
        for at, device in enumerate(devices)
    ]
    for device, process in zip(devices, processes, strict=True):
        with _visible(str(device)):
            process.start()
    return {"input": given, "output": answers, "processes": processes}


def stopped(pool: Pool) -> None:
    """End the processes of a pool."""
    for process in pool["processes"]:
        process.terminate()
    for process in pool["processes"]:
        process.join()
        process.close()
    pool["input"].cancel_join_thread()
    for name in ("input", "output"):
        pool[name].close()


def answered(
    pool: Pool, method: str, inputs: Sequence[Any], chunk_size: int | None, shown: bool, options: dict[str, Any]
) -> list[Any]:
    """What `method(chunk, **options)` answers for each chunk of the inputs, in their order.

    Raises:
        InputError: for a chunk size below 1.
        RuntimeError: a process of the pool ended.
        Exception: the first chunk's that raised one.
    """
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"{chunk_size=}; expected a positive integer")
    size = chunk_size or max(1, min(math.ceil(len(inputs) / len(pool["processes"]) / _CHUNKS), _MOST))
    starts = range(0, len(inputs), size)
    for chunk, start in enumerate(starts):
        pool["input"].put((chunk, method, list(inputs[start : start + size]), options))
    answers: list[Any] = [None] * len(starts)
    with counted("embedding", len(inputs), shown=shown) as done:
        for _ in starts:
            chunk, answer = _next(pool)
            answers[chunk] = answer
            done(min(size, len(inputs) - chunk * size))
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def _next(pool: Pool) -> tuple[int, Any]:
    while True:
        with suppress(queue.Empty):
            return pool["output"].get(timeout=_POLL)
        dead = [process for process in pool["processes"] if not process.is_alive()]
        if dead:
            codes = ", ".join(f"{process.pid} with exit code {process.exitcode}" for process in dead)
            raise RuntimeError(
                f"{len(dead)} processes of the pool ended: {codes}. Stop the pool and start another; a program that "
                "starts one does so under `if __name__ == '__main__':`"
            )


def _work(device: str, at: int, count: int, pickled: bytes, given: Any, answers: Any) -> None:
    """Answer chunks until the pool is stopped."""
    _choose(device, at, count)
    owner: Any = None
    while True:
        chunk, method, inputs, options = given.get()
        try:
            if owner is None:
                owner = pickle.loads(pickled)
            answer = getattr(owner, method)(inputs, **options)
        except Exception as error:
            log.exception("chunk %d failed on %s", chunk, device)
            answer = _sendable(error)
        answers.put((chunk, answer))


@contextmanager
def _visible(device: str) -> Iterator[None]:
    """What is started in this block sees one GPU: it may import MLX, which starts its GPU, before it could choose."""
    kind, _, index = device.partition(":")
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if kind != "cuda" or not index:
        yield
        return
    visible = [name for name in (before or "").split(",") if name]
    if not index.isdecimal() or (visible and int(index) >= len(visible)):
        raise InputError(f"device {device!r}; expected cuda:N with N below the number of visible GPUs")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if visible else index
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _choose(device: str, at: int, count: int) -> None:
    """On a CPU use this process's own cores, or all would wait for each other."""
    if device != "cpu":
        return
    if sys.platform == "linux" and count <= cores():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[at::count])
    import mlx.core as mx

    mx.set_default_device(mx.cpu)  # pyright: ignore[reportArgumentType]


def _sendable(error: Exception) -> Exception:
    """The error, or one with its words where it can't be pickled and read again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
