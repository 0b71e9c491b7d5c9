"""A process that runs cases one after another, and says of each what became of it, in what time and memory."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import resource
import sys
import time
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Bytes and seconds beyond an intact load that a case may take.
MOST_BYTES, MOST_SECONDS = 500_000_000, 2.0
# A GPU's kernels are compiled when they are first met, in the case that meets them.
COMPILING = 3.0


def highest(*, anew: bool = False) -> int:
    """The most bytes that this process ever held, or on Linux held since the last call with `anew`."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as lines:
            found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        if anew:
            with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(connection: Connection, bases: str, place: str, quiet: bool = True) -> None:
    """Answer cases from a connection with (outcome, CPU seconds, bytes beyond an intact load), until it closes."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "RUST_BACKTRACE": "0", "HF_HOME": f"{place}/hub", "NO_COLOR": "1"}
    if quiet:
        # Panics of the tokenizers library print where they are.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from fuzz.cases import BASES, Seen, judged, load, use
    from fuzz.kinds import kinds

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    known, seen, slowest = kinds(), Seen(), 0.0
    for name in BASES:
        start = time.process_time()
        use(load(Path(bases) / name, seen), seen)
        slowest = max(slowest, time.process_time() - start)
    # The first load imports what all of them use.
    intact, number = highest(), 0
    # What is imported stays, and need not be looked through.
    gc.collect()
    gc.freeze()
    connection.send("ready")
    while True:
        try:
            kind, case = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        number += 1
        if number % 8 == 0:
            gc.collect()
        highest(anew=True)
        before, start = max(intact, highest()), time.process_time()
        outcome = judged(known[kind], case, Path(bases), Path(place) / f"{os.getpid()}-{number}", seen)
        seconds = time.process_time() - start
        answer: tuple[Any, float, int] = (outcome, seconds, highest() - before)
        connection.send(answer)
