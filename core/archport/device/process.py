"""The process and threads that MLX runs for: MLX's own threads do not survive a fork, and what it keeps for a thread of
Python goes with the interpreter's help when that thread ends.

Notes what archport itself runs; an array that somebody else evaluates before a fork is not seen.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque

from archport.contract.errors import ForkedProcess

# Where archport first used the device: this process, or an ancestor that forked afterwards. None before that.
_used_in: int | None = None
# The process that this one was forked from when MLX was imported there already; None for any other process.
_forked_from: int | None = None
_this_thread = threading.local()
# The latest threads that used the device, by the system's number; the main thread is none of them.
_threads: deque[int] = deque(maxlen=1024)
# Longest wait for them at the end of the process. They take some microseconds each.
ENDING_SECONDS = 0.5


def use_device() -> None:
    """Note that this process uses the device from now on; raises as `enter` does."""
    global _used_in
    enter()
    if _forked_from is not None and _has_gpu():
        raise ForkedProcess(_refusal(_forked_from, "imported MLX, which starts a GPU"))
    _used_in = os.getpid()


def enter() -> None:
    """Begin a call on the device in this process and thread. Costs a system call, so every call can afford it.

    Raises:
        ForkedProcess: the process was forked after the device was used; here MLX would wait for ever.
    """
    here = os.getpid()
    if _used_in is not None and _used_in != here:
        raise ForkedProcess(_refusal(_used_in, "loaded a model"))
    if not hasattr(_this_thread, "noted"):
        _this_thread.noted = True
        if threading.current_thread() is not threading.main_thread():
            _threads.append(threading.get_native_id())


def _refusal(parent: int, what: str) -> str:
    return (
        f"process {os.getpid()} was forked from process {parent}, which had {what}: neither MLX's threads nor a GPU "
        "survive a fork, so this call would never return, or crash. Start the process with "
        "multiprocessing.get_context('spawn') and load the model in it, or fork before the parent does that"
    )


def _has_gpu() -> bool:
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


def _note_fork() -> None:
    global _forked_from
    if _forked_from is None and "mlx.core" in sys.modules:
        _forked_from = os.getppid()


os.register_at_fork(after_in_child=_note_fork)


@atexit.register
def _let_threads_end() -> None:
    """Wait for threads that have ended for Python but not for the system.

    MLX 0.32 keeps compiled functions per thread and drops them when the thread is torn down, which needs the
    interpreter and comes after `join` returned: a process that finalised it meanwhile would abort.
    """
    ended = set(_threads) - {each.native_id for each in threading.enumerate()}
    if sys.platform != "linux":
        time.sleep(ENDING_SECONDS / 10 if ended else 0)
        return
    until = time.monotonic() + ENDING_SECONDS
    while any(os.path.exists(f"/proc/self/task/{each}") for each in ended) and time.monotonic() < until:
        time.sleep(0.001)
