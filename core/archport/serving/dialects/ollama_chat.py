"""Ollama's chat and generate: lines of JSON, streamed unless the request says otherwise, times in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, StrictStr
from starlette.responses import Response

from archport.serving.dialects.chat import Answer, parsed_arguments
from archport.serving.dialects.ollama import shape
from archport.serving.dialects.pictures import messages_of
from archport.serving.errors import refused, unsupported
from archport.serving.http import Body, Context, Objects, Texts, json_bytes, json_response, streamed
from archport.serving.parsing.events import Content, Reasoning
from archport.serving.talking import Talked, Wish

LINES = "application/x-ndjson"
# Options by Ollama's names; those that size its own caches mean nothing here.
_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")


class ChatBody(Body):
    """What `POST /api/chat` takes."""

    model: StrictStr | None = None
    messages: Objects = Field(description="an array of messages")
    stream: bool = True
    format: StrictStr | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    tools: Objects | None = None
    think: bool | StrictStr | None = None


class GenerateBody(Body):
    """What `POST /api/generate` takes."""

    model: StrictStr | None = None
    prompt: StrictStr = ""
    system: StrictStr | None = None
    images: Texts | None = None
    stream: bool = True
    raw: bool = False
    format: StrictStr | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | StrictStr | None = None


def _options(given: dict[str, Any] | None) -> dict[str, Any]:
    given = given or {}
    found = {name: given.get(name) for name in _OPTIONS}
    most, stop, seed = given.get("num_predict"), given.get("stop"), given.get("seed")
    for name, value in (("num_predict", most), ("seed", seed)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise refused(f"options.{name} is no whole number.", "invalid_value", "options")
    # Ollama's -1 and -2 are as many as fit, and 0 is none.
    found["max_tokens"] = most if isinstance(most, int) and most > 0 else None
    found["seed"] = seed % 2**64 if isinstance(seed, int) else None
    found["stop"] = ([stop] if isinstance(stop, str) else stop) or None
    found["repetition_penalty"] = given.get("repeat_penalty")
    return found


def _form(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given == "":
        return None
    if isinstance(given, str):
        if given != "json":
            raise refused(f"format is {given[:50]!r}; expected json or a JSON schema.", "invalid_value", "format")
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": given}}


def _template(context: Context, served: Any, think: bool | str | None) -> dict[str, Any]:
    """Whether the model thinks, where its template can be told."""
    if think is None or not context.state.talks.style(served).thinks:
        return {}
    chat = served.runtime.chat
    reads = any("enable_thinking" in template for template in chat.templates.values())
    return {"enable_thinking": bool(think)} if reads else {}


async def chat(context: Context, body: ChatBody) -> Response:
    """An answer to a chat."""
    served = context.state.registry.find(body.model, "chat")
    messages: list[dict[str, Any]] = []
    for message in body.messages:
        images = message.get("images")
        if isinstance(images, list) and images:
            text = [{"type": "text", "text": message.get("content") or ""}]
            parts = [{"type": "image_url", "image_url": {"url": each}} for each in images]
            message = {**{key: value for key, value in message.items() if key != "images"}, "content": [*parts, *text]}
        messages.append(message)
    wish = Wish(
        messages=messages_of(messages, context.state.settings.limits),
        options=_options(body.options),
        tools=body.tools,
        template=_template(context, served, body.think),
        form=_form(body.format),
    )

    def said(answer: Answer, text: str, thought: str, *, last: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if last and answer.calls:
            message["tool_calls"] = [
                {"function": {"name": name, "arguments": parsed_arguments("".join(parts))}}
                for name, parts in answer.calls
            ]
        return {"message": message}

    return await _answer(context, served, wish, said, stream=body.stream)


async def generate(context: Context, body: GenerateBody) -> Response:
    """What follows a prompt, which is a chat's only message unless it is raw or the model has no chat template."""
    state = context.state
    served = state.registry.find(body.model, "generate")
    if not body.prompt and not body.images:
        # Ollama's way to load a model.
        return json_response(context, {"model": served.id, "response": "", "done": True, "done_reason": "load"})
    options, form = _options(body.options), _form(body.format)
    if body.raw or "chat" not in served.capabilities:
        for value, name in ((body.images, "images"), (body.system, "system")):
            if value:
                raise unsupported(f"{name} has no place in a prompt that no chat template writes; leave it out.", name)
        wish = Wish(prompt=body.prompt, options=options, form=form)
    else:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": each}} for each in body.images or ()]
        content: Any = [*parts, {"type": "text", "text": body.prompt}] if parts else body.prompt
        messages = [{"role": "system", "content": body.system}] if body.system else []
        messages.append({"role": "user", "content": content})
        wish = Wish(
            messages=messages_of(messages, state.settings.limits, "prompt"), options=options, form=form,
            template=_template(context, served, body.think),
        )  # fmt: skip

    def said(answer: Answer, text: str, thought: str, *, last: bool) -> dict[str, Any]:
        return {"response": text, **({"thinking": thought} if thought else {})}

    return await _answer(context, served, wish, said, stream=body.stream)


Message = Callable[..., dict[str, Any]]


async def _answer(context: Context, served: Any, wish: Wish, said: Message, *, stream: bool) -> Response:
    talks = context.state.talks
    prompted = await talks.read(served, wish, context.timing)
    told = talks.answers(served, wish, prompted, context.timing)
    if stream:
        first = await anext(told)
        return streamed(context, _lines(context, served, said, first, told), shape, LINES)
    answer = Answer()
    async for each in told:
        answer.add(each)
        context.tokens_out += len(each.tokens)
    text, thought = "".join(answer.content), "".join(answer.reasoning)
    body = {**_head(served), **said(answer, text, thought, last=True), **_end(context, answer)}
    return json_response(context, body)


def _head(served: Any) -> dict[str, Any]:
    return {"model": served.id, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _end(context: Context, answer: Answer) -> dict[str, Any]:
    """What is told once."""
    timing, usage = context.timing, answer.usage
    total = time.monotonic() - timing.begun
    first = timing.first or total
    return {
        "done": True,
        "done_reason": "length" if answer.finish_reason == "length" else "stop",
        "total_duration": round(1e9 * total),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens if usage else 0,
        "prompt_eval_duration": round(1e9 * first),
        "eval_count": usage.completion_tokens if usage else 0,
        "eval_duration": round(1e9 * (total - first)),
    }


async def _lines(
    context: Context, served: Any, said: Message, first: Talked, rest: AsyncIterator[Talked]
) -> AsyncIterator[bytes]:
    answer, pending = Answer(), first
    try:
        while pending is not None:
            answer.add(pending)
            context.tokens_out += len(pending.tokens)
            text = "".join(each.text for each in pending.events if isinstance(each, Content))
            thought = "".join(each.text for each in pending.events if isinstance(each, Reasoning))
            if text or thought:
                yield json_bytes({**_head(served), **said(answer, text, thought, last=False), "done": False}) + b"\n"
            pending = await anext(rest, None)
        yield json_bytes({**_head(served), **said(answer, "", "", last=True), **_end(context, answer)}) + b"\n"
    finally:
        await rest.aclose()  # pyright: ignore[reportAttributeAccessIssue]
