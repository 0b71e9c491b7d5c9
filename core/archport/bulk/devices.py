"""One process for each device of this machine, each making its own parts of one job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from archport.bulk.manifest import Manifest
from archport.bulk.stores import clear, opened, writing
from archport.contract import InputError
from archport.device.workers import cores

# Tells a process which device of how many it is.
DEVICE = "ARCHPORT_BATCH_DEVICE"
_PAUSE, _LINE = 0.2, 30.0
_DONE, _FAILED, _SOME_FAILED, _INTERRUPTED = 0, 1, 3, 130


def this_one() -> tuple[int, int]:
    """(index, number) of this process among those of `run_on`; (0, 1) for any other."""
    index, _, count = os.environ.get(DEVICE, "0/1").partition("/")
    return int(index), int(count)


def ids_of(devices: str) -> list[str]:
    """The ids that `all`, a number of devices or a list of ids stands for; a machine without a CUDA GPU has one device.

    Raises:
        InputError: for anything else.
    """
    if devices == "all":
        import mlx.core as mx

        return [str(index) for index in range(max(1, mx.device_count(mx.gpu)))]
    ids = [str(index) for index in range(int(devices))] if devices.isdecimal() else devices.split(",")
    if not ids or not all(ids) or len(set(ids)) != len(ids):
        raise InputError(f"devices={devices!r}; expected all, a number of devices from 1 on, or ids, as 0,2,3")
    return ids


def run_on(
    devices: str,
    arguments: Sequence[str],
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    told: Callable[[str], None],
) -> int:
    """Run a command line of `archport batch` once for each device; returns the exit code of all together.

    A process that fails ends alone: the others make their parts, and what is left is made when the job is resumed.

    Args:
        arguments: of the command, `--devices` among them.
        told: gets a line now and then.

    Raises:
        InputError: for devices that are none, or a job that is in `out` already.
    """
    ids = ids_of(devices)
    environments = [_environment(at, ids) for at in range(len(ids))]
    there = Manifest.load(out) if out.is_dir() else None
    if there is not None and overwrite:
        with writing(out, alone=True):
            clear(out)
    elif there is not None and not resume:
        raise InputError(f"{out} holds a job already; resume=True goes on with it, overwrite=True begins anew")
    command = [sys.executable, "-c", "from archport.cli import main; main()", *_without(arguments), "--quiet"]
    # In sessions of their own, so that Ctrl-C reaches each once: the second one stops it at once.
    processes = [
        subprocess.Popen(command, env=environment, start_new_session=True, **_cores(at, len(ids)))
        for at, environment in enumerate(environments)
    ]
    before = signal.signal(signal.SIGTERM, _end)
    begin, said = time.monotonic(), time.monotonic()
    asked = False
    try:
        while any(process.poll() is None for process in processes):
            try:
                time.sleep(_PAUSE)
                if not quiet and time.monotonic() - said > _LINE:
                    said = time.monotonic()
                    found = opened(out)[1].recorded().values() if Manifest.load(out) else ()
                    rows, tokens = sum(each.count for each in found), sum(each.tokens for each in found)
                    told(
                        f"archport: {len(found)} parts of {rows:,} rows, {tokens:,} tokens, after {said - begin:.0f} s"
                    )
            except KeyboardInterrupt:
                asked = True
                _send(processes, signal.SIGINT)
    finally:
        _send(processes, signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
    if asked:
        return _INTERRUPTED
    codes = [process.returncode for process in processes]
    for id, code in zip(ids, codes, strict=True):
        if code not in (_DONE, _SOME_FAILED):
            told(f"archport: device {id} ended with {code}; resume the job to make its other parts")
    bad = [code for code in codes if code not in (_DONE, _SOME_FAILED)]
    return (bad[0] if bad[0] > 0 else _FAILED) if bad else max(codes)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _send(processes: Sequence[subprocess.Popen[Any]], number: int) -> None:
    """Send those that run a signal."""
    for process in processes:
        with suppress(ProcessLookupError):
            if process.poll() is None:
                process.send_signal(number)


def _without(arguments: Sequence[str]) -> list[str]:
    """The arguments but for those that are the parent's."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--devices":
            skip = True
        elif not argument.startswith("--devices=") and argument not in ("--overwrite", "--quiet"):
            kept.append(argument)
    return kept


def _environment(at: int, ids: Sequence[str]) -> dict[str, str]:
    """Of one process: its device is one of those that this process may see, as a cluster hands out some of a host."""
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    device = ids[at]
    if visible and device.isdecimal():
        if int(device) >= len(visible):
            raise InputError(
                f"devices names device {device}, and CUDA_VISIBLE_DEVICES={','.join(visible)} leaves {len(visible)}; "
                f"expected 0 to {len(visible) - 1}"
            )
        device = visible[int(device)]
    return {**os.environ, DEVICE: f"{at}/{len(ids)}", "CUDA_VISIBLE_DEVICES": device}


def _cores(at: int, count: int) -> dict[str, Any]:
    """A process without a GPU gets its own cores, or all would wait for each other."""
    if sys.platform != "linux" or Path("/dev/nvidiactl").exists() or cores() < count:
        return {}
    own = sorted(os.sched_getaffinity(0))[at::count]
    return {"preexec_fn": lambda: os.sched_setaffinity(0, own)}
