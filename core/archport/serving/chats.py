"""Generations of one model for many callers: prompts in, pieces out to each caller, as they come.

The batch runs on the device's thread; callers wait in the event loop. Knows nothing of any interface's JSON.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from archport.contract import InputError, Measured
from archport.generating.continuous import ContinuousBatch
from archport.generating.pieces import Piece, generate_request
from archport.generating.talks import Constraint, Talk
from archport.planning import Plan
from archport.serving.device import Device
from archport.serving.errors import Refused, fault_of, overloaded, refused, timed_out
from archport.serving.models import Served, sharing
from archport.serving.requests import Requests, Timing, of_input
from archport.serving.settings import Limits
from archport.serving.unread import Unread

# What a generation does unless it is told otherwise; see `Model.generate`.
DEFAULTS: dict[str, Any] = {
    "max_tokens": None, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": None,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": None, "seed": None, "stop": None,
    "stop_token_ids": None, "min_tokens": 0, "n": None, "logprobs": None, "progress": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt as ids, and with its pictures where it has any.

    Args:
        param: where the request has it, for errors.
    """

    ids: np.ndarray
    measured: Measured | None = None
    param: str = "messages"


class Chats:
    """The generations of one model, as the device's thread drives them.

    Args:
        device: whose thread steps, and whose other generations leave less room.
        rows: texts side by side.
        chunk: tokens of prompts that are read between two steps.
    """

    def __init__(self, served: Served, device: Device, *, rows: int, chunk: int) -> None:
        self.served, self._device = served, device
        generator = served.runtime.generator()
        # What this batch itself has reserved, its own plans count.
        planner = sharing(served.alone, lambda: served.alone.others() + device.reserved - self.reserved)
        encoder, alone = (replace(generator.encoder, plan=plan) for plan in (planner, served.alone))
        self.batch = ContinuousBatch(
            replace(generator, encoder=encoder), most_rows=rows, chunk=chunk, crowded=self._crowded
        )
        self._alone = ContinuousBatch(replace(generator, encoder=alone), chunk=chunk)
        self._said: list[tuple[_Listener, Piece | Exception]] = []

    @property
    def ready(self) -> bool:
        return self.batch.ready

    @property
    def awaited(self) -> bool:
        return self.batch.awaited

    @property
    def reserved(self) -> int:
        return self.batch.reserved

    def _crowded(self) -> bool:
        return self._device.reserved > self.reserved

    def check(self, talk: Talk) -> None:
        """Refuse what can never fit, whatever other models generate now; from any thread."""
        self._alone.check(talk)

    def step(self) -> None:
        """See `archport.serving.device.Steps`; callers hear of a step's pieces all at once."""
        begin, rows = time.monotonic(), self.batch.rows
        try:
            self.batch.step()
        except Exception as error:
            # Nobody's fault alone: the batch has to begin anew.
            self.batch.close(error)
        finally:
            self._flush()
            self._device.observed("chat", rows, rows, time.monotonic() - begin)

    def close_all(self, error: Refused) -> int:
        """Answer everybody with an error."""
        count = self.batch.close(error)
        self._flush()
        return count

    def _flush(self) -> None:
        said, self._said = self._said, []
        for loop in dict.fromkeys(listener.loop for listener, _ in said):
            own = [(listener, piece) for listener, piece in said if listener.loop is loop]
            # Once the server has ended, its loop takes nothing any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_hand_over, own)

    def listener(self) -> _Listener:
        """What hears of a caller's pieces, in the running event loop."""
        return _Listener(asyncio.get_running_loop(), self._pass_on)

    def _pass_on(self, listener: _Listener, piece: Piece | Exception) -> None:
        self._said.append((listener, piece))


class _Listener:
    """A caller's pieces. `told` is called on the device's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, note: Callable[[_Listener, Piece | Exception], None]) -> None:
        self.loop, self._note = loop, note
        self.unread = Unread()

    def told(self, piece: Piece | Exception) -> None:
        self._note(self, piece)


def _hand_over(said: Sequence[tuple[_Listener, Piece | Exception]]) -> None:
    for listener, piece in said:
        listener.unread.put(piece)


def _of_option(error: InputError, options: Mapping[str, Any]) -> Refused:
    """A refusal of one of the options, under its name, with which the library's messages begin."""
    fault, first = fault_of(error), re.match("[a-z_]*", str(error))
    name = first.group() if first else ""
    if name in options and fault.message.lower().startswith(name):
        fault = replace(fault, param=name, message=name + fault.message[len(name) :])
    return Refused(fault)


class Generations:
    """What interfaces ask of generation.

    Args:
        requests: how requests wait.
        device, limits: of the server.
    """

    def __init__(self, requests: Requests, device: Device, limits: Limits, *, chunk: int | None = None) -> None:
        self._requests, self._device, self._limits, self._chunk = requests, device, limits, chunk
        self._chats: dict[str, Chats] = {}

    def of(self, served: Served) -> Chats:
        """The generations of a model, begun at its first request."""
        if served.id not in self._chats:
            chunk = self._chunk or (256 if served.model.device.kind == "cpu" else 2048)
            chats = Chats(served, self._device, rows=self._limits.rows, chunk=chunk)
            self._chats[served.id] = chats
            self._device.steps.append(chats)
        return self._chats[served.id]

    def plan(self, served: Served) -> Plan | None:
        """The plan of the texts that a model generates now; None while it generates none."""
        chats = self._chats.get(served.id)
        return None if chats is None else chats.batch.plan

    def forget(self, served: Served) -> None:
        """Let go of a model's generations, none of which is under way."""
        chats = self._chats.pop(served.id, None)
        if chats is not None:
            self._device.steps.remove(chats)

    async def host(self, function: Callable[[], Any]) -> Any:
        """Run a function that takes a while on a thread of the host."""
        return await self._requests.host(function, 1 << 20)

    async def read(
        self,
        served: Served,
        prompt: Any,
        timing: Timing,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        continued: bool = False,
        param: str = "messages",
    ) -> Prompted:
        """A prompt or messages as ids.

        Raises:
            Refused: naming what is wrong with it.
        """
        begin = time.monotonic()
        characters = self._requests.check_size([prompt], param)

        def read() -> Prompted:
            found = served.runtime.prompts()(prompt, tools=tools, options=template, continue_final_message=continued)
            (measured,) = found.measured
            visual = bool(measured.pictures) or measured.positions is not None
            return Prompted(found.rows[0], measured if visual else None, param)

        try:
            prompted = await self._requests.host(read, characters * 4)
        except Refused:
            raise
        except Exception as error:
            raise of_input(error, param, prompt, served) from error
        finally:
            timing.reading += time.monotonic() - begin
        timing.tokens += len(prompted.ids)
        timing.model = served.id
        return prompted

    async def pieces(
        self,
        served: Served,
        prompted: Prompted,
        timing: Timing,
        options: Mapping[str, Any],
        *,
        answers: int = 1,
        logprobs: int | None = None,
        constraint: Callable[[], Constraint] | None = None,
        markers: Sequence[str] = (),
    ) -> AsyncIterator[Piece]:
        """The pieces of all answers, as they come. Closing the iterator ends the generation.

        Args:
            options: by the names of `Model.generate`.
            markers: special tokens that stay in the text.

        Raises:
            Refused, AdmissionRefused: before the first piece, where the request can't run.
        """
        chats = self.of(served)
        most = options.get("max_tokens")
        if most is None:
            # As much as there is room for, and no more than one request may hold of the device.
            room = served.alone.max_context - len(prompted.ids)
            most = max(1, min(self._limits.default_new_tokens, room))
        elif self._limits.new_tokens is not None and most > self._limits.new_tokens:
            raise refused(
                f"max_tokens is {most}; at most {self._limits.new_tokens} are generated.", "invalid_value", "max_tokens"
            )
        asked = {**DEFAULTS, **{name: value for name, value in options.items() if value is not None}}
        asked |= {"max_tokens": most, "logprobs": logprobs}
        try:
            request = generate_request(asked, 1, served.model.spec.vocab_size, served.runtime.stops)
        except InputError as error:
            raise _of_option(error, asked) from error
        try:
            listener = chats.listener()
            talk = Talk(
                prompted.ids, request.rows[0], listener.told, answers, logprobs, prompted.measured, constraint,
                frozenset(markers),
            )  # fmt: skip
            # A plan of a new shape takes longer than the event loop should.
            await self.host(lambda: chats.check(talk))
        except Exception as error:
            raise of_input(error, prompted.param, None, served) from error
        if chats.batch.waiting >= self._limits.queue_requests:
            raise overloaded(chats.batch.waiting * 0.05)
        begin = time.monotonic()
        until = timing.begun + self._limits.seconds
        chats.batch.submit(talk)
        self._device.wake()
        left, first = answers, True
        try:
            while left:
                try:
                    async with asyncio.timeout(max(0.001, until - time.monotonic())):
                        piece = await listener.unread.take()
                except TimeoutError:
                    raise timed_out(self._limits.seconds) from None
                if isinstance(piece, Exception):
                    raise piece
                if first:
                    first = False
                    timing.queue += time.monotonic() - begin
                if piece.finish_reason is not None:
                    left -= 1
                yield piece
        finally:
            talk.gone = True
            timing.device += time.monotonic() - begin - timing.queue
            self._device.wake()
