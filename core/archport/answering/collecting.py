"""Rows that can't be answered, set aside with their errors, so that one bad row does not fail its neighbours.

What a row's fault is nobody has to say: rows that fail together are tried apart, until the one that fails is alone.
Faults of a plugin or of the machine are no row's, and are raised.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from archport.contract import AdmissionRefused, ArchportError, InputError, NonFiniteOutput
from archport.device.progress import Counter, counted, nothing_shown

Raise = Literal["raise"]
Collect = Literal["collect"]
Errors = Literal["raise", "collect"]

R = TypeVar("R")
A = TypeVar("A")

FAULTS = (InputError, AdmissionRefused, NonFiniteOutput)
# Texts after the last answered one among which the one that failed is looked for first.
_NEAR = 4096
_END = object()
# How messages name the first of the rows that a call was handed, and any of them.
_FIRST = re.compile(r"\b(text|document|input|row) 0\b")
_ROW = re.compile(r"\b(text|input) (\d+)\b")


@dataclass(frozen=True, slots=True)
class Collected(Generic[R]):
    """What a call with `errors="collect"` answers.

    Args:
        results: what the call answers without it, of the rows that could be answered alone.
        rows: index of each result's row in what the caller gave.
        errors: row -> why it has no result.
    """

    results: R
    rows: tuple[int, ...]
    errors: dict[int, ArchportError] = field(default_factory=dict[int, ArchportError])


def apart(
    rows: Sequence[Any], run: Callable[[Sequence[Any]], Iterable[A]], what: str, first: int = 0
) -> tuple[dict[int, A], dict[int, ArchportError]]:
    """Answers and errors by row.

    Args:
        run: answers rows, or fails for any of them.
        what, first: how messages name a row ("text"), and the index of the first one.
    """
    found: dict[int, A] = {}
    errors: dict[int, ArchportError] = {}
    waiting = [(0, len(rows))] if rows else []
    while waiting:
        begin, end = waiting.pop()
        try:
            found.update(enumerate(run(rows[begin:end]), first + begin))
        except FAULTS as error:
            if end - begin == 1:
                errors[first + begin] = _alone(error, what, first + begin)
            else:
                half = (begin + end) // 2
                waiting += [(half, end), (begin, half)]
    return found, errors


def collected(rows: Sequence[Any], run: Callable[[Sequence[Any]], Iterable[A]], what: str) -> Collected[list[A]]:
    """What `run` answers of the rows that can be answered; arguments as `apart` takes them.

    Raises:
        InputError: for what is wrong with the call, which is wrong without rows, too.
    """
    run([])
    answers, errors = apart(rows, run, what)
    return Collected(list(answers.values()), tuple(answers), errors)


def rows_together(
    run: Callable[[Sequence[Any], Counter], list[A]],
    check: Callable[[], object],
    texts: Sequence[Any],
    together: Callable[[Sequence[A]], R],
    *,
    progress: bool | Counter,
    errors: Errors,
) -> R | Collected[R]:
    """What a call answers whose rows have a result each: all together, or with `collect` those that have one.

    Args:
        run: answers rows, and tells of them.
        check: raises for a call that is wrong without texts, too.
    """
    with counted("embedding", len(texts), shown=progress) as done:
        if errors == "raise":
            return together(run(texts, done))
        check()
        # Some of fewer texts have been counted.
        made = collected(texts, lambda some: run(some, done if len(some) == len(texts) else nothing_shown), "text")
    return Collected(together(made.results), made.rows, made.errors)


def vectors_apart(
    run: Callable[[Iterable[Any], Callable[[np.ndarray], None]], None],
    texts: Iterable[Any],
    width: int,
    done: Counter = nothing_shown,
) -> Collected[np.ndarray]:
    """Vectors (n, D) of the texts that have one, in their order; a stream is held only where it is not answered yet.

    Args:
        run: embeds texts and hands consecutive vectors over as they are done.
        width: D, for no text at all.
        done: told of every text that is answered or refused.
    """
    parts: list[np.ndarray] = []
    kept: list[int] = []
    errors: dict[int, ArchportError] = {}
    source, count = _Source(texts), 0

    def take(vectors: np.ndarray) -> None:
        nonlocal count
        parts.append(vectors)
        kept.extend(range(count, count + len(vectors)))
        count += len(vectors)
        source.drop(len(vectors))
        done(len(vectors))

    def alone(some: Sequence[Any]) -> list[np.ndarray]:
        own: list[np.ndarray] = []
        run(some, own.append)
        return [vector for part in own for vector in part]

    while True:
        try:
            run(source.rest(), take)
            break
        except FAULTS:
            near = source.near()
            if source.broken or not near:
                raise
            found, faults = apart(near, alone, "text", count)
            parts += [vector[None] for vector in found.values()]
            kept += found
            errors |= faults
            count += len(near)
            source.drop(len(near))
            done(len(near))
    results = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
    return Collected(results, tuple(kept), errors)


class _Source:
    """Texts that are still to be answered; those of an iterator are held from when they are read."""

    def __init__(self, texts: Iterable[Any]) -> None:
        self._sequence = texts if isinstance(texts, Sequence) else None
        self._left, self._at = iter(texts), 0
        self._held: deque[Any] = deque()
        # Whether the texts themselves can't be read on, which is no row's fault.
        self.broken = False

    def rest(self) -> Iterable[Any]:
        """All texts without an answer, a sequence where that was given."""
        if self._sequence is not None:
            return self._sequence[self._at :]
        return self._reading()

    def _reading(self) -> Iterator[Any]:
        while True:
            try:
                text = next(self._left, _END)
            except BaseException:
                self.broken = True
                raise
            if text is _END:
                return
            self._held.append(text)
            yield text

    def near(self) -> Sequence[Any]:
        """The next texts, the one that failed among them or after them."""
        if self._sequence is not None:
            return self._sequence[self._at : self._at + _NEAR]
        return list(self._held)

    def drop(self, count: int) -> None:
        """Forget the next texts."""
        self._at += count
        if self._sequence is None:
            for _ in range(count):
                self._held.popleft()


E = TypeVar("E", bound=ArchportError)


def renumbered(error: E, first: int) -> E:
    """An error that names a row of a window, by the row's number in the stream whose row `first` begins the window."""
    if first:
        message = _ROW.sub(lambda found: f"{found[1]} {int(found[2]) + first}", str(error), count=1)
        error.args = (message, *error.args[1:])
    return error


def _alone(error: ArchportError, what: str, row: int) -> ArchportError:
    """The error of a row that ran by itself, under its own number, and without the frames that hold its arrays."""
    message, known = _FIRST.subn(rf"\g<1> {row}", str(error), count=1)
    error.args = (message if known else f"{what} {row}: {message}", *error.args[1:])
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__cause__ or chained.__context__
    return error
