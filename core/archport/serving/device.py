"""The one thread that owns the device, and what it runs next. Everything that MLX does in a server, it does here.

Two kinds of work share it: windows of rows, and generation step by step. Neither starves the other: each has a share of
the time while both want it. Whoever waits is answered whatever happens: when the thread dies, everything that waits is
refused, and another thread takes over until that has happened too often. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np

from archport.contract import AdmissionRefused, NonFiniteOutput
from archport.serving.errors import Refused, unavailable
from archport.serving.scheduler import Scheduler, Window

T = TypeVar("T")

log = logging.getLogger("archport.serving")

# After the last token of a text, for so long windows are as short as beside one.
TALKING_SECONDS = 2.0
# Windows below so many tokens waste the rows' share on what every window costs, as much as some 50 tokens on a CPU. So
# beside texts that are generated they are as large, where that is not too long for one token to wait.
WORTHWHILE_TOKENS, WORTHWHILE_SECONDS = 256, 0.1
# Time that generation may have beyond its share while somebody waits for a first token, which takes a few steps.
CREDIT_SECONDS = 0.25


class Steps(Protocol):
    """Generation, as far as the thread drives it."""

    @property
    def ready(self) -> bool:
        """Whether there is anything to do."""
        ...

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for a first token."""
        ...

    @property
    def reserved(self) -> int:
        """Bytes that running rows have reserved."""
        ...

    def step(self) -> None:
        """Do a little: a chunk of a prompt, or a token of every row. Whoever waits hears of errors here."""
        ...

    def close_all(self, error: Refused) -> int:
        """Answer everybody who waits with an error; returns how many."""
        ...


class Shares:
    """Whose turn it is, by the time that each kind of work had.

    Args:
        chat: share of the time that generation has while rows wait too.
    """

    def __init__(self, chat: float) -> None:
        self._weights = {"chat": chat, "rows": 1 - chat}
        self._used = {"chat": 0.0, "rows": 0.0}
        self._idle = {"chat": True, "rows": True}

    def turn(self, chat: bool, rows: bool, awaited: bool = False) -> str | None:
        """`chat` or `rows`; None when neither has anything to do.

        Args:
            awaited: whether somebody waits for a first token, for which chat has credit.
        """
        for kind, wants in (("chat", chat), ("rows", rows)):
            other = "rows" if kind == "chat" else "chat"
            if wants and self._idle[kind]:
                # Time in which it wanted nothing is not owed to it.
                self._used[kind] = max(self._used[kind], self._used[other])
            self._idle[kind] = not wants
        if not chat or not rows:
            return "chat" if chat else "rows" if rows else None
        credit = CREDIT_SECONDS / self._weights["chat"] if awaited else 0.0
        return "chat" if self._used["chat"] - credit <= self._used["rows"] else "rows"

    def spent(self, kind: str, seconds: float) -> None:
        """Note time that a kind of work had."""
        self._used[kind] += seconds / self._weights[kind]


class Device:
    """The thread, what waits for it, and what happens when it dies.

    Args:
        scheduler: of rows.
        chat_share: of the time, while rows wait too.
        most_tokens: tokens that one window may have.
        window_seconds, shared_seconds: about how long one window may take, alone and while texts are generated.
        most_deaths: after so many the process is to end.

    Attributes:
        deaths: how often the thread died.
        busy_since: `time.monotonic` of when the step under way began; None while nothing runs.
        steps: kinds of generation that share the thread.
        observed: told (kind, rows, tokens, seconds) of everything that ran.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        chat_share: float = 0.7,
        most_tokens: int = 16_384,
        window_seconds: float = 0.5,
        shared_seconds: float = 0.03,
        most_deaths: int = 3,
    ) -> None:
        self.scheduler, self.most_deaths = scheduler, most_deaths
        self._most_tokens, self._seconds, self._shared_seconds = most_tokens, window_seconds, shared_seconds
        self._shares = Shares(chat_share)
        self._wake = threading.Event()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._talked = float("-inf")
        self.steps: list[Steps] = []
        self.deaths = 0
        self.busy_since: float | None = None
        self.observed: Callable[[str, int, int, float], None] = lambda kind, rows, tokens, seconds: None
        self.died: Callable[[BaseException], None] = lambda error: None

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and may go on living."""
        return self.alive and self.deaths <= self.most_deaths

    @property
    def reserved(self) -> int:
        """Bytes that running generations have reserved."""
        return sum(each.reserved for each in self.steps)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="archport-device", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the thread look for something to do."""
        self._wake.set()

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread after the step under way."""
        self._stopping = True
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the thread, before whatever else waits: loading a model, or a call of its own."""
        future: Future[T] = Future()
        if self._stopping or self.deaths > self.most_deaths:
            future.set_exception(unavailable("engine_unhealthy", "The device's thread has ended."))
            return future
        self._calls.append((function, future))
        self.wake()
        return future

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                if not self.turn():
                    self._wake.wait(1.0)
        except BaseException as error:
            self._died(error)
        finally:
            self.busy_since = None

    def _died(self, error: BaseException) -> None:
        """Answer everybody who waits, and start another thread unless this happened too often."""
        self.deaths += 1
        log.error("the device's thread died (%d of %d)", self.deaths, self.most_deaths, exc_info=error)
        fault = unavailable("engine_unhealthy", "The engine failed and starts again; please try again.")
        self._refuse(fault)
        self.died(error)
        if self.deaths <= self.most_deaths and not self._stopping:
            self.start()
            # What came in between.
            self.wake()

    def _refuse(self, fault: Refused) -> None:
        while self._calls:
            _, future = self._calls.popleft()
            if not future.done():
                future.set_exception(fault)
        self.scheduler.close_all(fault)
        for each in self.steps:
            each.close_all(fault)

    def refuse_all(self, fault: Refused) -> None:
        """Answer everybody who waits with an error."""
        self.scheduler.close_all(fault)

        def close() -> None:
            for each in self.steps:
                each.close_all(fault)

        # Generations are the thread's own, as long as there is one.
        if self.alive:
            self.call(close)
        else:
            close()

    def turn(self) -> bool:
        """Run what is next; False when there is nothing."""
        if self._calls:
            self._call(*self._calls.popleft())
            return True
        talking = [each for each in self.steps if each.ready]
        awaited = any(each.awaited for each in talking)
        kind = self._shares.turn(bool(talking), self.scheduler.ready, awaited)
        if kind is None:
            return False
        begin = self.busy_since = time.monotonic()
        try:
            if kind == "chat":
                self._talked = begin
                # Models take turns.
                self.steps.remove(talking[0])
                self.steps.append(talking[0])
                before = self.reserved
                talking[0].step()
                if self.reserved < before:
                    self.scheduler.resume()
            else:
                window = self.scheduler.take(self._tokens(bool(talking), begin))
                if window is not None:
                    self._window(window)
        finally:
            took = time.monotonic() - begin
            self._shares.spent(kind, took)
            self.busy_since = None
        return True

    def _tokens(self, talking: bool, now: float) -> int:
        """Tokens of the next window: a little of the time of those who wait for tokens, or much of nobody's."""
        rate = self.scheduler.rate
        if not talking and now - self._talked >= TALKING_SECONDS:
            return int(min(self._most_tokens, max(256, rate * self._seconds)))
        # Who talked a moment ago asks again, and does not wait for a long window then.
        tokens = max(64, rate * self._shared_seconds)
        if talking:
            tokens = max(tokens, min(WORTHWHILE_TOKENS, rate * WORTHWHILE_SECONDS))
        return int(min(self._most_tokens, tokens))

    def _call(self, function: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self.busy_since = time.monotonic()
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(unavailable("engine_unhealthy", "The engine failed; please try again."))
            raise error
        finally:
            self.busy_since = None

    def _window(self, window: Window) -> None:
        """Run a window; where it fails, its rows one by one, so that only the culprit's caller hears of it."""
        begin = time.monotonic()
        done = [False] * len(window.entries)
        try:
            self._together(window, done)
        except AdmissionRefused:
            if self.reserved:
                # What generation has reserved comes back: the rows wait for that.
                self._later(window, done)
                return
            self._apart(window, done)
        except Exception as error:
            log.warning("a window of %d rows failed and is tried row by row", len(window.entries), exc_info=error)
            self._apart(window, done)
        took = time.monotonic() - begin
        self.scheduler.note(window.tokens, took)
        self.observed("rows", len(window.entries), window.tokens, took)

    def _later(self, window: Window, done: list[bool]) -> None:
        left = [entry for entry, ready in zip(window.entries, done, strict=True) if not ready]
        self.scheduler.give_back(Window(window.form, window.work, left), hold=True)

    def _together(self, window: Window, done: list[bool]) -> None:
        def take(index: int, result: np.ndarray) -> None:
            job, row = window.entries[index]
            done[index] = True
            if np.isfinite(result).all():
                self.scheduler.answer(job, row, np.array(result, np.float32))
            else:
                self.scheduler.close(job, _not_finite(row))

        window.work.run(window.rows, take)

    def _apart(self, window: Window, done: list[bool]) -> None:
        """Run the rows that have no result one by one, each once."""
        for index, (job, row) in enumerate(window.entries):
            if done[index] or not job.open:
                continue
            try:
                self._together(Window(window.form, window.work, [(job, row)]), [False])
            except Exception as error:
                log.warning("a row of %d tokens failed", job.rows[row].tokens, exc_info=error)
                self.scheduler.close(job, _of_row(error, row))


def _of_row(error: Exception, row: int) -> Exception:
    """The error of a row that ran alone, under the number that it has in its request, without its frames."""
    error.__traceback__ = None
    if error.args and isinstance(error.args[0], str):
        for word in ("text", "document"):
            prefix = f"{word} 0"
            if error.args[0].startswith(prefix):
                error.args = (f"{word} {row}{error.args[0][len(prefix) :]}", *error.args[1:])
    return error


def _not_finite(row: int) -> NonFiniteOutput:
    return NonFiniteOutput(
        f"the result of input {row} holds NaN or infinity and is not returned. The weights may be damaged, or overflow "
        "in this dtype: start the server with --dtype float32"
    )
