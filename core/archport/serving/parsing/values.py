"""JSON as models write it: where a value ends, and numbers that JSON does not have, which become texts."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LIKE_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)|[+.0-9-].*", re.IGNORECASE)
# What numbers and the words of JSON are made of.
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._")


class JsonValue:
    """Follows one JSON object or array to its end, and writes its numbers so that every reader takes them.

    Text that begins otherwise has no end, and is written as it is.

    Attributes:
        done: whether its end has come.
    """

    def __init__(self) -> None:
        self._depth, self._string, self._escaped, self._begun, self._plain = 0, False, False, False, False
        # A word that may go on.
        self._word = ""
        self.done = False

    def take(self, text: str) -> tuple[int, str]:
        """(characters of a text that belong to the value, what is written of it so far)."""
        if not self._begun:
            first = text.lstrip()[:1]
            self._begun, self._plain = bool(first), bool(first) and first not in "{["
        if self._plain or self.done:
            return len(text), text
        written: list[str] = []
        for at, character in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._string = False
            elif character in _WORD:
                self._word += character
                continue
            else:
                written.append(self._settled())
                if character == '"':
                    self._string = True
                elif character in "{[":
                    self._depth += 1
                elif character in "}]":
                    self._depth -= 1
            written.append(character)
            if self._depth == 0 and character in "}]" and not self._string:
                self.done = True
                return at + 1, "".join(written)
        return len(text), "".join(written)

    def finish(self) -> str:
        """The rest of a value that was cut short."""
        word, self._word = self._word, ""
        return word

    def _settled(self) -> str:
        word, self._word = self._word, ""
        return json.dumps(word) if _LIKE_NUMBER.fullmatch(word) and not _is_number(word) else word


def loads(text: str) -> Any:
    """The value of JSON.

    Raises:
        ValueError: it is none, is nested too deeply, or holds a number that JSON does not have.
    """
    try:
        return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dumps(value: Any) -> str:
    """JSON of a value, with its letters as they are where UTF-8 has them all."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text == sound(text) else json.dumps(value)


def sound(text: str) -> str:
    """A text without halves of surrogate pairs, which no answer can hold."""
    return text.encode("utf-8", "replace").decode()


def _is_number(word: str) -> bool:
    return bool(_NUMBER.fullmatch(word)) and math.isfinite(float(word))


def _number(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(word)
    return value


def _whole(word: str) -> int:
    # Above what a double holds most readers have infinity.
    _number(word)
    return int(word)
