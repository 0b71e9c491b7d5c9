"""Reasoning between <think> and </think>, in front of what another parser reads."""

from __future__ import annotations

from archport.serving.parsing.events import Event, Holding, Parser, Reasoning, begun

OPEN, CLOSE = "<think>", "</think>"


class Thinking(Holding):
    """Splits the thinking off.

    Args:
        rest: parses what follows it.
        opened: whether the prompt has opened it already.
    """

    def __init__(self, rest: Parser, *, opened: bool = False) -> None:
        super().__init__()
        self._rest = rest
        # before: nothing but space has come; inside: thinking; space: just after it; after: the rest.
        self._state = "inside" if opened else "before"
        self._said = False

    def finish(self) -> list[Event]:
        """See `Parser`."""
        return [*self._settled(last=True), *self._rest.finish()]

    def _settled(self, *, last: bool) -> list[Event]:
        found: list[Event] = []
        if self._state == "before":
            stripped = self._held.lstrip()
            if stripped.startswith(OPEN):
                self._held, self._state = stripped[len(OPEN) :], "inside"
            elif last or (stripped and not OPEN.startswith(stripped)):
                self._state = "after"
            else:
                return found
        if self._state == "inside":
            at = self._held.find(CLOSE)
            if at >= 0:
                found += self._reasoning(self._held[:at].rstrip())
                self._held, self._state = self._held[at + len(CLOSE) :], "space"
            else:
                # Space at its end is no part of it, nor is what may yet close it.
                kept = 0 if last else begun(self._held, (CLOSE,))
                text = self._held[: len(self._held) - kept]
                text = text.rstrip()
                self._held = self._held[len(text) :]
                found += self._reasoning(text)
                return found
        if self._state == "space":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "after"
        if self._state == "after" and self._held:
            text, self._held = self._held, ""
            found += self._rest.feed(text)
        return found

    def _reasoning(self, text: str) -> list[Event]:
        if not self._said:
            text = text.lstrip()
        self._said = self._said or bool(text)
        return [Reasoning(text)] if text else []
