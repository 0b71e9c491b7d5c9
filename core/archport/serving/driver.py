"""Drives a running server: callers in a closed loop, or arrivals at random at a given rate; times every answer.

Speaks HTTP by itself over connections that are kept, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from archport.contract import InputError

_TEXT = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do"""
WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: when it began, seconds to its answer and to its first event, its status, and tokens.

    Args:
        tokens: computed for it, as the server says.
        made: generated for it.
        gaps: seconds between events of a stream.
    """

    begun: float
    seconds: float
    first: float
    status: int
    tokens: int
    made: int = 0
    gaps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Args:
        key: API key; "" for none.
    """

    host: str
    port: int
    key: str = ""

    @classmethod
    def of(cls, url: str, key: str = "") -> Target:
        """The target of an address such as http://127.0.0.1:8080; raises InputError for another kind."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise InputError(f"url={url!r}; expected http://HOST:PORT")
        return cls(parts.hostname, parts.port or 80, key)


@dataclass(slots=True)
class Connection:
    """One connection that is kept."""

    target: Target
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, repr=False)

    async def ask(self, path: str, body: Any) -> Answered:
        """One request and its whole answer, streamed or not."""
        begin = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.target.host, self.target.port, limit=1 << 26)
        reader, writer = self._streams
        data = json.dumps(body).encode()
        key = f"Authorization: Bearer {self.target.key}\r\n" if self.target.key else ""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.target.host}:{self.target.port}\r\nContent-Type: application/json\r\n"
            f"{key}Content-Length: {len(data)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + data)
            await writer.drain()
            return await self._answer(reader, begin)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return Answered(begin, time.perf_counter() - begin, 0.0, 0, 0)

    async def _answer(self, reader: asyncio.StreamReader, begin: float) -> Answered:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        tokens = int(headers.get("x-compute-tokens", 0))
        if "content-length" in headers:
            await reader.readexactly(int(headers["content-length"]))
            now = time.perf_counter()
            return Answered(begin, now - begin, now - begin, status, tokens)
        moments: list[float] = []
        made = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunk = await reader.readexactly(size + 2)
            for line in chunk.split(b"\n"):
                if b'"content":"' in line and b'"content":""' not in line:
                    moments.append(time.perf_counter())
                    made += 1
        await reader.readuntil(b"\r\n")
        gaps = tuple(after - before for before, after in pairwise(moments))
        first = moments[0] - begin if moments else 0.0
        return Answered(begin, time.perf_counter() - begin, first, status, tokens, made, gaps)

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


Make = Callable[[random.Random], tuple[str, Any]]


def texts(model: str | None, low: int, high: int) -> Make:
    """Requests of one text each, of `low` to `high` words."""

    def make(chance: random.Random) -> tuple[str, Any]:
        text = " ".join(chance.choices(WORDS, k=chance.randint(low, high)))
        return "/v1/embeddings", {"input": text, "encoding_format": "base64", **({"model": model} if model else {})}

    return make


def chats(model: str | None, low: int, high: int, most: int) -> Make:
    """Streams of up to `most` tokens after prompts of `low` to `high` words."""

    def make(chance: random.Random) -> tuple[str, Any]:
        text = " ".join(chance.choices(WORDS, k=chance.randint(low, high)))
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": most, "stream": True, "temperature": 0}
        return "/v1/chat/completions", {**body, **({"model": model} if model else {})}

    return make


async def closed_loop(
    target: Target, make: Make, callers: int, seconds: float, seed: int = 0, most: int | None = None
) -> list[Answered]:
    """Callers that ask again as soon as they are answered.

    Args:
        most: requests of all callers together; None: as many as there is time for.
    """
    found: list[Answered] = []
    until, left = time.perf_counter() + seconds, [most if most is not None else 1 << 60]

    async def caller(number: int) -> None:
        chance, connection = random.Random(f"{seed} {number}"), Connection(target)
        while time.perf_counter() < until and left[0] > 0:
            left[0] -= 1
            found.append(await connection.ask(*make(chance)))
        connection.close()

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return found


async def arrivals(target: Target, make: Make, rate: float, seconds: float, seed: int = 0) -> list[Answered]:
    """Requests that arrive at random (Poisson), `rate` a second, whether or not others are answered."""
    chance = random.Random(seed)
    free: list[Connection] = []
    found: list[Answered] = []

    async def one(path: str, body: Any) -> None:
        connection = free.pop() if free else Connection(target)
        found.append(await connection.ask(path, body))
        free.append(connection)

    waiting: set[asyncio.Task[None]] = set()
    begin = at = time.perf_counter()
    while at - begin < seconds:
        at += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        task = asyncio.ensure_future(one(*make(chance)))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    if waiting:
        await asyncio.wait(waiting)
    for connection in free:
        connection.close()
    return found


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run was like: requests and tokens a second, percentiles of seconds, and statuses."""

    requests: int
    seconds: float
    tokens: int
    made: int
    statuses: dict[int, int]
    latency: dict[int, float]
    first: dict[int, float]
    gap: dict[int, float]

    @property
    def rate(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def token_rate(self) -> float:
        return (self.tokens + self.made) / self.seconds if self.seconds else 0.0


def summary(found: Sequence[Answered]) -> Summary:
    """Of all answers, from the first one's beginning to the last one's end."""
    good = [each for each in found if each.status == 200]
    begin = min((each.begun for each in found), default=0.0)
    end = max((each.begun + each.seconds for each in found), default=0.0)
    statuses: dict[int, int] = {}
    for each in found:
        statuses[each.status] = statuses.get(each.status, 0) + 1
    return Summary(
        len(good),
        end - begin,
        sum(each.tokens for each in good),
        sum(each.made for each in good),
        statuses,
        percentiles([each.seconds for each in good]),
        percentiles([each.first for each in good]),
        percentiles([gap for each in good for gap in each.gaps]),
    )


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """The 50th, 90th and 99th of some values; none of none."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {share: ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] for share in (50, 90, 99)}


def run(work: Awaitable[Any]) -> Any:
    """The result of what runs in an event loop of its own."""

    async def main() -> Any:
        return await work

    return asyncio.run(main())
