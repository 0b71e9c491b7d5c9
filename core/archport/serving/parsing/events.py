"""What parsers tell, and how they hold back text that may yet become a marker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the thinking before it."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool begins; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON of the latest call's arguments."""

    text: str


Event = Content | Reasoning | Call | Arguments


class Parser(Protocol):
    """Takes text piece by piece."""

    def feed(self, text: str) -> list[Event]:
        """What this text settles."""
        ...

    def finish(self) -> list[Event]:
        """The rest, when no text comes any more."""
        ...


class Plain:
    """All text is content."""

    def feed(self, text: str) -> list[Event]:
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        return []


class Holding:
    """A parser that holds back what may yet become a marker: in `_held`, text that has come and is not settled."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[Event]:
        """See `Parser`."""
        self._held += text
        return self._settled(last=False)

    def _settled(self, *, last: bool) -> list[Event]:
        """What the held text settles; all that it can where it is the last."""
        raise NotImplementedError


def begun(text: str, markers: Iterable[str]) -> int:
    """Characters at the end of a text that may be the beginning of a marker."""
    most = 0
    for marker in markers:
        for count in range(min(len(marker) - 1, len(text)), most, -1):
            if text.endswith(marker[:count]):
                most = count
                break
    return most


def first_of(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """Where the first marker stands in a text, and which it is."""
    places = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    return min(places, default=None)


def merged(events: Iterable[Event]) -> list[Event]:
    """The same with neighbours of one kind as one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Content | Reasoning | Arguments) and isinstance(last, type(event)):
            found[-1] = type(event)(last.text + event.text)
        else:
            found.append(event)
    return found
