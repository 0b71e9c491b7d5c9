"""Calls as JSON between <tool_call> and </tool_call>, as Hermes and Qwen write them."""

from __future__ import annotations

import json
import re
from typing import Any

from archport.serving.parsing.events import Arguments, Call, Content, Event, Holding, begun
from archport.serving.parsing.values import JsonValue, dumps, loads, sound

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])')


def called(text: str) -> tuple[str, str] | None:
    """(name, JSON of the arguments) of a call as JSON; None for what is none."""
    try:
        value = _value_of(text)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        given = next((value[key] for key in ("arguments", "parameters") if key in value), {})
        # Some models write the JSON of the arguments into a string.
        return sound(value["name"]), dumps(_value_of(given) if isinstance(given, str) else given)
    except ValueError:
        return None


def _value_of(text: str) -> Any:
    """The value of JSON, numbers that it does not have as texts; raises ValueError for what is none."""
    count, written = JsonValue().take(text)
    return loads(written + text[count:])


class Hermes(Holding):
    """Content, and calls in blocks. A block that is no call stays content."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = self._streams = False
        self._value = JsonValue()
        # Space in front of a block belongs to it, and so does what lies between two.
        self._space = ""
        self._blocks = 0

    def finish(self) -> list[Event]:
        """See `Parser`."""
        found = self._settled(last=True)
        if self._streams and (rest := self._value.finish()):
            found.append(Arguments(rest))
        elif self._inside and not self._streams:
            # Cut short before its name was known, unless only its end is missing.
            call = called(self._held.strip())
            found += self._whole(call) if call else [Content(self._space + OPEN + self._held)]
        elif not self._inside and (self._held.strip() or not self._blocks):
            text = self._space + self._held
            found += [Content(text)] if text else []
        self._held = self._space = ""
        return found

    def _settled(self, *, last: bool) -> list[Event]:
        found: list[Event] = []
        while True:
            before = (self._held, self._inside, self._streams)
            found += self._in_block() if self._inside else self._outside()
            if (self._held, self._inside, self._streams) == before:
                return found

    def _outside(self) -> list[Event]:
        at = self._held.find(OPEN)
        end = at if at >= 0 else len(self._held) - begun(self._held, (OPEN,))
        text = self._space + self._held[:end]
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._held = self._held[end:]
        if at >= 0:
            self._held = self._held[len(OPEN) :]
            self._inside, self._streams, self._value = True, False, JsonValue()
        return [Content(kept)] if kept else []

    def _in_block(self) -> list[Event]:
        if self._streams:
            return self._arguments()
        head = _HEAD.match(self._held)
        if head is not None:
            try:
                name = json.loads(head[1])
            except ValueError:
                name = head[1][1:-1]
            self._held, self._streams = self._held[head.end() :], True
            self._begin()
            return [Call(sound(name))]
        end = self._held.find(CLOSE)
        if end < 0:
            return []
        block, self._held = self._held[:end], self._held[end + len(CLOSE) :]
        self._inside = False
        call = called(block.strip())
        if call is None:
            text = self._space + OPEN + block + CLOSE
            self._space = ""
            return [Content(text)]
        return self._whole(call)

    def _arguments(self) -> list[Event]:
        found: list[Event] = []
        if not self._value.done:
            count, text = self._value.take(self._held)
            self._held = self._held[count:]
            found += [Arguments(text)] if text else []
        if self._value.done:
            end = self._held.find(CLOSE)
            if end >= 0:
                self._held = self._held[end + len(CLOSE) :]
                self._inside = self._streams = False
        return found

    def _whole(self, call: tuple[str, str]) -> list[Event]:
        self._begin()
        return [Call(call[0]), Arguments(call[1])]

    def _begin(self) -> None:
        self._blocks += 1
        self._space = ""
