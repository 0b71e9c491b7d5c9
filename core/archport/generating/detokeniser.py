"""Token ids to text as they come: what is given is never taken back, and all of it is what decoding at once gives.

A decoder of `tokenizers` is a chain of steps over a list of tokens. Each is taken here token by token: a step passes on
what no later token can change and holds the rest, so the work per token does not grow with the text. Knows nothing of
rows, stop strings or how ids are made.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tokenizers import Regex, Tokenizer, decoders

BYTE = re.compile(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>")
UNKNOWN = "\ufffd"


class Step(Protocol):
    """One step of a decoder. Its state is in values that are replaced, never changed, so a shallow copy is a copy."""

    def add(self, token: str) -> list[str]:
        """What is settled once this token has come: tokens, or pieces of one where a step before joined them all."""
        ...

    def finish(self) -> list[str]:
        """The rest, when no token comes any more."""
        ...


class Detokeniser:
    """Ids to text, piece by piece, special tokens skipped.

    Args:
        tokenizer: its decoder says what ids mean.
        special: what `special_tokens` answers for it, where several detokenisers share that.
    """

    def __init__(self, tokenizer: Tokenizer, special: frozenset[str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer) if special is None else special
        self._steps = steps_of(tokenizer)

    def add(self, token: int) -> str:
        """The text that this token settles; "" while later tokens may change it."""
        text = self._tokenizer.id_to_token(token)
        if text is None or text in self._special:
            return ""
        return "".join(_through(self._steps, [text]))

    def tail(self) -> str:
        """The text that would follow if no token came any more, without characters that are incomplete."""
        return _finished([copy.copy(step) for step in self._steps]).rstrip(UNKNOWN)

    def finish(self) -> str:
        """The rest of the text."""
        return _finished(self._steps)


def special_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """Tokens that are no text."""
    return frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


def steps_of(tokenizer: Tokenizer) -> list[Step]:
    """The steps of a tokenizer's decoder, in their order; a chain that none can be made of waits for the end."""
    decoder = tokenizer.decoder
    if decoder is None:
        return [_Spaced()]
    try:
        told: dict[str, Any] = json.loads(decoder.__getstate__())
    except Exception:  # a decoder written in Python has no such state
        return [_AtOnce(decoder)]
    steps: list[Step] = []
    joined = False
    for each in _flat(told):
        step = _joined_step(each) if joined else _step(each)
        if step is None:
            return [_AtOnce(decoder)]
        steps.append(step)
        joined = joined or each["type"] in ("Fuse", "ByteLevel")
    return steps


def _flat(told: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if told["type"] != "Sequence":
        return [told]
    return [step for part in told["decoders"] for step in _flat(part)]


def _step(told: dict[str, Any]) -> Step | None:
    """A step over a list of tokens."""
    own = {key: value for key, value in told.items() if key != "type"}
    match told["type"]:
        case "ByteLevel":
            return _ByteLevel()
        case "ByteFallback":
            return _ByteFallback()
        case "Fuse":
            return _Passing()
        case "WordPiece":
            return _Ordered(decoders.WordPiece(**own))
        case "Metaspace":
            return _Ordered(decoders.Metaspace(**own))
        case "BPEDecoder":
            return _Suffixed(decoders.BPEDecoder(**own))
        case "CTC":
            return _Distinct(decoders.CTC(**own))
        case "Strip":
            return _Single(decoders.Strip(own["content"], own["start"], own["stop"]))
        case "Replace":
            return _Single(_replace(own))
        case _:
            return None


def _joined_step(told: dict[str, Any]) -> Step | None:
    """A step over the one token that a step before has made of all; its pieces come one after the other."""
    if told["type"] == "Fuse":
        return _Passing()
    if told["type"] == "Strip" and told["stop"] == 0:
        return _LeftStripped(told["content"], told["start"])
    if told["type"] == "Replace" and told["pattern"].get("String"):
        return _Replaced(told["pattern"]["String"], told["content"])
    return None


def _replace(told: dict[str, Any]) -> decoders.Decoder:
    pattern = told["pattern"]
    return decoders.Replace(pattern["String"] if "String" in pattern else Regex(pattern["Regex"]), told["content"])


def _through(steps: Sequence[Step], tokens: list[str]) -> list[str]:
    for step in steps:
        if not tokens:
            break
        tokens = [passed for token in tokens for passed in step.add(token)]
    return tokens


def _finished(steps: Sequence[Step]) -> str:
    return "".join(text for index, step in enumerate(steps) for text in _through(steps[index + 1 :], step.finish()))


class _Passing:
    """Every token as it is."""

    def add(self, token: str) -> list[str]:
        return [token]

    def finish(self) -> list[str]:
        return []


class _Single(_Passing):
    """A decoder that looks at each token alone."""

    def __init__(self, decoder: decoders.Decoder) -> None:
        self._decoder = decoder

    def add(self, token: str) -> list[str]:
        return [self._decoder.decode([token])]


class _Ordered(_Passing):
    """A decoder that looks at each token alone, and treats the first one differently."""

    def __init__(self, decoder: decoders.Decoder) -> None:
        self._decoder, self._first = decoder, True

    def add(self, token: str) -> list[str]:
        before = [] if self._first else [""]
        self._first = False
        return [self._decoder.decode([*before, token])]


class _Spaced(_Passing):
    """No decoder: spaces between tokens."""

    def __init__(self) -> None:
        self._first = True

    def add(self, token: str) -> list[str]:
        space, self._first = "" if self._first else " ", False
        return [space + token]


class _Distinct(_Passing):
    """A decoder that drops a token which equals the one before, and those of which nothing is left."""

    def __init__(self, decoder: decoders.Decoder) -> None:
        self._decoder, self._last = decoder, None

    def add(self, token: str) -> list[str]:
        again, self._last = token == self._last, token
        text = "" if again else self._decoder.decode([token])
        return [text] if text else []


class _Suffixed:
    """A decoder that treats the last token differently: each waits for the next one."""

    def __init__(self, decoder: decoders.Decoder) -> None:
        self._decoder = decoder
        self._last: str | None = None

    def add(self, token: str) -> list[str]:
        last, self._last = self._last, token
        return [] if last is None else [self._decoder.decode([last, ""])]

    def finish(self) -> list[str]:
        last, self._last = self._last, None
        return [] if last is None else [self._decoder.decode([last])]


class _ByteLevel:
    """Letters that stand for bytes; a character waits until it is complete, or can't become one."""

    def __init__(self) -> None:
        self._held = b""

    def add(self, token: str) -> list[str]:
        try:
            raw = bytes([_BYTES[letter] for letter in token])
        except KeyError:
            # A token with any other letter is text.
            raw = token.encode()
        text, used = codecs.utf_8_decode(self._held + raw, "replace", False)
        self._held = (self._held + raw)[used:]
        return [text] if text else []

    def finish(self) -> list[str]:
        held, self._held = self._held, b""
        return [held.decode("utf-8", "replace")] if held else []


class _ByteFallback:
    """Tokens like <0x0A>: one run of them is text when all of it is, and else nothing but unknown characters."""

    def __init__(self) -> None:
        self._run = b""

    def add(self, token: str) -> list[str]:
        byte = BYTE.fullmatch(token)
        if byte is None:
            return [*self.finish(), token]
        self._run += bytes([int(byte[1], 16)])
        return []

    def finish(self) -> list[str]:
        run, self._run = self._run, b""
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return [UNKNOWN] * len(run)


class _LeftStripped(_Passing):
    """The joined text without up to so many of a character in front."""

    def __init__(self, content: str, most: int) -> None:
        self._content, self._left = content, most

    def add(self, token: str) -> list[str]:
        while self._left and token:
            if token[0] != self._content:
                self._left = 0
                break
            token, self._left = token[1:], self._left - 1
        return [token]


class _Replaced:
    """The joined text with every occurrence of a string replaced; the beginning of one waits for the rest."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new, self._held = old, new, ""

    def add(self, token: str) -> list[str]:
        *parts, last = (self._held + token).split(self._old)
        most = min(len(self._old) - 1, len(last))
        begun = next((count for count in range(most, 0, -1) if last.endswith(self._old[:count])), 0)
        self._held = last[len(last) - begun :]
        return [self._new.join([*parts, last[: len(last) - begun]])]

    def finish(self) -> list[str]:
        held, self._held = self._held, ""
        return [held]


class _AtOnce:
    """A decoder of which nothing is known: all of its text at the end."""

    def __init__(self, decoder: decoders.Decoder) -> None:
        self._decoder = decoder
        self._tokens: tuple[str, ...] = ()

    def add(self, token: str) -> list[str]:
        self._tokens = (*self._tokens, token)
        return []

    def finish(self) -> list[str]:
        tokens, self._tokens = self._tokens, ()
        return [self._decoder.decode(list(tokens))]


def _byte_letters() -> dict[str, int]:
    """The letters of byte-level tokens: printable bytes stand for themselves, the others are moved up (GPT-2)."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(0x100 + index): byte for index, byte in enumerate(moved)}}


_BYTES = _byte_letters()
