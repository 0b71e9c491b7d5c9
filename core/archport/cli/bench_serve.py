"""`archport bench-serve`: drive a running server and say how it answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from archport.contract import InputError

# Statuses of a server that works: an answer, or too much to do for one now.
_WORKING = {200, 429, 503}


class Kind(StrEnum):
    embed = "embed"
    chat = "chat"


def bench_serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a running server, such as http://127.0.0.1:8080.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Its name there; default: the first one.")] = None,
    kind: Annotated[Kind, typer.Option(help="embed: a text each; chat: a stream each.")] = Kind.embed,
    concurrency: Annotated[str, typer.Option(help="Callers at once, step by step.")] = "1,4,16,64",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each step.")] = 10.0,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second, at random, instead of callers in a loop.")
    ] = None,
    words: Annotated[str, typer.Option(metavar="LOW,HIGH", help="Words of a text or prompt.")] = "10,60",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a stream.")] = 64,
    seed: Annotated[int, typer.Option(help="Of texts and arrivals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One object per step.")] = False,
) -> None:
    """Drive a running server: requests and tokens a second, percentiles, and a plot. ARCHPORT_API_KEY is sent."""
    from archport.serving import driver

    target = driver.Target.of(url, os.environ.get("ARCHPORT_API_KEY", ""))
    low, high = _numbers(words, "words", 2)
    make = driver.texts(model, low, high) if kind is Kind.embed else driver.chats(model, low, high, max_tokens)
    steps = [0] if rate is not None else _numbers(concurrency, "concurrency")
    found: list[tuple[int, Any]] = []
    # What is made once is made before anything is timed, and a server that can't answer is told by two requests.
    first = driver.summary(driver.run(driver.closed_loop(target, make, 1, 30.0, seed - 1, most=2)))
    if not set(first.statuses) & _WORKING:
        raise InputError(_no_answer(url, first.statuses))
    for callers in steps:
        if rate is None:
            answers = driver.run(driver.closed_loop(target, make, callers, seconds, seed))
        else:
            answers = driver.run(driver.arrivals(target, make, rate, seconds, seed))
        made = driver.summary(answers)
        if not made.requests:
            raise InputError(_no_answer(url, made.statuses))
        found.append((callers, made))
        if as_json:
            row = {"concurrency": callers or None, "rate": rate, **asdict(made)}
            print(json.dumps({**row, "requests_per_second": made.rate, "tokens_per_second": made.token_rate}))
        else:
            _tell(callers, made, kind, first=len(found) == 1)
    if not as_json and len(found) > 1:
        _plot(found)


def _no_answer(url: str, statuses: Mapping[int, int]) -> str:
    """What a message says of a server none of whose answers is one; status 0 is a connection that failed."""
    if set(statuses) <= {0}:
        return f"url={url!r}: nothing answers there; start a server with `archport serve`, or name the one that runs"
    return f"url={url!r} answered none of {sum(statuses.values())} requests with 200; it said {dict(statuses)}"


def _numbers(text: str, name: str, count: int | None = None) -> list[int]:
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or (count is not None and len(found) != count) or found != sorted(found):
        what = "two numbers above 0, LOW,HIGH" if count else "ascending numbers above 0"
        raise InputError(f"{name}={text!r}; expected {what}")
    return found


def _tell(callers: int, made: Any, kind: Kind, *, first: bool) -> None:
    if first:
        streams = "  first p50      p99  gap p50      p99" if kind is Kind.chat else ""
        print(f"callers  requests/s   tokens/s      p50      p90      p99{streams}  other answers")
    spans = [made.latency] if kind is Kind.embed else [made.latency, made.first, made.gap]
    times = [spans[0].get(share, 0.0) for share in (50, 90, 99)]
    times += [span.get(share, 0.0) for span in spans[1:] for share in (50, 99)]
    others = {status: count for status, count in made.statuses.items() if status != 200}
    print(
        f"{callers or '-':>7}  {made.rate:>10.1f}  {made.token_rate:>9,.0f}"
        + "".join(f"  {1000 * each:>5.0f}ms" for each in times)
        + f"  {others or ''}"
    )
    sys.stdout.flush()


def _plot(found: list[tuple[int, Any]]) -> None:
    """Tokens a second by callers, as bars."""
    most = max(made.token_rate for _, made in found) or 1.0
    print("\ntokens a second")
    for callers, made in found:
        print(f"{callers:>7} {'█' * max(1, round(50 * made.token_rate / most))} {made.token_rate:,.0f}")
