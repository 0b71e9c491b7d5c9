"""A conversation's answer as events: prompt and options in, content, reasoning and calls of tools out, per answer.

What every interface of generation shares; knows nothing of any one's JSON.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archport.generating.pieces import TokenLogprob, Usage
from archport.generating.talks import Constraint
from archport.serving.calling import Demand, call_grammar
from archport.serving.chats import Generations, Prompted
from archport.serving.errors import refused, unsupported
from archport.serving.models import Served
from archport.serving.parsing.choice import Style, style_of
from archport.serving.parsing.events import Call, Event, Plain
from archport.serving.parsing.thinking import CLOSE
from archport.serving.requests import Timing
from archport.serving.structured import Grammars, grammar_of


@dataclass(frozen=True, slots=True)
class Talked:
    """What one step adds to one answer.

    Args:
        answer: which one.
        events: what its text is.
        tokens: ids of this step.
        logprobs: of `tokens`, where they were asked for.
        finish_reason, usage: of the answer's last step, None before it.
    """

    answer: int
    events: list[Event]
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of an answer.

    Args:
        messages: a chat; or
        prompt: a text or ids, taken as they are.
        options: by the names of `Model.generate`.
        tools: descriptions of functions; none when the model may call none.
        template: more that the chat template reads.
        form: OpenAI's `response_format`.
        demand: calls that the answer has to be, in place of a form.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: Any = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    answers: int = 1
    logprobs: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    template: Mapping[str, Any] | None = None
    continued: bool = False
    form: Mapping[str, Any] | None = None
    demand: Demand | None = None


class Talks:
    """Answers of all models.

    Args:
        generations: that run them.
    """

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._grammars: dict[str, Grammars] = {}
        self._styles: dict[str, Style] = {}

    def style(self, served: Served) -> Style:
        """How a model writes."""
        if served.id not in self._styles:
            chat = served.runtime.chat
            templates = {} if chat is None else chat.templates
            self._styles[served.id] = style_of("\n".join(templates.values()))
        return self._styles[served.id]

    def grammars(self, served: Served, param: str) -> Grammars:
        """A model's grammars, whose tokenizer takes a while to read."""
        if served.id not in self._grammars:
            self._grammars[served.id] = Grammars(served, param)
        return self._grammars[served.id]

    def forget(self, served: Served) -> None:
        """Let go of what is kept of a model."""
        self._grammars.pop(served.id, None)
        self._styles.pop(served.id, None)

    async def read(self, served: Served, wish: Wish, timing: Timing) -> Prompted:
        """The wish's prompt as ids."""
        served.need("generate")
        if wish.messages is None:
            return await self._generations.read(served, wish.prompt, timing, param="prompt")
        if "chat" not in served.capabilities:
            raise unsupported(f"The model {served.id!r} has no chat template; ask /v1/completions.", "model")
        if not wish.messages:
            raise refused("messages is empty; expected at least one message.", "empty_input", "messages")
        return await self._generations.read(
            served, wish.messages, timing, tools=wish.tools or None, template=wish.template, continued=wish.continued
        )

    def _constraint(self, served: Served, wish: Wish, *, opened: bool) -> Callable[[], Constraint] | None:
        """What a wish's text follows; None for any text. Reading and compiling a large form takes seconds."""
        special = served.runtime.tokeniser.tokenizer.token_to_id
        if wish.demand is not None:
            # A call has no content that could have a form.
            param = "tool_choice"
            grammar = call_grammar(self.style(served), wish.demand, special, opened=opened)
        else:
            param = "response_format"
            grammar = grammar_of(wish.form, lambda: self.grammars(served, param))
        if grammar is None:
            return None
        return self.grammars(served, param).constraint(grammar, special(CLOSE) if opened else None, param)

    async def answers(self, served: Served, wish: Wish, prompted: Prompted, timing: Timing) -> AsyncIterator[Talked]:
        """Every answer's steps, as they come. Closing the iterator ends the generation."""
        style, chat = self.style(served), wish.messages is not None
        opened = chat and _opens_thinking(served, prompted)
        constraint = None
        if wish.form is not None or wish.demand is not None:
            constraint = await self._generations.host(lambda: self._constraint(served, wish, opened=opened))
        parsers = [style.parser(wish.tools, opened=opened) if chat else Plain() for _ in range(wish.answers)]
        called = [False] * wish.answers
        pieces = self._generations.pieces(
            served, prompted, timing, wish.options, answers=wish.answers, logprobs=wish.logprobs,
            constraint=constraint, markers=style.markers if chat else (),
        )  # fmt: skip
        first = True
        try:
            async for piece in pieces:
                if first:
                    first = False
                    timing.first = time.monotonic() - timing.begun
                events = parsers[piece.answer].feed(piece.text)
                reason: str | None = piece.finish_reason
                if reason is not None:
                    events += parsers[piece.answer].finish()
                called[piece.answer] |= any(isinstance(event, Call) for event in events)
                if reason == "stop" and called[piece.answer]:
                    reason = "tool_calls"
                yield Talked(piece.answer, events, piece.tokens, piece.logprobs, reason, piece.usage)
        finally:
            await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue]


def _opens_thinking(served: Served, prompted: Prompted) -> bool:
    """Whether the prompt ends inside a thinking that its template has begun."""
    tail = served.runtime.tokeniser.tokenizer.decode(prompted.ids[-8:].tolist(), skip_special_tokens=False)
    return tail.rstrip().endswith("<think>")
