"""The process whose device MLX drives. MLX's threads do not survive a fork, and a child that waits for one never wakes.

Notes what archport itself runs; an array that somebody else evaluates before a fork is not seen.
"""

from __future__ import annotations

import os

from archport.contract.errors import ForkedProcess

# Where archport first used the device: this process, or an ancestor that forked afterwards. None before that.
_used_in: int | None = None


def use_device() -> None:
    """Note that this process uses the device from now on; raises as `refuse_fork` does."""
    global _used_in
    refuse_fork()
    _used_in = os.getpid()


def refuse_fork() -> None:
    """Refuse a process that was forked after the device was used. Costs a system call, so every call can afford it.

    Raises:
        ForkedProcess: here MLX would wait for ever.
    """
    here = os.getpid()
    if _used_in is not None and _used_in != here:
        raise ForkedProcess(
            f"process {here} was forked from process {_used_in}, which had loaded a model: MLX's threads do not "
            "survive a fork, so this call would never return. Start the process with "
            "multiprocessing.get_context('spawn') and load the model in it, or fork before the parent loads one"
        )
