"""One client's connection: closed where its head does not come, and where nobody reads what was written to it.

uvicorn's own protocol bounds neither. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's protocol with two more limits of time.

    Attributes:
        head_seconds: until the head of a request is whole, from when the connection waits for one.
        stalled_seconds: without room for more, after which what was written is thrown away.
    """

    head_seconds, stalled_seconds = 60.0, 60.0
    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._head, self._stalled = _cancelled(self._head), _cancelled(self._stalled)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        _cancelled(self._stalled)
        # A close would wait until the client has read everything.
        self._stalled = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._stalled = _cancelled(self._stalled)
        super().resume_writing()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the system has not taken yet."""
        return self.transport.get_write_buffer_size()

    def _await_head(self) -> None:
        """Count the time of a head that is not whole; between two requests uvicorn's keep-alive counts instead."""
        idle = self.conn.their_state is h11.IDLE
        if idle and (self.cycle is None or self._begun):
            if self._head is None:
                self._head = self.loop.call_later(self.head_seconds, self.transport.abort)
        else:
            self._head = _cancelled(self._head)

    @property
    def _begun(self) -> bool:
        """Whether a head has begun to come."""
        return bool(self.conn.trailing_data[0])


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def connection(head_seconds: float, stalled_seconds: float) -> type[Connection]:
    """The class of connections with these limits, which uvicorn makes one of for each client."""
    limits: dict[str, Any] = {"head_seconds": head_seconds, "stalled_seconds": stalled_seconds}
    return type("Connection", (Connection,), limits)
