"""`archport chat`: a conversation, one line of input per turn; earlier turns are not read again."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from archport.cli.generate import DEFAULT_MODEL, print_stream
from archport.cli.options import (
    Adapter,
    Adapters,
    Bias,
    Dtype,
    Frequency,
    MaxContext,
    MaxTokens,
    MemoryBudget,
    MinP,
    MinTokens,
    Model,
    NoThinking,
    Penalty,
    Presence,
    Revision,
    Seed,
    Stop,
    StopToken,
    Task,
    Temperature,
    TopK,
    TopP,
    adapters_of,
    biases,
    note,
)
from archport.cli.words import rows_called
from archport.contract import InputError

THINKING = "</think>"


def chat(
    model: Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="An image in front of what is said first; may be repeated."),
    ] = None,
    max_tokens: MaxTokens = 2048,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.8,
    top_k: TopK = 20,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = None,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    logit_bias: Bias = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_token_id: StopToken = None,
    min_tokens: MinTokens = 0,
    no_thinking: NoThinking = False,
    dtype: Dtype = None,
    revision: Revision = None,
    memory_budget: MemoryBudget = None,
    max_context: MaxContext = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    task: Task = None,
) -> None:
    """Talk to a model. /new starts over, /exit or the end of input ends; Ctrl-C stops an answer.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 4 would not fit memory.
    """
    apart = adapters_of(adapters, adapter)

    from archport import engine

    loaded = engine.load(
        model,
        dtype=dtype,
        revision=revision,
        memory_budget=memory_budget,
        max_context=max_context,
        adapter=adapter,
        adapters=apart,
    )
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": biases(logit_bias),
        "seed": seed,
        "stop": stop or (),
        "stop_token_ids": stop_token_id or (),
        "min_tokens": min_tokens,
        "task": task,
        **({"enable_thinking": False} if no_thinking else {}),
    }
    opening = [{"role": "system", "content": system}] if system is not None else []
    messages: list[dict[str, Any]] = list(opening)
    pictures = [{"type": "image", "image": each} for each in image or ()]
    asks = sys.stdin.isatty()
    if asks:
        note(f"{loaded!r}. /new starts over, /exit ends.")
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = _typed()
        if not line or line.strip() == "/exit":
            return
        if line.strip() == "/new":
            messages = list(opening)
            continue
        if not line.strip():
            continue
        said, first = line.rstrip("\n"), len(messages) == len(opening)
        content = [*pictures, {"type": "text", "text": said}] if pictures and first else said
        messages.append({"role": "user", "content": content})
        try:
            with rows_called(lambda _: "the conversation"):
                text = print_stream(loaded, messages, options)
        except KeyboardInterrupt:
            if not asks:
                raise
            messages.pop()
            note("\nstopped; this turn is forgotten")
            continue
        # What a model thought is not part of the conversation.
        messages.append({"role": "assistant", "content": text.rpartition(THINKING)[2].lstrip("\n")})


def _typed() -> str:
    """The next line of standard input with its end; "" after the last one."""
    try:
        return sys.stdin.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"standard input can't be read: {error}") from error
