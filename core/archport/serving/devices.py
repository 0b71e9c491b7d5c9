"""A server on several devices: a process for each, all of which listen at one port, and what they tell each other.

The system hands a new connection to one of those that listen (SO_REUSEPORT), so a process that ends takes no port along
and the others go on. Nothing of a request is known here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from archport.contract import InputError
from archport.device.processes import environment_of, ids_of, place_of, send, started, without

# Tell a process which device of how many it is, and where they leave what they count.
DEVICE, FOLDER = "ARCHPORT_SERVE_DEVICE", "ARCHPORT_SERVE_FOLDER"
# Between two looks at the processes, and two writings of what one counts.
_PAUSE, EVERY = 0.2, 1.0


def run_on(devices: str, arguments: Sequence[str], host: str, port: int, told: Callable[[str], None]) -> int:
    """Run a command line of `archport serve` once for each device, until all have ended; returns the exit code.

    A process that ends is told of and not started again; the first signal is handed on to all.

    Args:
        arguments: of the command, `--devices` among them.
        told: gets a line for each process that ends by itself.

    Raises:
        InputError: for devices that are none, or on a system that spreads no connections.
    """
    if not hasattr(socket, "SO_REUSEPORT") or os.uname().sysname != "Linux":
        raise InputError(f"devices={devices!r}; only Linux spreads connections over processes: serve one device")
    ids = ids_of(devices)
    # Bound and not listening: it keeps the port, and gets no connection.
    try:
        holder = bound_socket(host, port, shared=True)
    except (OSError, OverflowError) as error:
        raise InputError(f"{port=} of {host=} can't be listened at ({error}); give another") from error
    with holder, tempfile.TemporaryDirectory(prefix="archport-serve-") as folder:
        kept = [*without(arguments, "--devices"), "--port", str(holder.getsockname()[1])]
        environments = [{**environment_of(at, ids, DEVICE), FOLDER: folder} for at in range(len(ids))]
        processes = started(kept, environments)
        asked = list[int]()

        def hand_on(number: int, frame: object) -> None:
            asked.append(number)
            send(processes, number)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
        running = dict(zip(ids, processes, strict=True))
        try:
            while running:
                time.sleep(_PAUSE)
                for id in [id for id, process in running.items() if process.poll() is not None]:
                    code = running.pop(id).returncode
                    (Path(folder) / f"{ids.index(id)}.json").unlink(missing_ok=True)
                    if not asked:
                        left = f"{len(running)} of {len(ids)} go on" if running else "none is left"
                        told(f"archport: the server of device {id} ended with {code}; {left}")
        finally:
            send(processes, signal.SIGTERM)
            for number, handler in before.items():
                signal.signal(number, handler)
    bad = [process.returncode for process in processes if process.returncode]
    return 0 if not bad or (asked and all(code < 0 for code in bad)) else 1


def bound_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket at an address.

    Args:
        shared: whether other processes of this server listen there, too.

    Raises:
        OSError, OverflowError: the address can't be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets that say they are TCP, and else answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


class Together(Collector):
    """What every device's process counts, each sample with its device, and which devices are there.

    Args:
        own: what this process counts.
        folder: where each leaves it.
        place: (index, number) of this process.
    """

    def __init__(self, own: CollectorRegistry, folder: Path, place: tuple[int, int]) -> None:
        self._own, self._folder, (self._index, self._count) = own, folder, place

    def leave(self) -> None:
        """Leave what this process counts for the others."""
        families = [
            [each.name, each.documentation, each.type, [[s.name, s.labels, s.value] for s in each.samples]]
            for each in self._own.collect()
        ]
        waiting = self._folder / f"{self._index}.part"
        waiting.write_text(json.dumps(families), encoding="utf-8")
        waiting.replace(self._folder / f"{self._index}.json")

    def collect(self) -> Iterator[Metric]:
        self.leave()
        up = Metric("archport_device_up", "Whether a device's process is there.", "gauge")
        found: dict[str, Metric] = {}
        for index in range(self._count):
            families: list[Any] | None = None
            with suppress(OSError, ValueError):
                families = json.loads((self._folder / f"{index}.json").read_text(encoding="utf-8"))
            up.add_sample("archport_device_up", {"device": str(index)}, float(families is not None))
            for name, what, kind, samples in families or ():
                family = found.setdefault(name, Metric(name, what, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, "device": str(index)}, value)
        yield up
        yield from found.values()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


def together(own: CollectorRegistry) -> Together | None:
    """What all devices count; None in a server of one process."""
    folder = os.environ.get(FOLDER)
    return None if folder is None else Together(own, Path(folder), place_of(DEVICE))
