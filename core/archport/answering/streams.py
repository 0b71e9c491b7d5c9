"""A stream of texts, answered window by window: what is held is one window, however many texts there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np

from archport.answering.collecting import FAULTS, Collected, renumbered
from archport.contract import InputError
from archport.contract.errors import shown
from archport.device.progress import counted
from archport.reading.texts import iterable

# Characters of a window, whatever number of texts was asked for.
MOST_CHARACTERS = 1 << 25


def windows(texts: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Consecutive texts, at most `most` at a time, and fewer where they are long."""
    some: list[Any] = []
    characters = 0
    for text in texts:
        some.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(some) >= most or characters >= MOST_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


def streamed(
    embed: Callable[..., Any], texts: Any, window: int, options: dict[str, Any], *, progress: bool
) -> Iterator[tuple[int, Any]]:
    """What `Model.stream` answers; nothing is under way on the device between two windows.

    Args:
        embed: answers the texts of a window.
    """
    if window < 1:
        raise InputError(f"window={shown(window)}; expected a positive number of texts")
    if options.get("precision") in ("int8", "uint8"):
        raise InputError("precision='int8' and 'uint8' are calibrated over all vectors, which a stream never holds")
    # What is wrong with the options is wrong without texts, too.
    embed([], **{**options, "errors": "collect"})
    items = [texts] if isinstance(texts, str | Mapping) else iterable(texts)

    def answers() -> Iterator[tuple[int, Any]]:
        total = len(items) if isinstance(items, Sized) else None
        with counted("embedding", total, shown=progress) as done:
            first = 0
            for some in windows(items, window):
                yield first, _numbered(embed, some, first, {**options, "progress": done})
                first += len(some)

    return answers()


def _numbered(embed: Callable[..., Any], some: list[Any], first: int, options: dict[str, Any]) -> Any:
    """What `embed` answers of a window whose first text has the index `first`."""
    try:
        made: np.ndarray | Collected[np.ndarray] = embed(some, **options)
    except FAULTS as error:
        raise renumbered(error, first) from error.__cause__
    if not isinstance(made, Collected):
        return made
    rows = tuple(first + row for row in made.rows)
    return replace(made, rows=rows, errors={first + at: renumbered(error, first) for at, error in made.errors.items()})
