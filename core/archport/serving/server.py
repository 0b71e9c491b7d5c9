"""A server from its start to its end: a socket, models loaded on the device's thread, requests, and an orderly end.

At the first signal readiness goes off and new requests are refused while those under way are answered; at the second
the process ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn

from archport.contract import InputError
from archport.contract.sizes import parse_bytes
from archport.device.facts import this_device
from archport.device.workers import cores
from archport.serving.app import App, State
from archport.serving.connections import Connection, connection
from archport.serving.devices import EVERY, bound_socket
from archport.serving.dialects import openai
from archport.serving.endpoints import ENDPOINTS
from archport.serving.errors import unavailable
from archport.serving.models import Registry, Served
from archport.serving.settings import Settings
from archport.serving.shelf import Shelf, Wanted

log = logging.getLogger("archport.serving")

# Connections beyond those that the queue holds: they get their 429.
BACKLOG = 2048


def wanted(model: str, options: Mapping[str, Any]) -> Wanted:
    """What `-m` names: `NAME`, or `ID=NAME`."""
    id, separator, name = model.partition("=")
    if not separator or os.path.exists(model):
        return Wanted(model, None, options)
    if not id or not name:
        raise InputError(f"model={model!r}; expected NAME, or ID=NAME")
    return Wanted(name, id, options)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its handlers of signals, which close the socket first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """A server of some models.

    Args:
        models: in the order in which they are loaded; the first is the one of interfaces that name none.
        memory_budget: bytes that all of them may use together; the device's default when left out.
        started: called once everything is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Wanted],
        *,
        memory_budget: int | str | None = None,
        started: Callable[[Server], None] = lambda server: None,
    ) -> None:
        self.settings, self.models, self._started = settings, models, started
        self.budget = (
            this_device().default_budget if memory_budget is None else parse_bytes(memory_budget, what="memory_budget")
        )
        self.registry = Registry()
        self.state = State(settings, self.registry, max(2, cores() // 2))
        self.state.budget = self.budget
        self.shelf = Shelf(self.state, models, self.budget, warm)
        self.app = App(self.state, ENDPOINTS, openai.shape)
        self.failure: BaseException | None = None
        self._signals = 0
        self._ending: asyncio.Future[None] | None = None
        self._server: _Uvicorn | None = None
        self.port = settings.port

    def run(self) -> int:
        """Serve until a signal comes; returns the process's exit code.

        Raises:
            InputError: the address can't be listened at.
            ArchportError: a model can't be loaded.
        """
        listener = self._listen()
        self.port = listener.getsockname()[1]
        limits = self.settings.limits
        config = uvicorn.Config(
            self.app, http=connection(limits.header_seconds, limits.stalled_seconds), log_config=None,
            access_log=False, lifespan="off", backlog=BACKLOG, timeout_keep_alive=75, server_header=False,
            date_header=False, proxy_headers=False, h11_max_incomplete_event_size=64 << 10,
        )  # fmt: skip
        self._server = _Uvicorn(config)
        self.state.loading = True
        self.state.device.died = self._died
        self.state.device.start()
        try:
            asyncio.run(self._serve(listener))
        finally:
            self.state.device.stop()
            self.state.frontiers.close()
            self.state.answers.close()
            listener.close()
            # What loading had the collector pass over.
            gc.unfreeze()
        if self.failure is not None:
            raise self.failure
        return 1 if self.state.device.deaths > self.settings.most_deaths else 0

    def _listen(self) -> socket.socket:
        try:
            listener = bound_socket(self.settings.host, self.settings.port, shared=self.state.together is not None)
            listener.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port={self.settings.port} of host={self.settings.host!r} can't be listened at ({error}); give another"
            ) from error
        return listener

    async def _serve(self, listener: socket.socket) -> None:
        assert self._server is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, self._signal)
        tasks = [asyncio.ensure_future(self._load()), asyncio.ensure_future(self._leave())]
        await self._server.serve(sockets=[listener])
        for task in tasks:
            task.cancel()

    async def _leave(self) -> None:
        """Leave what is counted for the processes of other devices, again and again."""
        together = self.state.together
        while together is not None:
            await asyncio.to_thread(together.leave)
            await asyncio.sleep(EVERY)

    def _signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(1)
        self._ending = asyncio.ensure_future(self.drain())

    async def drain(self) -> None:
        """Refuse new requests, answer those under way, and end."""
        self.state.draining = True
        for scope in tuple(self.state.reading):
            # Who has not sent all of it is refused now, unless its time is over anyway.
            if not scope.expired():
                scope.reschedule(0)
        until = time.monotonic() + self.settings.drain_seconds
        while (self.state.active or self._unsent()) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.state.device.refuse_all(unavailable("shutting_down", "The server ended before this was done."))
        for _ in range(50):
            if not self.state.active:
                break
            await asyncio.sleep(0.02)
        assert self._server is not None
        self._server.should_exit = True
        # Connections that are kept alive hold nothing up.
        self._server.force_exit = True

    def _unsent(self) -> int:
        """Bytes of answers that their clients have not read: what is kept of them ends with the process."""
        assert self._server is not None
        return sum(each.unsent for each in self._server.server_state.connections if isinstance(each, Connection))

    def _died(self, error: BaseException) -> None:
        if self.state.device.deaths > self.settings.most_deaths and self._server is not None:
            self._server.should_exit = True

    async def _load(self) -> None:
        try:
            if not self.settings.on_demand:
                await self.shelf.load_all()
            if self.settings.on_demand or self.settings.idle_seconds is not None:
                self.state.shelf = self.shelf
            self.state.loading = False
            self._started(self)
            if self.settings.idle_seconds is not None:
                await self.shelf.unload_idle(self.settings.idle_seconds)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
            assert self._server is not None
            self._server.should_exit = True


def warm(served: Served) -> None:
    """Run one text, so that the first request does not wait for what is made once."""
    capabilities = served.capabilities
    with contextlib.suppress(Exception):
        if "embed" in capabilities:
            served.model.embed(["warm"])
        elif "classify" in capabilities:
            served.model.classify(["warm"])
        elif "rerank" in capabilities:
            served.model.rerank("warm", ["warm"])
        if "generate" in capabilities:
            served.model.generate("warm", max_tokens=2)


def set_up_logs(level: int = logging.INFO, stream: Any = None) -> None:
    """Lines on standard error: the access log as it is, others with their level."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter())
    for name in ("archport", "archport.access"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not logger.handlers:
            logger.addHandler(handler)
        logger.propagate = False


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == "archport.access":
            return record.getMessage()
        return f"archport: {record.levelname.lower()}: {super().format(record)}"
