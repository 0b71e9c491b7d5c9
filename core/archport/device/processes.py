"""One process for each device of this machine: which devices, and what environment and cores a process gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from archport.contract import InputError
from archport.contract.errors import shown
from archport.device.workers import cores


def ids_of(devices: str) -> list[str]:
    """The ids that `all`, a number of devices or a list of ids stands for.

    A machine without a CUDA GPU has one device, for which as many processes as it has cores may be asked.

    Raises:
        InputError: for anything else, and for devices that are not there.
    """
    if devices == "all":
        import mlx.core as mx

        return [str(index) for index in range(max(1, mx.device_count(mx.gpu)))]
    gpus = _gpus()
    most, what = (gpus, "GPUs that this process sees") if gpus else (cores(), "cores and no GPU")
    if devices.isdecimal():
        # No more are listed than it takes to refuse them: a number may have any size.
        ids = [str(index) for index in range(min(int(devices[-4000:]), most + 1))]
    else:
        ids = devices.split(",")
    if not ids or not all(ids) or len(set(ids)) != len(ids):
        raise InputError(f"devices={shown(devices)}; expected all, a number of devices from 1 on, or ids, as 0,2,3")
    for id in ids:
        # NVIDIA has names for devices and for their parts.
        named = gpus and id.startswith(("GPU-", "MIG-"))
        if not named and not (id.isdecimal() and int(id[-4000:]) < most):
            raise InputError(
                f"devices={shown(devices)}; this machine has {most} {what}: expected all, a number from 1 to {most}, "
                f"or ids from 0 to {most - 1}"
            )
    return ids


def _gpus() -> int:
    """CUDA GPUs that this process may see, counted without starting one."""
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    return len(visible) or len(list(Path("/dev").glob("nvidia[0-9]*")))


def environment_of(at: int, ids: Sequence[str], variable: str) -> dict[str, str]:
    """Of one process: its device is one of those that this process may see, as a cluster hands out some of a host.

    Args:
        variable: tells the process which of how many it is, as "0/2".

    Raises:
        InputError: for a device that this process may not see.
    """
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    device = ids[at]
    if visible and device.isdecimal():
        if int(device) >= len(visible):
            raise InputError(
                f"devices names device {device}, and CUDA_VISIBLE_DEVICES={','.join(visible)} leaves {len(visible)}; "
                f"expected 0 to {len(visible) - 1}"
            )
        device = visible[int(device)]
    return {**os.environ, variable: f"{at}/{len(ids)}", "CUDA_VISIBLE_DEVICES": device}


def place_of(variable: str) -> tuple[int, int]:
    """(index, number) of this process among those that were given the variable; (0, 1) for any other."""
    index, _, count = os.environ.get(variable, "0/1").partition("/")
    return int(index), int(count)


def started(arguments: Sequence[str], environments: Sequence[dict[str, str]]) -> list[subprocess.Popen[Any]]:
    """archport's command line in a process for each device."""
    command = [sys.executable, "-c", "from archport.cli import main; main()", *arguments]
    # In sessions of their own, so that Ctrl-C reaches each once: the second one stops it at once.
    return [
        subprocess.Popen(command, env=environment, start_new_session=True, **_cores(at, len(environments)))
        for at, environment in enumerate(environments)
    ]


def send(processes: Sequence[subprocess.Popen[Any]], number: int) -> None:
    """Send those that run a signal."""
    for process in processes:
        with suppress(ProcessLookupError):
            if process.poll() is None:
                process.send_signal(number)


def without(arguments: Sequence[str], option: str, flags: Sequence[str] = ()) -> list[str]:
    """The arguments but for an option with its value, and some flags."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}=") and argument not in flags:
            kept.append(argument)
    return kept


def _cores(at: int, count: int) -> dict[str, Any]:
    """A process without a GPU gets its own cores, or all would wait for each other."""
    if sys.platform != "linux" or Path("/dev/nvidiactl").exists() or cores() < count:
        return {}
    own = sorted(os.sched_getaffinity(0))[at::count]
    return {"preexec_fn": lambda: os.sched_setaffinity(0, own)}
