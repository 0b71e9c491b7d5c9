"""OpenAI's completions: prompts taken as they are, one or several, whole and as streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Any

from pydantic import Field, StrictInt, StrictStr
from starlette.responses import Response

from archport.generating.pieces import TokenLogprob
from archport.serving.dialects.chat import EVENTS, Answer, usage_of
from archport.serving.dialects.items import items_of
from archport.serving.dialects.openai import shape
from archport.serving.dialects.sampling import SamplingBody, check_answers, options_of
from archport.serving.errors import refused
from archport.serving.http import Context, IdRows, Ids, Texts, event, json_response, streamed
from archport.serving.parsing.events import Content
from archport.serving.talking import Talked, Wish


class CompletionBody(SamplingBody):
    """What `POST /v1/completions` takes."""

    model: StrictStr | None = None
    prompt: StrictStr | Texts | Ids | IdRows = Field(
        description="a string, an array of strings, an array of token ids, or an array of those"
    )
    max_tokens: StrictInt | None = 16
    n: StrictInt = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    logprobs: StrictInt | None = None
    echo: bool = False
    suffix: StrictStr | None = None
    response_format: dict[str, Any] | None = None


async def completions(context: Context, body: CompletionBody) -> Response:
    """What follows prompts."""
    state = context.state
    served = state.registry.find(body.model, "generate")
    for value, name in ((body.echo, "echo"), (body.suffix, "suffix")):
        if value:
            raise refused(f"{name} is not offered; leave it out.", "unsupported_operation", name)
    check_answers(body.n, state.settings.limits)
    prompts = items_of(body.prompt, "prompt", state.settings.limits)
    texts, most = len(prompts) * body.n, state.settings.limits.rows
    if texts > most:
        why = f"prompt and n ask for {texts} texts; a request may have {most}."
        raise refused(why, "request_too_large", "prompt", 413)
    options = options_of(body, body.max_tokens)
    wishes = [
        Wish(prompt=prompt if isinstance(prompt, str) else prompt.tolist(), options=options, answers=body.n,
             logprobs=body.logprobs, form=body.response_format)
        for prompt in prompts
    ]  # fmt: skip
    read = [await state.talks.read(served, wish, context.timing) for wish in wishes]
    told = [state.talks.answers(served, wish, ids, context.timing) for wish, ids in zip(wishes, read, strict=True)]
    head = {"id": f"cmpl-{context.id}", "object": "text_completion", "created": state.now(), "model": served.id}
    if body.stream:
        source = _together(told, body.n)
        first = await anext(source)
        usage = bool((body.stream_options or {}).get("include_usage"))
        events = _events(context, served, head, body, len(prompts) * body.n, first, source, usage=usage)
        return streamed(context, events, shape, EVENTS)
    answers = [Answer() for _ in range(len(prompts) * body.n)]
    async for index, each in _together(told, body.n):
        answers[index].add(each)
        context.tokens_out += len(each.tokens)
    choices = [
        {
            "index": index,
            "text": "".join(answer.content),
            "logprobs": None if body.logprobs is None else _logprobs(served, answer.logprobs),
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(answers)
    ]
    return json_response(context, {**head, "choices": choices, "usage": _usage(answers, body.n)})


async def _together(told: list[AsyncIterator[Talked]], answers: int) -> AsyncIterator[tuple[int, Talked]]:
    """(index of the choice, its step) of several generations, as they come."""
    waiting = {asyncio.ensure_future(anext(source)): at for at, source in enumerate(told)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                at = waiting.pop(future)
                try:
                    each = future.result()
                except StopAsyncIteration:
                    continue
                yield at * answers + each.answer, each
                waiting[asyncio.ensure_future(anext(told[at]))] = at
    finally:
        for future in waiting:
            future.cancel()
        if waiting:
            await asyncio.wait(waiting)
        for source in told:
            await source.aclose()  # pyright: ignore[reportAttributeAccessIssue]


def _usage(answers: list[Answer], n: int) -> dict[str, Any]:
    """Tokens of all; the prompt of every n answers counts once."""
    groups = [usage_of(answers[at : at + n]) for at in range(0, len(answers), n)]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: sum(group[name] for group in groups) for name in names}


def _logprobs(served: Any, logprobs: Sequence[TokenLogprob], start: int = 0) -> dict[str, Any]:
    """Log-probabilities in the older shape.

    Args:
        start: characters of the tokens before these.
    """
    decode = served.runtime.tokeniser.tokenizer.decode
    tokens = [decode([each.token], skip_special_tokens=False) for each in logprobs]
    *offsets, _ = accumulate(map(len, tokens), initial=start)
    return {
        "tokens": tokens,
        "token_logprobs": [max(each.logprob, -9999.0) for each in logprobs],
        "top_logprobs": [
            {decode([token], skip_special_tokens=False): max(score, -9999.0) for token, score in each.top}
            for each in logprobs
        ],
        "text_offset": offsets,
    }


async def _events(
    context: Context, served: Any, head: dict[str, Any], body: CompletionBody, count: int,
    first: tuple[int, Talked], rest: AsyncIterator[tuple[int, Talked]], *, usage: bool,
) -> AsyncIterator[bytes]:  # fmt: skip
    more: dict[str, Any] = {"usage": None} if usage else {}
    answers, written = [Answer() for _ in range(count)], [0] * count

    def chunk(index: int, told: Talked) -> bytes:
        answers[index].usage = told.usage or answers[index].usage
        context.tokens_out += len(told.tokens)
        text = "".join(each.text for each in told.events if isinstance(each, Content))
        scores = None
        if body.logprobs is not None:
            scores = _logprobs(served, told.logprobs, written[index])
            written[index] += sum(map(len, scores["tokens"]))
        choice = {"index": index, "text": text, "logprobs": scores, "finish_reason": told.finish_reason}
        return event({**head, "choices": [choice], **more})

    try:
        yield chunk(*first)
        async for index, told in rest:
            yield chunk(index, told)
        if usage:
            yield event({**head, "choices": [], "usage": _usage(answers, body.n)})
        yield b"data: [DONE]\n\n"
    finally:
        await rest.aclose()  # pyright: ignore[reportAttributeAccessIssue]
