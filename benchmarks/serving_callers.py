"""Callers of a server in a process of their own, so that their processor time is neither the server's nor hidden.

Reads jobs from standard input, a line of JSON each, and answers each with a line; `Callers` is how a script has one.
Loads neither MLX nor a model.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archport.serving import driver


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are sent at once with those of other loads.

    Args:
        kind: `texts` of `low` to `high` words, `chats` of as many, or `mixed`: a tenth chats.
        texts: these instead, one after the other.
        callers: in a closed loop; 0 for arrivals at `rate` a second.
        most: requests; None for as many as there is time for.
        tokens: of a chat's answer.
    """

    port: int
    model: str | None
    kind: str = "texts"
    low: int = 8
    high: int = 78
    texts: tuple[str, ...] = ()
    callers: int = 64
    rate: float = 0.0
    seconds: float = 3600.0
    most: int | None = None
    tokens: int = 100
    chat: str | None = None
    seed: int = 0

    def requests(self) -> driver.Make:
        """What makes its requests."""
        if self.texts:
            left = iter(self.texts)
            more = {"model": self.model, "encoding_format": "base64"}
            return lambda chance: ("/v1/embeddings", {"input": next(left), **more})
        texts = driver.texts(self.model, self.low, self.high)
        chats = driver.chats(self.chat or self.model, self.low, self.high, self.tokens)
        kinds: dict[str, driver.Make] = {"texts": texts, "chats": chats}

        def mixed(chance: random.Random) -> tuple[str, Any]:
            return (chats if chance.random() < 0.1 else texts)(chance)

        return kinds.get(self.kind, mixed)

    def work(self) -> Awaitable[list[driver.Answered]]:
        """Send them."""
        target, make = driver.Target("127.0.0.1", self.port), self.requests()
        if self.rate:
            return driver.arrivals(target, make, self.rate, self.seconds, self.seed)
        most = len(self.texts) or self.most
        return driver.closed_loop(target, make, self.callers, self.seconds, self.seed, most)


class Callers:
    """The process; a context that ends it."""

    def __enter__(self) -> Callers:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def send(self, *loads: Load) -> tuple[list[driver.Summary], float]:
        """(what each load was like, seconds of processor time of all callers)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(each) for each in loads]) + "\n")
        made, processor = json.loads(self._process.stdout.readline())
        return [driver.Summary(**{**each, **_numbered(each)}) for each in made], processor


def _numbered(summary: dict[str, Any]) -> dict[str, Any]:
    """Percentiles and statuses by number, which JSON's keys are not."""
    names = ("statuses", "latency", "first", "gap", "refused")
    return {name: {int(key): value for key, value in summary[name].items()} for name in names}


def processor_seconds(pid: int) -> float:
    """Processor time that a process and its threads have had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _jobs() -> Iterator[list[Load]]:
    for line in sys.stdin:
        yield [Load(**{**each, "texts": tuple(each["texts"])}) for each in json.loads(line)]


def main() -> None:
    for loads in _jobs():

        async def all_of(loads: list[Load] = loads) -> list[list[driver.Answered]]:
            return await asyncio.gather(*(each.work() for each in loads))

        begin = time.process_time()
        answers = asyncio.run(all_of())
        used = time.process_time() - begin
        print(json.dumps([[asdict(driver.summary(each)) for each in answers], used]), flush=True)


if __name__ == "__main__":
    main()
