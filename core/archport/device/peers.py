"""Watches the other processes of a group, so that one which ends or fails leaves no other waiting for it for ever.

A collective can't be interrupted: NCCL waits for a lost process as long as the device has power. So every process keeps
a connection to the first one, and a process that waits inside a call for one that is gone ends, and says why.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from archport.contract.errors import ArchportError, DeviceFailure
from archport.contract.split import Rank

# What is left to do after the last collective of a call takes less.
GRACE = 20.0
# The exit status of a process that gave up waiting (EX_TEMPFAIL).
STATUS = 75
_HOST, _CONNECT, _PAUSE = "127.0.0.1", 60.0, 0.25


class Peers:
    """The other processes of a group.

    Args:
        rank: of this process.
        everyone: gives every process's bytes to all, in the order of the ranks.
    """

    def __init__(self, rank: Rank, everyone: Callable[[bytes], list[list[int]]]) -> None:
        self._rank, self._gone, self._lock = rank, "", threading.Lock()
        self._calls = 0
        self._links: list[socket.socket] = []
        listener = socket.create_server((_HOST, 0)) if rank.number == 0 else None
        port = 0 if listener is None else listener.getsockname()[1]
        port = int.from_bytes(everyone(port.to_bytes(4, "little"))[0], "little")
        try:
            if listener is not None:
                listener.settimeout(_CONNECT)
                with listener:
                    self._links = [listener.accept()[0] for _ in range(rank.count - 1)]
            else:
                self._links = [socket.create_connection((_HOST, port), timeout=_CONNECT)]
        except OSError as error:
            raise ArchportError(
                f"tensor_parallel: the processes can't reach each other at {_HOST}:{port} ({error}); they have to run "
                "on one host"
            ) from error
        for link in self._links:
            link.settimeout(None)
            threading.Thread(target=self._listen, args=(link,), name="archport-peers", daemon=True).start()
        threading.Thread(target=self._watch, name="archport-peers", daemon=True).start()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Run a call that may wait for the others; one that fails here alone is told to them.

        Raises:
            ArchportError: another process has failed or ended, so that this one would wait for ever.
        """
        if self._gone:
            raise ArchportError(f"tensor_parallel: {self._gone}; start the group's processes again")
        with self._lock:
            self._calls += 1
        try:
            yield
        except BaseException as error:
            # What archport refuses, it refuses on every rank; anything else may be this rank's alone.
            alike = isinstance(error, ArchportError | GeneratorExit | StopIteration)
            if not alike or isinstance(error, DeviceFailure):
                self.fail(f"rank {self._rank.number} failed ({type(error).__name__}: {error})")
            raise
        finally:
            with self._lock:
                self._calls -= 1

    def fail(self, why: str) -> None:
        """Tell the others that this process can't go on with what they do together."""
        self._gone = self._gone or why
        for link in self._links:
            with suppress(OSError):
                link.sendall(why.encode()[:1000] + b"\n")

    def _listen(self, link: socket.socket) -> None:
        heard = b""
        try:
            while not heard.endswith(b"\n"):
                piece = link.recv(1024)
                if not piece:
                    break
                heard += piece
        except OSError:
            pass
        why = heard.decode(errors="replace").strip() or "another process of the group has ended"
        if self._rank.number == 0 and not self._gone:
            self._gone = why
            self.fail(why)
        self._gone = self._gone or why

    def _watch(self) -> None:
        waited = 0.0
        while waited < GRACE:
            time.sleep(_PAUSE)
            waited = waited + _PAUSE if self._gone and self._calls else 0.0
        sys.stderr.write(
            f"archport: rank {self._rank.number} ends after waiting {GRACE:.0f} s for the others: {self._gone}\n"
        )
        sys.stderr.flush()
        os._exit(STATUS)
