"""How much a tokenizer.json may make of a text, found in the file before any of it runs.

A chain of replacements doubles a text with every step: twenty of them make gigabytes of one word, and the added tokens
of the file go through them while it loads. Every step's largest growth is known from what it says, so their product is
a bound that needs no trial. Touches no tokenizer but to ask whether an expression matches nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from archport.contract.errors import CheckpointError

# Published tokenizers make at most 36 characters of one: 18 of a ligature, and a mark before each.
MOST_GROWTH = 256
# Tokens that a post-processor may add, and how often it may repeat a text.
MOST_SPECIAL, MOST_COPIES = 1024, 4
# A WordPiece model looks at every part of a word, so its time grows with the square of this; published ones say 100.
LONGEST_WORD = 1000
# Every step takes its time with every text.
MOST_STEPS = 512
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# Parts of an expression that match between two characters.
_BETWEEN = re.compile(r"\(\?(?:[=!]|<[=!])|\\[bBAzZGKyY]|[\^$]")
_SPELLED_ASCII = re.compile(r"\\u00[0-7]")
_SPACE = re.compile(r"[ \t\n\r]*")


def check_growth(where: str, text: str) -> None:
    """Refuse a tokenizer whose steps may make more than `MOST_GROWTH` characters of one.

    Args:
        where: how messages call the file.
        text: tokenizer.json, whole; what is no JSON is left to the reader of the file.

    Raises:
        CheckpointError: naming the part of the file.
    """
    parts = _parts(text)
    normalising = list(_flat(parts.get("normalizer"), "normalizers"))
    chains = {
        "normalizer": normalising,
        # It splits what the normaliser made.
        "pre_tokenizer": [*normalising, *_flat(parts.get("pre_tokenizer"), "pretokenizers")],
        "decoder": list(_flat(parts.get("decoder"), "decoders")),
    }
    for part, steps in chains.items():
        if len(steps) > MOST_STEPS:
            raise CheckpointError(f"{where}: {part} has {len(steps):,} steps; expected at most {MOST_STEPS}.")
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise CheckpointError(
                    f"{where}: {part} makes more than {MOST_GROWTH} characters of one, by its step "
                    f"{step.get('type')!r:.40}; no published tokenizer does. The file is damaged or hostile."
                )
    _check_processor(where, parts.get("post_processor"))


def _parts(text: str) -> dict[str, Any]:
    """The parts of a tokenizer.json but its model and added tokens, which may have tens of megabytes."""
    found: dict[str, Any] = {}
    decoder, at = json.JSONDecoder(), _after_space(text, 0)
    try:
        if text[at : at + 1] != "{":
            return {}
        at = _after_space(text, at + 1)
        while text[at : at + 1] == '"':
            key, at = decoder.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
            if key == "model" and _settled(text, at):
                return found
            found[key], at = decoder.raw_decode(text, at)
            at = _after_space(text, at)
            if text[at : at + 1] != ",":
                return found
            at = _after_space(text, at + 1)
    except (ValueError, RecursionError):
        pass
    # No JSON: its reader says so.
    return found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _settled(text: str, at: int) -> bool:
    """Whether nothing from here on names a part again, which would win over the first."""
    return not any(text.find(f'"{part}"', at) >= 0 for part in _PARTS) and not _SPELLED_ASCII.search(text, at)


def _flat(part: Any, steps: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a part in their order."""
    left = [part]
    while left:
        step = left.pop()
        if not isinstance(step, dict):
            continue
        inner = step.get(steps)
        if isinstance(inner, list):
            left += reversed(inner)
        else:
            yield step


def _growth(step: Mapping[str, Any]) -> float:
    """Most characters that a step makes of one. Forms of Unicode count once for all: they undo none of each other."""
    kind = step.get("type")
    if kind == "Replace":
        return _replacement(step.get("pattern"), step.get("content"))
    if kind == "Precompiled":
        return _longest(step.get("precompiled_charsmap"))
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if kind == "Metaspace":
        # One mark before each piece, and a piece may be one character.
        return 1.0 + len(str(step.get("replacement", "")))
    return 2.0 if kind in ("ByteLevel", "BPEDecoder") else 1.0


def _replacement(pattern: Any, content: Any) -> float:
    size = len(content) if isinstance(content, str) else 0
    literal = pattern.get("String") if isinstance(pattern, dict) else pattern
    if isinstance(literal, str) and literal:
        return max(1.0, size / len(literal))
    expression = pattern.get("Regex") if isinstance(pattern, dict) else ""
    between = not isinstance(expression, str) or bool(_BETWEEN.search(expression)) or _matches_nothing(expression)
    return max(1.0, size + between)


def _matches_nothing(expression: str) -> bool:
    from tokenizers import Regex, normalizers

    try:
        return bool(normalizers.Replace(Regex(expression), "x").normalize_str(""))
    # An expression that the library can't read; it says so when it reads the file.
    except Exception:
        return True


def _longest(charsmap: Any) -> float:
    """Characters of the longest text in a table of replacements, which stand after its index, each ended by a zero."""
    if not isinstance(charsmap, str):
        return 1.0
    try:
        table = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1.0
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1.0, *(len(text.decode("utf-8", "replace")) for text in texts.split(b"\0")))


def _check_processor(where: str, part: Any) -> None:
    """Refuse a template that repeats its texts, or adds more tokens than fit any model."""
    copies, added = 1, 0
    if large := next((number for number in _numbers(part) if number >= 1 << 31), None):
        raise CheckpointError(f"{where}: post_processor has a token with the id {large}; no model has as many.")
    for step in _flat(part, "processors"):
        special = step.get("special_tokens")
        sizes = {
            name: len(entry["ids"]) if isinstance(entry, dict) and isinstance(entry.get("ids"), list) else 1
            for name, entry in (special.items() if isinstance(special, dict) else ())
        }
        most = 1
        for name in ("single", "pair"):
            pieces = step.get(name)
            pieces = [piece for piece in pieces if isinstance(piece, dict)] if isinstance(pieces, list) else []
            texts = [str(piece["Sequence"]) for piece in pieces if "Sequence" in piece]
            most = max(most, *(texts.count(text) for text in texts), 0)
            tokens = [piece["SpecialToken"] for piece in pieces if "SpecialToken" in piece]
            names = [token.get("id") for token in tokens if isinstance(token, dict)]
            added = max(added, sum(sizes.get(each, 1) for each in names if isinstance(each, str)))
        copies *= most
        if copies > MOST_COPIES or added > MOST_SPECIAL:
            raise CheckpointError(
                f"{where}: post_processor repeats a text {copies} times and adds {added:,} tokens; expected at most "
                f"{MOST_COPIES} and {MOST_SPECIAL:,}. The file is damaged or hostile."
            )


def _numbers(part: Any) -> Iterator[int]:
    left = [part]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int):
            yield value
