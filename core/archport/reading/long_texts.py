"""Beginnings of texts that are far too long, so that they are refused or cut without being encoded whole.

A tokenizer takes some 500 bytes of memory per character, so two megabytes of text would take a gigabyte before anybody
knows how many tokens they are. A longer and longer beginning is encoded instead, until it has more tokens than are
asked for by a margin; the ids before the margin are then those of the whole text. Knows no limits and no prompts.

Why they are: a tokenizer goes from left to right through pieces (words, runs of one kind) whose ends depend on one more
character, and inside a piece what follows changes the tokens next to it and no others. Where that is not so, more is
done: Unigram weighs a piece as a whole, so its beginnings end before a space, or shorter ones are compared; a line
break may join all spaces before it, and a special token swallow them, so a beginning among spaces ends with either; an
expression that looks further ahead is not trusted. Texts with very few tokens (spaces, one endless word) first lose
what makes no token.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Encoding, Tokenizer, models

# Tokens at the end of a beginning that the rest of a text may change.
MARGIN = 512
# With fewer tokens per character, from so many characters on, a text is searched for repetitions.
_SPARSE, _LARGE = 1 / 32, 32_768
# Of a repetition: characters that stay, the longest unit, characters compared at once, and those around it in trials.
_KEPT, _UNIT, _BLOCK, _AROUND = 512, 8, 2048, 64
# Letters and digits, but of scripts whose signs some tokenizers take one by one.
_LETTER = r"[^\W_\u2e80-\uabff\uf900-\ufaff\U00020000-\U0003ffff]"
_NOT_SPACE, _BREAK = re.compile(r"\S"), re.compile(r"[\r\n]")
# Splitters that leave letters and digits together, and normalizers that drop none of them.
_OF_WORDS = {"Sequence", "BertPreTokenizer", "WhitespaceSplit", "Punctuation"}
_KEEPING = {"Sequence", "BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Strip"}
# Looking ahead by a fixed number of characters, as the expressions of byte-level tokenizers do.
_NEAR = re.compile(r"\(\?[=!](?:[^()*+?{}|]|\\\\[pP]\{\w+\})*\)")
_FAR = re.compile(r"\(\?[=!]")


class LongTexts:
    """Beginnings of long texts for one tokenizer; safe on threads, as the tokenizer is.

    Args:
        tokenizer: without padding and truncation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def beginnings(
        self,
        texts: Sequence[str],
        tokens: int,
        *,
        exact: bool,
        ready: MutableMapping[int, Encoding] | None = None,
    ) -> list[tuple[str, bool]]:
        """(a text with the same first ids, whether it is only a beginning) per text.

        Args:
            tokens: how many ids, special ones around a text not counted. A beginning has `margin` more, which may be
                others than the text's. A text that is not much longer comes back as it is.
            exact: whether ids have to be the same; without it there are at least so many in text and beginning.
            ready: takes the encodings of beginnings, with special tokens around them.
        """
        found = [(text, False) for text in texts]
        if exact and not self._left_to_right:
            return found
        needed = tokens + self.margin
        sizes = {index: needed + needed // 4 for index, text in enumerate(texts) if len(text) > 4 * needed + 1024}
        searched: set[int] = set()
        while sizes := {index: size for index, size in sizes.items() if size < len(found[index][0])}:
            cuts = [self._cut(found[index][0], size, exact=exact) for index, size in sizes.items()]
            parts = [self._beginning(found[index][0], cut) for index, cut in zip(sizes, cuts, strict=True)]
            encodings = self._tokenizer.encode_batch_fast(parts, add_special_tokens=ready is not None)
            encodings.reverse()
            for (index, size), cut, part in zip(list(sizes.items()), cuts, parts, strict=True):
                encoding = encodings.pop()
                text, count = found[index][0], len(encoding) - self._special * (ready is not None)
                if count >= needed:
                    if not exact or self._stable(text, cut, tokens):
                        found[index] = (part, True)
                        if ready is not None:
                            ready[index] = encoding
                    # A piece that has no stable beginning here has none further on.
                    sizes[index] = len(text)
                    continue
                if count < _SPARSE * size and size >= _LARGE and index not in searched:
                    searched.add(index)
                    found[index] = (self._without_repetitions(text), False)
                sizes[index] = min(max(int(1.2 * size * needed / max(1, count)), 2 * size), 8 * size)
        return found

    def beginning(self, text: str, tokens: int, *, exact: bool) -> tuple[str, bool]:
        """The same of one text."""
        return self.beginnings([text], tokens, exact=exact)[0]

    def count(self, ids: int, cut: int, part: int, whole: int) -> tuple[int, str]:
        """(tokens of what was asked for, what is known of them in words); an estimate where there are beginnings.

        Args:
            ids: of the texts, or of their beginnings.
            cut: how many of the texts are beginnings.
            part, whole: characters of what has these ids, and of all that was asked for.
        """
        known = ids - cut * self.margin
        return (max(known, ids * whole // part), f"at least {known}") if cut else (ids, f"{ids}")

    @cached_property
    def margin(self) -> int:
        """Tokens at the end of a beginning that the rest of the text may change."""
        model = self._tokenizer.model
        # A word that goes on may become unknown as a whole.
        return max(MARGIN, 2 * model.max_input_chars_per_word) if isinstance(model, models.WordPiece) else MARGIN

    @cached_property
    def _special(self) -> int:
        """Special tokens around a text."""
        return self._tokenizer.num_special_tokens_to_add(False)

    def _cut(self, text: str, size: int, *, exact: bool) -> int:
        """Where a beginning of about so many characters ends."""
        return max(text.rfind(" ", size // 2, size), 0) or size if exact and self._unigram else size

    def _beginning(self, text: str, cut: int) -> str:
        """A text with the same first ids that ends there, or with what comes after the spaces that it ends in."""
        if not text[cut - 1].isspace():
            return text[:cut]
        after = _NOT_SPACE.search(text, cut)
        end = after.start() if after else len(text)
        swallows = next((token for token in self._swallowing if text.startswith(token, end)), None)
        breaks = _BREAK.search(text, cut, end)
        return text[:cut] + (swallows or (breaks.group() if breaks else ""))

    def _stable(self, text: str, cut: int, tokens: int) -> bool:
        """Whether the first ids of a beginning are those of any text that begins with it."""
        if not self._unigram or text[cut] == " ":
            return True
        # Some token of the whole ends within the longest one's length before the cut, and up to there the best tokens
        # are those of the beginning that ends there.
        part = text[:cut]
        ids = self._ids(part)[:tokens]
        return all(self._ids(part[:-shorter])[:tokens] == ids for shorter in range(1, self._longest))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def _unigram(self) -> bool:
        return isinstance(self._tokenizer.model, models.Unigram)

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=False)))

    @cached_property
    def _swallowing(self) -> list[str]:
        """Special tokens that the spaces before them are part of."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.lstrip]

    @cached_property
    def _steps(self) -> tuple[str, str]:
        """How texts are normalised and split, as JSON."""
        parts = (self._tokenizer.normalizer, self._tokenizer.pre_tokenizer)
        normalised, split = ("" if part is None else part.__getstate__().decode() for part in parts)
        return normalised, split

    @cached_property
    def _left_to_right(self) -> bool:
        """Whether no expression looks far ahead."""
        return not any(_FAR.search(_NEAR.sub("", step)) for step in self._steps)

    def _without_repetitions(self, text: str) -> str:
        """A text with the same ids, without letters of endless unknown words and repetitions that make no token."""
        model = self._tokenizer.model
        if isinstance(model, models.WordPiece) and self._keeps_words:
            # A word of more characters than the model looks at is unknown, whatever they are.
            kept = max(2 * model.max_input_chars_per_word, _KEPT)
            text = re.sub(f"({_LETTER}{{{kept}}}){_LETTER}{{{kept},}}", r"\1", text)
        for unit in range(1, _UNIT + 1):
            text = self._without_repeated(text, unit)
        return text

    @cached_property
    def _keeps_words(self) -> bool:
        """Whether letters in a row always come to the model as one word, or as a part of one."""
        normalised, split = (set(re.findall(r'"type":"(\w+)"', step)) for step in self._steps)
        added = self._tokenizer.get_added_tokens_decoder().values()
        letters = any(re.match(_LETTER, token.content) or re.search(f"{_LETTER}$", token.content) for token in added)
        return bool(split) and split <= _OF_WORDS and normalised <= _KEEPING and not letters

    def _without_repeated(self, text: str, unit: int) -> str:
        """A text whose repetitions of so many characters are shorter, where two more or twice as many change no id."""
        pieces: list[str] = []
        done, kept = 0, -(-_KEPT // unit)
        for first, last in _repetitions(text, unit):
            first = max(done, first)
            end = first + (last - first) // unit * unit
            one, before, after = text[first : first + unit], text[max(0, first - _AROUND) : first], text[end:][:_AROUND]
            tried = [self._ids(before + count * one + after) for count in (kept, kept + 1, 2 * kept + 3)]
            if end - first > kept * unit and tried[0] == tried[1] == tried[2]:
                pieces += [text[done:first], kept * one]
                done = end
        return "".join([*pieces, text[done:]])


def _repetitions(text: str, unit: int) -> list[tuple[int, int]]:
    """(first, last + 1) of long stretches that repeat so many characters: of all that are twice `_BLOCK` long."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    same = codes[unit:] == codes[:-unit]
    whole = same[: len(same) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]]).astype(np.int8))) * _BLOCK
    found: list[tuple[int, int]] = []
    for first, last in edges.reshape(-1, 2).tolist():
        first -= _leading(same[max(0, first - _BLOCK) : first][::-1])
        last += _leading(same[last : last + _BLOCK])
        found.append((first, last + unit))
    return found


def _leading(same: np.ndarray) -> int:
    """How many values are true before the first that is not."""
    return len(same) if same.all() else int(same.argmin())
