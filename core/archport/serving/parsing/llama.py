"""Calls as Llama 3 writes them: the whole answer is JSON with a name and parameters, perhaps after <|python_tag|>."""

from __future__ import annotations

from archport.serving.parsing.events import Arguments, Call, Content, Event, Holding
from archport.serving.parsing.hermes import called
from archport.serving.parsing.values import JsonValue

TAG = "<|python_tag|>"


class Llama(Holding):
    """Content, unless the answer begins like a call; several calls are separated by semicolons."""

    def __init__(self) -> None:
        super().__init__()
        self._state = "before"
        self._value = JsonValue()
        self._seen = 0

    def finish(self) -> list[Event]:
        """See `Parser`."""
        found = self._settled(last=True)
        # Also what began like a call, and is none.
        if self._held and (self._state != "calls" or self._held.strip()):
            found.append(Content(self._held))
        self._held = ""
        return found

    def _settled(self, *, last: bool) -> list[Event]:
        found: list[Event] = []
        if self._state == "before":
            stripped = self._held.lstrip()
            if stripped.startswith(TAG):
                self._held, self._state = stripped[len(TAG) :], "calls"
            elif stripped.startswith("{"):
                self._held, self._state = stripped, "calls"
            elif stripped and (last or not TAG.startswith(stripped)):
                self._state = "content"
        if self._state == "content":
            text, self._held = self._held, ""
            return [Content(text)] if text else []
        while self._state == "calls":
            if not self._seen:
                self._held = self._held.lstrip(" \n;" if found or last else " \n")
            more = self._held[self._seen :]
            if not more:
                return found
            if not self._seen and not self._held.startswith("{"):
                if self._held.startswith(";"):
                    self._held = self._held[1:]
                    continue
                self._state = "content"
                return [*found, *self._settled(last=last)]
            self._seen += self._value.take(more)[0]
            if not self._value.done:
                return found
            block, self._held = self._held[: self._seen], self._held[self._seen :]
            self._seen, self._value = 0, JsonValue()
            call = called(block)
            if call is None:
                self._held, self._state = block + self._held, "content"
                return [*found, *self._settled(last=last)]
            found += [Call(call[0]), Arguments(call[1])]
        return found
