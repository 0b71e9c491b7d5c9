"""The text part of OpenAI's responses: text in, text and reasoning out, whole and as streams. Nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport.serving.dialects.chat import EVENTS, Answer
from archport.serving.dialects.openai import shape
from archport.serving.dialects.pictures import messages_of
from archport.serving.dialects.sampling import SamplingBody, options_of
from archport.serving.errors import unsupported
from archport.serving.http import Context, Objects, json_bytes, json_response, streamed
from archport.serving.parsing.events import Content
from archport.serving.talking import Talked, Wish


class ResponsesBody(SamplingBody):
    """What `POST /v1/responses` takes."""

    model: StrictStr | None = None
    input: StrictStr | Objects = Field(description="a string or an array of messages")
    instructions: StrictStr | None = None
    max_output_tokens: StrictInt | None = None
    stream: bool = False
    text: dict[str, Any] | None = None
    tools: Objects | None = None
    previous_response_id: StrictStr | None = None
    store: bool | None = None


async def responses(context: Context, body: ResponsesBody) -> Response:
    """An answer."""
    state = context.state
    served = state.registry.find(body.model, "chat")
    if body.tools:
        raise unsupported("Tools of /v1/responses are not offered; use /v1/chat/completions.", "tools")
    if body.previous_response_id is not None:
        raise unsupported("This server stores no responses; send the whole conversation.", "previous_response_id")
    given: list[dict[str, Any]] = (
        [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    )
    if any(each.get("type", "message") != "message" for each in given):
        raise unsupported("input holds items that are no messages, which this server does not read.", "input")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    messages += [{key: each[key] for key in ("role", "content") if key in each} for each in given]
    form = (body.text or {}).get("format")
    wish = Wish(
        messages=messages_of(messages, state.settings.limits, "input"),
        options=options_of(body, body.max_output_tokens, "max_output_tokens"),
        form=form,
    )
    prompted = await state.talks.read(served, wish, context.timing)
    told = state.talks.answers(served, wish, prompted, context.timing)
    head = {
        "id": f"resp_{context.id}", "object": "response", "created_at": state.now(), "model": served.id,
        "error": None, "incomplete_details": None, "instructions": body.instructions, "metadata": {},
        "parallel_tool_calls": False, "tool_choice": "none", "tools": [],
        "temperature": body.temperature, "top_p": body.top_p,
    }  # fmt: skip
    if body.stream:
        first = await anext(told)
        return streamed(context, _events(context, head, first, told), shape, EVENTS)
    answer = Answer()
    async for each in told:
        answer.add(each)
        context.tokens_out += len(each.tokens)
    return json_response(context, _whole(context, head, answer))


def _whole(context: Context, head: dict[str, Any], answer: Answer) -> dict[str, Any]:
    cut = answer.finish_reason == "length"
    usage = answer.usage
    made, read, cached = (usage.completion_tokens, usage.prompt_tokens, usage.cached_tokens) if usage else (0, 0, 0)
    output: list[dict[str, Any]] = []
    if answer.reasoning:
        text = "".join(answer.reasoning)
        output.append(
            {"id": f"rs_{context.id}", "type": "reasoning", "summary": [],
             "content": [{"type": "reasoning_text", "text": text}]}
        )  # fmt: skip
    output.append(_item(context, "".join(answer.content), "incomplete" if cut else "completed"))
    return {
        **head,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + made,
        },
    }


def _item(context: Context, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": f"msg_{context.id}", "type": "message", "role": "assistant", "status": status, "content": content}


async def _events(
    context: Context, head: dict[str, Any], first: Talked, rest: AsyncIterator[Talked]
) -> AsyncIterator[bytes]:
    """The events of a stream, numbered."""
    number = -1

    def told(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        body = json_bytes({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"

    answer, begun = Answer(), {**head, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": f"msg_{context.id}", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    try:
        yield told("response.created", response=begun)
        yield told("response.in_progress", response=begun)
        yield told("response.output_item.added", output_index=0, item=_item(context, None, "in_progress"))
        yield told("response.content_part.added", **at, part=part)
        pending: Talked | None = first
        while pending is not None:
            answer.add(pending)
            context.tokens_out += len(pending.tokens)
            text = "".join(each.text for each in pending.events if isinstance(each, Content))
            if text:
                yield told("response.output_text.delta", **at, delta=text, logprobs=[])
            pending = await anext(rest, None)
        text = "".join(answer.content)
        whole = _whole(context, head, answer)
        yield told("response.output_text.done", **at, text=text, logprobs=[])
        yield told("response.content_part.done", **at, part={**part, "text": text})
        yield told("response.output_item.done", output_index=0, item=whole["output"][-1])
        kind = "response.incomplete" if whole["status"] == "incomplete" else "response.completed"
        yield told(kind, response=whole)
    finally:
        await rest.aclose()  # pyright: ignore[reportAttributeAccessIssue]
