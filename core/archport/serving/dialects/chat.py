"""OpenAI's chat completions, whole and as streams."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import orjson
from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport.generating.pieces import TokenLogprob, Usage
from archport.serving.calling import demand_of
from archport.serving.dialects.openai import shape
from archport.serving.dialects.pictures import messages_of
from archport.serving.dialects.sampling import SamplingBody, check_answers, options_of
from archport.serving.errors import refused
from archport.serving.http import Context, Objects, event, json_response, streamed
from archport.serving.parsing.events import Arguments, Call, Content, Event, Reasoning
from archport.serving.talking import Talked, Wish


class ChatBody(SamplingBody):
    """What `POST /v1/chat/completions` takes."""

    model: StrictStr | None = None
    messages: Objects = Field(description="an array of messages, each with a role and a content")
    max_tokens: StrictInt | None = None
    max_completion_tokens: StrictInt | None = None
    n: StrictInt = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: StrictInt | None = None
    tools: Objects | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool = False
    reasoning_effort: StrictStr | None = None


async def completions(context: Context, body: ChatBody) -> Response:
    """Answers to a chat."""
    state = context.state
    served = state.registry.find(body.model, "chat")
    wish = _wish(context, body)
    prompted = await state.talks.read(served, wish, context.timing)
    told = state.talks.answers(served, wish, prompted, context.timing)
    head = {"id": f"chatcmpl-{context.id}", "created": state.now(), "model": served.id}
    if body.stream:
        usage = bool((body.stream_options or {}).get("include_usage"))
        # The first step comes before the head of the answer, so that a refusal has its own status.
        first = await anext(told)
        return streamed(context, _events(context, served, head, wish, first, told, usage=usage), shape, EVENTS)
    answers = [Answer() for _ in range(wish.answers)]
    async for each in told:
        answers[each.answer].add(each)
        context.tokens_out += len(each.tokens)
    choices = [
        {
            "index": index,
            "message": answer.message(),
            "logprobs": None if wish.logprobs is None else {"content": entries(served, answer.logprobs)},
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(answers)
    ]
    whole = {**head, "object": "chat.completion", "choices": choices, "usage": usage_of(answers)}
    return json_response(context, whole)


EVENTS = "text/event-stream"


def _wish(context: Context, body: ChatBody) -> Wish:
    check_answers(body.n, context.state.settings.limits)
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs needs logprobs to be true.", "invalid_value", "top_logprobs")
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    demand = demand_of(body.tool_choice, body.tools, parallel=body.parallel_tool_calls is not False)
    template = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        template.setdefault("reasoning_effort", body.reasoning_effort)
    if "messages" in template or "chat_template" in template:
        raise refused("chat_template_kwargs may not hold messages or a template.", "invalid_value",
                      "chat_template_kwargs")  # fmt: skip
    return Wish(
        messages=messages_of(body.messages, context.state.settings.limits),
        options=options_of(body, most),
        answers=body.n,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tools=None if body.tool_choice == "none" else body.tools,
        template=template,
        continued=body.continue_final_message,
        form=body.response_format,
        demand=demand,
    )


class Answer:
    """One answer as its steps come in."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[tuple[str, list[str]]] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.usage: Usage | None = None

    def add(self, told: Talked) -> None:
        """Note a step."""
        for each in told.events:
            match each:
                case Content(text):
                    self.content.append(text)
                case Reasoning(text):
                    self.reasoning.append(text)
                case Call(name):
                    self.calls.append((name, []))
                case Arguments(text):
                    self.calls[-1][1].append(text)
        self.logprobs += told.logprobs
        self.finish_reason = told.finish_reason or self.finish_reason
        self.usage = told.usage or self.usage

    def message(self) -> dict[str, Any]:
        """As OpenAI has it: content always, even null."""
        text = "".join(self.content)
        found: dict[str, Any] = {"role": "assistant", "content": text if text or not self.calls else None}
        if self.reasoning:
            found["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            found["tool_calls"] = [
                {"id": call_id(), "type": "function", "function": {"name": name, "arguments": "".join(parts)}}
                for name, parts in self.calls
            ]
        return found


def call_id() -> str:
    """A new id of a call."""
    return f"call_{secrets.token_hex(12)}"


def usage_of(answers: list[Answer]) -> dict[str, Any]:
    """Tokens of all answers; their prompt counts once."""
    found = [answer.usage for answer in answers if answer.usage is not None]
    prompt, cached = (found[0].prompt_tokens, found[0].cached_tokens) if found else (0, 0)
    made = sum(each.completion_tokens for each in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def entries(served: Any, logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
    """Log-probabilities as OpenAI tells them."""
    return [
        {**_entry(served, each.token, each.logprob), "top_logprobs": [_entry(served, *pair) for pair in each.top]}
        for each in logprobs
    ]


def _entry(served: Any, token: int, logprob: float) -> dict[str, Any]:
    text = served.runtime.tokeniser.tokenizer.decode([token], skip_special_tokens=False)
    # JSON has no -Infinity; OpenAI says -9999.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


class Deltas:
    """What events add to a message, call after call."""

    def __init__(self) -> None:
        self.calls = -1

    def of(self, events: list[Event]) -> list[dict[str, Any]]:
        """Deltas of a step's events."""
        found: list[dict[str, Any]] = []
        for each in events:
            match each:
                case Content(text):
                    found.append({"content": text})
                case Reasoning(text):
                    found.append({"reasoning_content": text})
                case Call(name):
                    self.calls += 1
                    function = {"name": name, "arguments": ""}
                    call = {"index": self.calls, "id": call_id(), "type": "function", "function": function}
                    found.append({"tool_calls": [call]})
                case Arguments(text):
                    found.append({"tool_calls": [{"index": self.calls, "function": {"arguments": text}}]})
        return found


async def _events(
    context: Context, served: Any, head: dict[str, Any], wish: Wish, first: Talked, rest: AsyncIterator[Talked], *,
    usage: bool,
) -> AsyncIterator[bytes]:  # fmt: skip
    """The chunks of a stream."""
    deltas = [Deltas() for _ in range(wish.answers)]
    answers = [Answer() for _ in range(wish.answers)]
    more: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    try:
        for index in range(wish.answers):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for told in _chained(first, rest):
            index = told.answer
            answers[index].usage = told.usage or answers[index].usage
            context.tokens_out += len(told.tokens)
            scores = {"content": entries(served, told.logprobs)} if wish.logprobs is not None else None
            for delta in deltas[index].of(told.events) or ([{}] if scores and told.logprobs else []):
                yield chunk(index, delta, scores)
                scores = None
            if told.finish_reason is not None:
                yield chunk(index, {}, None, told.finish_reason)
        if usage:
            yield event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(answers)})
        yield b"data: [DONE]\n\n"
    finally:
        await rest.aclose()  # pyright: ignore[reportAttributeAccessIssue]


async def _chained(first: Talked, rest: AsyncIterator[Talked]) -> AsyncIterator[Talked]:
    yield first
    async for each in rest:
        yield each


def parsed_arguments(text: str) -> Any:
    """A call's arguments as values, where an interface wants those; the text where they are none."""
    try:
        # What it reads, it can write: integers above 64 bits become floats, halves of surrogate pairs are no JSON.
        return orjson.loads(text)
    except ValueError:
        return {"arguments": text}
