"""Channels as gpt-oss writes them: analysis is reasoning, final is content, and commentary to a function is a call."""

from __future__ import annotations

import re

from archport.serving.parsing.events import Arguments, Call, Content, Event, Holding, Reasoning, begun, first_of
from archport.serving.parsing.values import JsonValue

# Special tokens that have to stay in the text.
MARKERS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_CALLED = re.compile(r"to=(?:functions\.)?([^\s<]+)")


class Harmony(Holding):
    """Messages one after the other, each with a head that says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self._kind: str | None = None
        # The prompt ends where the assistant's first head begins.
        self._heads = True
        self._called = False
        self._value = JsonValue()

    def finish(self) -> list[Event]:
        """See `Parser`."""
        found = self._settled(last=True)
        if self._kind is None and self._held.strip() and "<|" not in self._held:
            # Text without any head, of a model that was not asked for one.
            found.append(Content(self._held))
        elif self._kind == "call":
            found += self._end_of_call()
        self._held = ""
        return found

    def _settled(self, *, last: bool) -> list[Event]:
        found: list[Event] = []
        while True:
            if self._kind is None:
                at = self._held.find("<|message|>")
                if at < 0:
                    return found
                head, self._held = self._held[:at], self._held[at + len("<|message|>") :]
                found += self._begin(head)
            else:
                place = first_of(self._held, _ENDS)
                end = place[0] if place else len(self._held) - (0 if last else begun(self._held, _ENDS))
                text, self._held = self._held[:end], self._held[end:]
                found += self._told(text)
                if place is None:
                    return found
                if self._kind == "call":
                    found += self._end_of_call()
                self._held, self._kind = self._held[len(place[1]) :], None

    def _begin(self, head: str) -> list[Event]:
        _, _, channel = head.rpartition("<|channel|>")
        function = _CALLED.search(head)
        self._called, self._value = False, JsonValue()
        if function is not None:
            self._kind = "call"
            return [Call(function[1])]
        self._kind = "reasoning" if channel.strip().startswith("analysis") else "content"
        return []

    def _told(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._kind == "call":
            self._called = True
            _, written = self._value.take(text)
            return [Arguments(written)] if written else []
        return [Reasoning(text) if self._kind == "reasoning" else Content(text)]

    def _end_of_call(self) -> list[Event]:
        rest = self._value.finish() if self._called else "{}"
        return [Arguments(rest)] if rest else []
