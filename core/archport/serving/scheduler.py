"""Which rows of which callers run next. Knows rows, callers and time; nothing of HTTP, of models or of the device.

Rows of equal form share a window, whoever asked. Callers take turns, so that one with thousands of rows does not keep
a single one waiting; each caller's rows come sorted by length. Whatever happens, a job is answered exactly once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from archport.serving.errors import Refused, overloaded, timed_out


class Sized(Protocol):
    """A row: how many tokens it is."""

    @property
    def tokens(self) -> int: ...


@dataclass(slots=True, eq=False)
class Job:
    """Rows that one caller waits for.

    Args:
        form: rows of equal forms may run together.
        work: what runs them, handed on as it is.
        rows: in the caller's order.
        deadline: of `time.monotonic`.
        answered: called once, by any thread, when `results` are whole or `error` says why not.

    Attributes:
        started, ended: when its first row ran, and when it was answered; None before that.
    """

    form: Hashable
    work: Any
    rows: Sequence[Sized]
    deadline: float
    answered: Callable[[Job], None]
    results: list[Any] = field(default_factory=list[Any])
    error: BaseException | None = None
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    tokens: int = 0
    waiting: deque[int] = field(default_factory=deque[int])
    left: int = 0

    def __post_init__(self) -> None:
        self.results = [None] * len(self.rows)
        self.left = len(self.rows)
        self.tokens = sum(row.tokens for row in self.rows)
        self.waiting = deque(sorted(range(len(self.rows)), key=lambda row: self.rows[row].tokens))

    @property
    def open(self) -> bool:
        return self.ended is None


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that run together: each a job and the index of its row."""

    form: Hashable
    work: Any
    entries: list[tuple[Job, int]]

    @property
    def rows(self) -> list[Any]:
        return [job.rows[row] for job, row in self.entries]

    @property
    def tokens(self) -> int:
        return sum(job.rows[row].tokens for job, row in self.entries)


@dataclass(slots=True, eq=False)
class Ticket:
    """Room in the queue that a request has before its rows are known."""

    tokens: int
    open: bool = True


class Scheduler:
    """The queue of all jobs; used by any thread.

    Args:
        most_tokens, most_jobs: what may wait; beyond it requests are refused.
        changed: called when there is something to run.
    """

    def __init__(self, most_tokens: int, most_jobs: int, changed: Callable[[], None] = lambda: None) -> None:
        self.most_tokens, self.most_jobs, self.changed = most_tokens, most_jobs, changed
        self._lock = threading.Lock()
        # Jobs with waiting rows, by form, in the order of their turns; and all jobs that are not answered.
        self._turns: dict[Hashable, deque[Job]] = {}
        self._forms: deque[Hashable] = deque()
        self._open: set[Job] = set()
        self._tickets: set[Ticket] = set()
        self._tokens = 0
        self._held: set[Hashable] = set()
        # Tokens a second, as measured.
        self.rate = 1000.0

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait or run, and those that tickets stand for."""
        return self._tokens

    @property
    def jobs(self) -> int:
        """Jobs that are not answered."""
        return len(self._open)

    @property
    def ready(self) -> bool:
        """Whether there are rows to run."""
        return any(form not in self._held for form in self._forms)

    def admit(self, tokens: int) -> Ticket:
        """Room for a request of at most about so many tokens, before anybody reads its texts.

        A request larger than the queue enters when nothing waits.

        Raises:
            Refused: the queue has no room now.
        """
        with self._lock:
            waits = len(self._open) + len(self._tickets)
            if waits and (self._tokens + tokens > self.most_tokens or waits >= self.most_jobs):
                # What is over the bound has to run first.
                over = max(self._tokens + min(tokens, self.most_tokens) - self.most_tokens, self._tokens // 8)
                raise overloaded(min(over / max(self.rate, 1), 120))
            ticket = Ticket(tokens)
            self._tickets.add(ticket)
            self._tokens += tokens
            return ticket

    def release(self, ticket: Ticket) -> None:
        """Give room back; more than once does nothing."""
        with self._lock:
            self._release(ticket)

    def _release(self, ticket: Ticket) -> None:
        if ticket.open:
            ticket.open = False
            self._tickets.discard(ticket)
            self._tokens -= ticket.tokens

    def submit(self, job: Job, ticket: Ticket | None = None) -> None:
        """Have a job run; the ticket's room becomes the job's own."""
        if not job.rows:
            job.submitted = job.started = job.ended = time.monotonic()
            if ticket is not None:
                self.release(ticket)
            job.answered(job)
            return
        with self._lock:
            job.submitted = time.monotonic()
            if ticket is not None:
                self._release(ticket)
            self._tokens += job.tokens
            self._open.add(job)
            turns = self._turns.get(job.form)
            if turns is None:
                turns = self._turns[job.form] = deque()
                self._forms.append(job.form)
            turns.append(job)
        self.changed()

    def take(self, tokens: int, now: float | None = None) -> Window | None:
        """The next rows to run, of one form: about so many tokens, at least one row.

        Forms take turns, and so do the jobs of a form: each gives rows worth an equal share before any gives more.
        """
        now = time.monotonic() if now is None else now
        expired: list[Job] = []
        try:
            with self._lock:
                for _ in range(len(self._forms)):
                    form = self._forms[0]
                    self._forms.rotate(-1)
                    if form in self._held:
                        continue
                    entries = self._taken(self._turns[form], tokens, now, expired)
                    if not self._turns[form]:
                        del self._turns[form]
                        self._forms.remove(form)
                    if entries:
                        for job, _ in entries:
                            if job.started is None:
                                job.started = now
                        return Window(form, entries[0][0].work, entries)
            return None
        finally:
            for job in expired:
                self.close(job, timed_out(max(0.0, job.deadline - job.submitted)))

    def _taken(self, turns: deque[Job], tokens: int, now: float, expired: list[Job]) -> list[tuple[Job, int]]:
        entries: list[tuple[Job, int]] = []
        left = tokens
        while turns and (left > 0 or not entries):
            share = max(1, left // len(turns))
            for _ in range(len(turns)):
                job = turns.popleft()
                if not job.open:
                    continue
                if job.deadline <= now:
                    expired.append(job)
                    continue
                given = 0
                while job.waiting and given < share:
                    size = job.rows[job.waiting[0]].tokens
                    if entries and size > left:
                        break
                    entries.append((job, job.waiting.popleft()))
                    given += size
                    left -= size
                if job.waiting:
                    turns.append(job)
                if left <= 0:
                    break
            else:
                # No job's next row fits into what is left.
                if all(job.rows[job.waiting[0]].tokens > left for job in turns if job.waiting):
                    break
        return entries

    def give_back(self, window: Window, *, hold: bool = False) -> None:
        """Have rows run later that did not run; `hold` keeps their form back until `resume`."""
        with self._lock:
            turns = self._turns.get(window.form)
            if turns is None:
                turns = self._turns[window.form] = deque()
                self._forms.append(window.form)
            for job, row in reversed(window.entries):
                if not job.open:
                    continue
                job.waiting.appendleft(row)
                if job not in turns:
                    turns.appendleft(job)
            if hold:
                self._held.add(window.form)

    def resume(self) -> None:
        """Let forms that were kept back run again."""
        with self._lock:
            self._held.clear()

    def answer(self, job: Job, row: int, result: Any) -> None:
        """The result of one row; the last one answers its job."""
        with self._lock:
            if not job.open:
                return
            job.results[row] = result
            job.left -= 1
            if job.left:
                return
            self._end(job)
        job.answered(job)

    def close(self, job: Job, error: BaseException) -> bool:
        """Answer a job with an error, and drop what of it still waits; False where it was answered before."""
        with self._lock:
            if not job.open:
                return False
            job.error = error
            self._end(job)
            job.waiting.clear()
        job.answered(job)
        return True

    def _end(self, job: Job) -> None:
        job.ended = time.monotonic()
        self._open.discard(job)
        self._tokens -= job.tokens

    def close_all(self, error: Refused) -> int:
        """Answer every open job with an error; returns how many."""
        with self._lock:
            jobs = list(self._open)
        return sum(self.close(job, error) for job in jobs)

    def note(self, tokens: int, seconds: float) -> None:
        """So many tokens took so long."""
        if seconds > 0:
            self.rate += 0.3 * (tokens / seconds - self.rate)
