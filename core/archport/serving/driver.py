"""Drives a running server: callers in a closed loop, or arrivals at random at a given rate; times every answer.

Speaks HTTP by itself over connections that are kept, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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


class Connection(asyncio.Protocol):
    """One connection that is kept. As little Python as there can be: what is measured shares its machine."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answered] | None = None
        self._unread = bytearray()
        self._read: Callable[[], bool] = self._head
        self._begun = 0.0
        self._status = self._tokens = self._length = self._made = 0
        self._moments: list[float] = []

    async def ask(self, path: str, body: Any) -> Answered:
        """One request and its whole answer, streamed or not; its status is 0 where the connection failed."""
        self._begun = time.perf_counter()
        try:
            if self._transport is None:
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: self, self.target.host, self.target.port)
            assert self._transport is not None
            data = json.dumps(body).encode()
            key = f"Authorization: Bearer {self.target.key}\r\n" if self.target.key else ""
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {self.target.host}:{self.target.port}\r\n"
                f"Content-Type: application/json\r\n{key}Content-Length: {len(data)}\r\n\r\n"
            )
            self._read, self._moments, self._made = self._head, [], 0
            self._answer = asyncio.get_running_loop().create_future()
            self._transport.write(head.encode() + data)
            return await self._answer
        except (OSError, ValueError):
            self.close()
            return Answered(self._begun, time.perf_counter() - self._begun, 0.0, 0, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._unread.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError())

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unread += data
        try:
            while self._answer is not None and not self._answer.done() and self._read():
                pass
        except (ValueError, IndexError) as error:
            assert self._answer is not None
            self._answer.set_exception(ValueError(*error.args))

    def _head(self) -> bool:
        """Read the head, where it is whole; so do the others with what they read."""
        end = self._unread.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = bytes(self._unread[:end]).lower().split(b"\r\n")
        del self._unread[: end + 4]
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        self._status, self._tokens = int(lines[0].split()[1]), int(headers.get(b"x-compute-tokens", 0))
        length = headers.get(b"content-length")
        self._length, self._read = (0, self._chunk) if length is None else (int(length), self._body)
        return True

    def _body(self) -> bool:
        if len(self._unread) < self._length:
            return False
        del self._unread[: self._length]
        now = time.perf_counter()
        self._done(now, now - self._begun)
        return True

    def _chunk(self) -> bool:
        end = self._unread.find(b"\r\n")
        if end < 0 or len(self._unread) < end + 4 + (size := int(self._unread[:end], 16)):
            return False
        chunk = bytes(self._unread[end + 2 : end + 2 + size])
        del self._unread[: end + 4 + size]
        now = time.perf_counter()
        if not size:
            self._done(now, self._moments[0] - self._begun if self._moments else 0.0)
            return True
        for line in chunk.split(b"\n"):
            if b'"content":"' in line and b'"content":""' not in line:
                self._moments.append(now)
                self._made += 1
        return True

    def _done(self, now: float, first: float) -> None:
        assert self._answer is not None
        gaps = tuple(after - before for before, after in pairwise(self._moments))
        self._answer.set_result(
            Answered(self._begun, now - self._begun, first, self._status, self._tokens, self._made, gaps)
        )

    def close(self) -> None:
        """Let go of the connection."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None


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
    """What a run was like: requests and tokens a second, statuses, and percentiles of seconds, those of refusals (429)
    apart."""

    requests: int
    seconds: float
    tokens: int
    made: int
    statuses: dict[int, int]
    latency: dict[int, float]
    first: dict[int, float]
    gap: dict[int, float]
    refused: dict[int, float]

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
        percentiles([each.seconds for each in found if each.status == 429]),
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
