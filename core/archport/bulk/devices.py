"""One process for each device of this machine, each making its own parts of one job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from archport.bulk.manifest import Manifest
from archport.bulk.stores import clear, opened, writing
from archport.contract import InputError
from archport.device.processes import environment_of, ids_of, place_of, send, started, without

# Tells a process which device of how many it is.
DEVICE = "ARCHPORT_BATCH_DEVICE"
_PAUSE, _LINE = 0.2, 30.0
_DONE, _FAILED, _SOME_FAILED, _INTERRUPTED = 0, 1, 3, 130


def this_one() -> tuple[int, int]:
    """(index, number) of this process among those of `run_on`; (0, 1) for any other."""
    return place_of(DEVICE)


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
    environments = [environment_of(at, ids, DEVICE) for at in range(len(ids))]
    there = Manifest.load(out) if out.is_dir() else None
    if there is not None and overwrite:
        with writing(out, alone=True):
            clear(out)
    elif there is not None and not resume:
        raise InputError(f"{out} holds a job already; resume=True goes on with it, overwrite=True begins anew")
    kept = without(arguments, "--devices", ("--overwrite", "--quiet"))
    processes = started([*kept, "--quiet"], environments)
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
                send(processes, signal.SIGINT)
    finally:
        send(processes, signal.SIGTERM)
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
