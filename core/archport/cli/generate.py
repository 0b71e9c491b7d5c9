"""`archport generate`: text after a prompt, on standard output as it is made."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

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
    called,
    note,
    read_objects,
    read_whole,
)
from archport.cli.words import rows_called
from archport.contract import InputError

if TYPE_CHECKING:
    from archport.engine import Model as LoadedModel
    from archport.generating.pieces import Generation, Piece
    from archport.running.calls import DeviceIterator

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to go on from.")] = None,
    model: Model = DEFAULT_MODEL,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE|-",
            help="The prompt; .jsonl: one per line, a string or an object with 'prompt' or 'messages'; - is stdin.",
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message in front of it; implies --chat.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="An image in front of the prompt, for models that see; may be repeated."),
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = None,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    logit_bias: Bias = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_token_id: StopToken = None,
    min_tokens: MinTokens = 0,
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="Answers of each prompt, which is read once; prints JSON.")
    ] = None,
    no_thinking: NoThinking = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per prompt, when all are done.")] = False,
    dtype: Dtype = None,
    revision: Revision = None,
    memory_budget: MemoryBudget = None,
    max_context: MaxContext = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    task: Task = None,
) -> None:
    """Generate text; one prompt is printed as it is made, several (.jsonl) run as one batch and print JSON.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 4 would not fit memory.
    """
    if (prompt is not None) == (input is not None):
        raise typer.BadParameter("give one PROMPT, or --input FILE (- for standard input), not both")
    prompts, places = _prompts(prompt, input)
    if image and (len(prompts) > 1 or not isinstance(prompts[0], str)):
        raise typer.BadParameter("--image goes with one prompt; messages of a .jsonl file name their own images")
    if image:
        pictures = [{"type": "image", "image": each} for each in image]
        prompts = [[{"role": "user", "content": [*pictures, {"type": "text", "text": prompts[0]}]}]]
    if chat or system is not None:
        prompts = [_messages(each, system) for each in prompts]

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
        "n": n,
        **({"enable_thinking": False} if no_thinking else {}),
    }
    with rows_called(lambda index: places[index]):
        if as_json or len(prompts) > 1 or n is not None:
            _print_all(loaded, prompts, options)
        else:
            print_stream(loaded, prompts[0], options)


def _print_all(loaded: LoadedModel, prompts: list[Any], options: dict[str, Any]) -> None:
    """Print one JSON object per answer when all are done, then the rate on standard error."""
    started = time.perf_counter()
    rows = cast("list[Any]", loaded.generate(prompts, progress=sys.stderr.isatty(), **options))
    made: list[Generation] = rows if options["n"] is None else [each for row in rows for each in row]
    for each in made:
        usage = each.usage
        counts = {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        answer: dict[str, Any] = {"text": each.text, "finish_reason": each.finish_reason, "usage": counts}
        if each.clamped_to is not None:
            answer["clamped_to"] = each.clamped_to
        typer.echo(json.dumps(answer, ensure_ascii=False))
    tokens = sum(len(each.tokens) for each in made)
    seconds = time.perf_counter() - started
    note(f"{tokens:,} tokens of {len(made)} prompts in {seconds:.2f} s, {tokens / seconds:,.1f} tokens/s")


def print_stream(loaded: LoadedModel, prompt: object, options: dict[str, Any]) -> str:
    """Print a text as it is made, then its rate on standard error; returns it."""
    started = time.perf_counter()
    text, first, count = "", 0.0, 0
    with cast("DeviceIterator[Piece]", loaded.generate(prompt, stream=True, **options)) as pieces:
        for piece in pieces:
            first = first or time.perf_counter()
            text += piece.text
            count += len(piece.tokens)
            sys.stdout.write(piece.text)
            sys.stdout.flush()
            if piece.usage is not None:
                sys.stdout.write("\n")
                sys.stdout.flush()
                usage, now = piece.usage, time.perf_counter()
                fresh = usage.prompt_tokens - usage.cached_tokens
                rate = f", {(count - 1) / (now - first):,.1f} tokens/s" if count > 1 else ""
                note(
                    f"prompt {usage.prompt_tokens:,} tokens ({usage.cached_tokens:,} cached), "
                    f"{fresh / max(first - started, 1e-9):,.0f} tokens/s; {count:,} generated{rate}; "
                    f"{piece.finish_reason}"
                )
    return text


def _prompts(prompt: str | None, source: str | None) -> tuple[list[Any], list[str]]:
    """(the prompts, how messages call each)."""
    if prompt is not None:
        return [prompt], ["PROMPT"]
    assert source is not None
    if not source.endswith(".jsonl"):
        return [read_whole(source)], [called(source)]
    found: list[Any] = []
    places: list[str] = []
    for where, value in read_objects(source):
        if isinstance(value, dict):
            value = value.get("messages", value.get("prompt"))
        if not isinstance(value, str | list):
            raise InputError(f"{where}: expected a string, or an object with 'prompt' (a string) or 'messages'")
        found.append(value)
        places.append(where)
    if not found:
        raise InputError(f"{source} holds no prompt")
    return found, places


def _messages(prompt: Any, system: str | None) -> list[dict[str, Any]]:
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return [*([{"role": "system", "content": system}] if system is not None else []), *messages]
