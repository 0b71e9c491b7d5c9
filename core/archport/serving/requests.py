"""A request's way through the server: read on a thread of the host, queued, run, and waited for within its time.

Knows nothing of what is read or run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from archport.answering.callers import Row
from archport.contract import InputError
from archport.serving.device import Device
from archport.serving.errors import Refused, fault_of, refused, timed_out
from archport.serving.models import Served
from archport.serving.scheduler import Job, Scheduler
from archport.serving.settings import Limits

T = TypeVar("T")
# Characters that are read in the event loop itself, which costs less than waking a thread.
INLINE = 4000


@dataclass(slots=True)
class Timing:
    """Where the time of a request went, in seconds, and the tokens that were computed for it."""

    begun: float = field(default_factory=time.monotonic)
    reading: float = 0.0
    queue: float = 0.0
    device: float = 0.0
    tokens: int = 0
    truncated: list[int] = field(default_factory=list[int])
    prompt: str | None = None
    model: str | None = None
    # Until the first token of a generation.
    first: float | None = None


class Requests:
    """What all operations of a server are made of.

    Args:
        scheduler, device: what runs rows.
        limits: what a request may ask for.
        threads: that read texts.
    """

    def __init__(self, scheduler: Scheduler, device: Device, limits: Limits, threads: int = 2) -> None:
        self.scheduler, self.device, self.limits = scheduler, device, limits
        self._threads = ThreadPoolExecutor(threads, "archport-read")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, function: Callable[[], T], timing: Timing) -> T:
        """Run a function on the device's thread; raises 504 where that takes too long."""
        begin = time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.device.call(function)), self.limits.seconds)
        except TimeoutError:
            raise timed_out(self.limits.seconds) from None
        finally:
            timing.device += time.monotonic() - begin

    async def host(self, function: Callable[[], T], characters: int = INLINE) -> T:
        """Run a function that only reads, here or on a thread of the host."""
        if characters < INLINE:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def rows(
        self,
        served: Served,
        items: Sequence[Any],
        read: Callable[[], list[Row]],
        timing: Timing,
        param: str,
        *,
        pack: bool = False,
    ) -> list[Row]:
        """Rows of what a request holds, within its limits."""
        begin = time.monotonic()

        def checked() -> list[Row]:
            found = read()
            if found:
                served.check_fits(max(row.tokens for row in found), pack=pack)
            return found

        try:
            with self.admitted(items, param) as characters:
                rows = await self.host(checked, characters)
        except Refused:
            raise
        except Exception as error:
            raise of_input(error, param, items, served) from error
        finally:
            timing.reading += time.monotonic() - begin
        total = sum(row.tokens for row in rows)
        self.check_tokens(total, param)
        timing.tokens += total
        timing.model = served.id
        timing.truncated += [index for index, row in enumerate(rows) if row.truncated]
        return rows

    @contextmanager
    def admitted(self, items: Sequence[Any], param: str) -> Generator[int]:
        """Room in the queue inside this block, for about as many tokens as the items have; gives their characters.

        A cheap bound comes first, so that a full queue answers before anybody reads.

        Raises:
            Refused: too many of either, or the queue is full.
        """
        characters = self.check_size(items, param)
        ticket = self.scheduler.admit(characters // 4 + len(items))
        try:
            yield characters
        finally:
            self.scheduler.release(ticket)

    def check_tokens(self, total: int, param: str) -> None:
        """Refuse more tokens than a request may hold."""
        if total > self.limits.tokens:
            raise refused(
                f"{param} holds {total:,} tokens; a request may hold {self.limits.tokens:,}. Send it in several.",
                "request_too_large", param, 413, requested_tokens=total, limit_tokens=self.limits.tokens,
            )  # fmt: skip

    def check_size(self, items: Sequence[Any], param: str) -> int:
        """Characters of a request's items; refuses too many of either."""
        if len(items) > self.limits.inputs:
            raise refused(
                f"{param} has {len(items):,} entries; a request may have {self.limits.inputs:,}.",
                "request_too_large", param, 413, requested_inputs=len(items), limit_inputs=self.limits.inputs,
            )  # fmt: skip
        characters = sum(_characters(item) for item in items)
        if characters > self.limits.characters:
            raise refused(
                f"{param} has {characters:,} characters; a request may have {self.limits.characters:,}.",
                "request_too_large", param, 413, requested_characters=characters,
                limit_characters=self.limits.characters,
            )  # fmt: skip
        return characters

    async def run(self, form: tuple[object, ...], work: Any, rows: list[Row], timing: Timing) -> Job:
        """Have rows run, and wait for them."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not future.done():
                future.set_result(None)

        def answered(_: Job) -> None:
            # Once the server has ended, its loop takes nothing any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        left = self.limits.seconds - (time.monotonic() - timing.begun)
        job = Job(form, work, rows, time.monotonic() + left, answered)
        # Between reading and this line nobody else could fill the queue: the loop did not turn.
        self.scheduler.submit(job)
        try:
            await asyncio.wait_for(future, max(left, 0.001))
        except TimeoutError:
            self.scheduler.close(job, timed_out(self.limits.seconds))
        except asyncio.CancelledError:
            self.scheduler.close(job, refused("The client left."))
            raise
        timing.queue += (job.started or job.ended or job.submitted) - job.submitted
        timing.device += (job.ended or 0) - (job.started or job.ended or 0)
        if job.error is not None:
            raise job.error
        return job


def _characters(item: Any) -> int:
    """About how long an item is, whatever it is."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, np.ndarray):
        return 4 * len(item)
    if isinstance(item, dict):
        return sum(_characters(value) for value in item.values())
    if isinstance(item, list | tuple):
        return sum(_characters(value) for value in item)
    return 1


def of_input(error: Exception, param: str, items: Any, served: Served) -> Exception:
    """An error of reading, under the field that it is about; what a picture does wrong is the picture's.

    Args:
        items: what was read.
        served: the model, which a client knows by its id and not by the folder that it is from.
    """
    fault = fault_of(error, param=param)
    if not isinstance(error, Refused):
        fault = replace(fault, message=fault.message.replace(served.model.name, served.id))
    if isinstance(error, Refused) or fault.status != 400:
        return error
    pictures = _holds_pictures(items)
    if pictures and isinstance(error, InputError) and fault.code == "invalid_input":
        return refused(fault.message, "invalid_media", param, 422)
    return Refused(fault)


def _holds_pictures(value: Any) -> bool:
    """Whether there are bytes anywhere in what a request holds: a picture's, since nothing else is."""
    if isinstance(value, dict):
        return any(map(_holds_pictures, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_pictures, value))
    return isinstance(value, bytes)
