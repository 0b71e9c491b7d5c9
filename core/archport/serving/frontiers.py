"""What fits where, of each served model: planned by `archport plan` in another process, one at a time, and remembered.

In another process, because planners are pure Python and would take turns with the thread that owns the device; with a
low priority, about a quarter of a core while requests need them all. Knows nothing of HTTP.
"""

from __future__ import annotations

import gzip
import logging
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from archport.serving.errors import Refused, unavailable

log = logging.getLogger("archport.serving")

# Some 20 KB each: a model has two for every profile at most.
REMEMBERED = 512
# Nobody waits for what nobody has asked for again after so many seconds.
PATIENCE = 15.0
# A planner that takes longer does not come to an end.
LONGEST = 900.0
_COMMAND = (
    sys.executable,
    "-c",
    "import os; getattr(os, 'nice', int)(5); from archport.cli import main; main()",
    "plan",
    "--points",
    "-",
)


@dataclass(frozen=True, slots=True)
class Question:
    """One model on one device.

    Args:
        model: its id.
        source: what `archport plan -m` takes.
        device: a profile; None for this machine.
        new_tokens: of each context; 0 plans embeddings.
        budget: bytes a plan may use; None for the device's own.
        loading: how the model was loaded, in flags of `archport plan`.
    """

    model: str
    source: str
    device: str | None = None
    new_tokens: int = 0
    budget: int | None = None
    loading: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Of `archport plan`."""
        more = _flags({"--device": self.device, "--budget": self.budget})
        return ["-m", self.source, "--new", str(self.new_tokens), *self.loading, *more]


def loading_flags(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags of `archport plan` that plan a model as `engine.load` loads it by these options."""
    own = _flags({f"--{name.replace('_', '-')}": options.get(name) for name in ("dtype", "max_context", "adapter")})
    apart: Mapping[str, object] = options.get("adapters") or {}
    return (*own, *(part for name, place in apart.items() for part in ("--adapters", f"{name}={place}")))


def _flags(given: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(part for flag, value in given.items() if value is not None for part in (flag, str(value)))


@dataclass(frozen=True, slots=True)
class Waiting:
    """An answer that is not there yet.

    Args:
        ahead: questions that are planned before it.
        seconds: since its planning began; None before that.
    """

    ahead: int
    seconds: float | None


class Frontiers:
    """Answers to questions, made in their order by a thread that waits for a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: OrderedDict[Question, bytes] = OrderedDict()
        self._failed: dict[Question, Refused] = {}
        # Question -> when it was asked last; the first one is being planned.
        self._waiting: OrderedDict[Question, float] = OrderedDict()
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0.0
        self._closed = False

    def ask(self, question: Question) -> bytes | Waiting:
        """The explorer's data as gzipped JSON, or how long it may take: whoever waits asks again.

        Raises:
            Refused: it could not be planned, or the server ends.
        """
        with self._lock:
            made = self._made.get(question)
            if made is not None:
                self._made.move_to_end(question)
                return made
            failure = self._failed.pop(question, None)
            if failure is not None:
                raise failure
            if self._closed:
                raise unavailable("shutting_down", "The server is ending and plans nothing more.")
            idle = not self._waiting
            self._waiting[question] = time.monotonic()
            if idle:
                threading.Thread(target=self._work, name="archport-plans", daemon=True).start()
            ahead = list(self._waiting).index(question)
            return Waiting(ahead, time.monotonic() - self._begun if self._process is not None and not ahead else None)

    def close(self) -> None:
        """Plan nothing more, and end what is being planned."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _work(self) -> None:
        """Plan until nobody waits."""
        with self._lock:
            question = self._next()
        while question is not None:
            try:
                made = self._planned(question)
            except Exception:
                made = None
                if not self._closed:
                    log.exception("what fits of %s could not be planned", question.model)
            # Together, so that whoever asks meanwhile knows whether this thread goes on.
            with self._lock:
                self._process = None
                del self._waiting[question]
                if made is not None:
                    self._made[question] = made
                    while len(self._made) > REMEMBERED:
                        self._made.popitem(last=False)
                else:
                    self._failed[question] = unavailable(
                        "plans_failed", "What fits could not be planned; the server's log says why.", 60
                    )
                question = self._next()

    def _next(self) -> Question | None:
        """The first question that somebody still waits for; the others are dropped."""
        recent = time.monotonic() - PATIENCE
        while self._waiting:
            question, asked = next(iter(self._waiting.items()))
            if asked >= recent and not self._closed:
                return question
            del self._waiting[question]
        return None

    def _planned(self, question: Question) -> bytes:
        """What a process tells; it has ended afterwards."""
        with self._lock:
            if self._closed:
                raise unavailable("shutting_down", "The server is ending and plans nothing more.")
            self._begun = time.monotonic()
            self._process = process = subprocess.Popen(
                [*_COMMAND, *question.arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        try:
            told, errors = process.communicate(timeout=LONGEST)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            raise RuntimeError(
                f"archport plan ended with {process.returncode}: {errors.decode(errors='replace')[-2000:]}"
            )
        data = orjson.loads(told)
        # The source may be a folder, which is nobody's business.
        data["title"] = question.model
        return gzip.compress(orjson.dumps(data), mtime=0)
