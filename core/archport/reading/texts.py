"""Texts to ragged token ids: prompts, limits, the final token. Knows nothing of batches or padding."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from tokenizers import Encoding, Tokenizer

from archport.contract import Asked, ContextLengthExceeded, InputError, Measured, Reader, TextInputs
from archport.contract.errors import shown
from archport.reading.columns import Unreadable, texts_of
from archport.reading.cutting import WHOLE, Cutters, Kept, Places, Side, around, chosen, common_characters
from archport.reading.long_texts import LongTexts

T = TypeVar("T")
Overflow = Literal["error", "truncate"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ragged token ids, without padding.

    Args:
        ids: one int32 array per text.
        prompt_tokens: leading tokens of each row that belong to the prompt.
        truncated: indices of the texts that were cut.
        measured: what a reader found in each input, pictures included; empty where texts are only texts.
        places: of each text's tokens, where they were asked for.
    """

    ids: tuple[np.ndarray, ...]
    prompt_tokens: int = 0
    truncated: tuple[int, ...] = ()
    measured: tuple[Measured, ...] = ()
    places: tuple[Places, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(row) for row in self.ids)

    @property
    def images(self) -> tuple[tuple[int, ...], ...]:
        """Per row the patches of its pictures, as plans take them."""
        return tuple(tuple(picture.patches for picture in row.pictures) for row in self.measured)


# Seconds that a thread which works ahead holds the interpreter, and then sleeps. The thread that feeds a GPU takes it
# back some ten thousand times per million tokens, and would wait 5 ms for it, or as long as this one keeps it.
WORK_SECONDS, BREATH_SECONDS = 5e-5, 5e-5


def breathing(items: Iterable[T]) -> Iterator[T]:
    """The same items, letting go of the interpreter again and again, for a thread that works ahead of another."""
    until = time.perf_counter() + WORK_SECONDS
    for item in items:
        if time.perf_counter() >= until:
            time.sleep(BREATH_SECONDS)
            until = time.perf_counter() + WORK_SECONDS
        yield item


def encoded(
    tokenizer: Tokenizer,
    items: Sequence[Any],
    ready: MutableMapping[int, Encoding] | None = None,
    *,
    offsets: bool = False,
    **options: bool,
) -> Iterator[Encoding]:
    """The encodings of all items, each released when the next one is asked for.

    Releasing thousands at once would hold the interpreter for tens of milliseconds.

    Args:
        ready: encodings that are there already, by the item's index; each is taken out.
        offsets: whether encodings know where their tokens stand, which takes longer.
    """
    ready = ready or {}
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    found = encode([item for index, item in enumerate(items) if index not in ready], **options)
    found.reverse()
    for index in breathing(range(len(items))):
        yield ready.pop(index) if index in ready else found.pop()


class TextTokeniser:
    """Turns texts into ids as a checkpoint's inputs declare.

    User text is tokenised as the reference libraries do: the text of a special token inside it becomes that token.

    Args:
        tokenizer: without padding and truncation.
        inputs: prompts and limits.
        max_tokens: tokens a text may have by default, special tokens included.
        ceiling: tokens that a call may ask for at most; None: the same.
        side: the end at which a longer text is cut.
        special: ids that do not count to a prompt which ends in one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        inputs: TextInputs,
        max_tokens: int,
        ceiling: int | None = None,
        side: Side = "right",
        special: frozenset[int] = frozenset(),
    ) -> None:
        self.tokenizer, self.inputs, self.max_tokens = tokenizer, inputs, max_tokens
        self._special = special
        self.long = LongTexts(tokenizer)
        self.side: Side = side
        self._ceiling = max_tokens if ceiling is None else ceiling
        self._cutter = Cutters(tokenizer, side)

    def cutting_at(self, side: Side) -> TextTokeniser:
        """The same, cutting longer texts at this end."""
        if side == self.side:
            return self
        other = copy.copy(self)
        other.side, other._cutter = side, Cutters(self.tokenizer, side)
        return other

    def unlimited(self) -> TextTokeniser:
        """The same, taking texts of any length: for counting."""
        other = copy.copy(self)
        other.max_tokens = other._ceiling = 1 << 40
        return other

    def prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """The text in front of every input: `prompt` itself, the stored one of `prompt_name`, or the default.

        Raises:
            InputError: when both are given, or the name is not stored.
        """
        if prompt is not None and prompt_name is not None:
            raise InputError(
                f"both prompt={shown(prompt)} and prompt_name={shown(prompt_name)} are given; give one of them"
            )
        if prompt is not None:
            return prompt
        name = prompt_name if prompt_name is not None else self.inputs.default_prompt
        if name is None:
            return ""
        if name not in self.inputs.prompts:
            stored = ", ".join(sorted(self.inputs.prompts)) or "none"
            raise InputError(f"prompt_name={shown(prompt_name)} is not among this model's prompts; stored: {stored}")
        return self.inputs.prompts[name]

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        max_tokens: int | None = None,
        overflow: Overflow = "error",
        first: int = 0,
    ) -> Tokens:
        """Ids of every text.

        Args:
            prompt: put in front of each text.
            max_tokens: limit of this call, at most the model's.
            overflow: `error`, or `truncate`, which cuts the text and keeps the final special tokens.
            first: index of the first text in the caller's sequence, for messages.

        Raises:
            InputError: for a text that is not a string, can't be encoded, or has no tokens.
            ContextLengthExceeded: for a text over the limit, unless truncation was asked for.
        """
        limit = self._limit(max_tokens, overflow)
        if self.inputs.reader is not None:
            return self._read(self.inputs.reader, texts, prompt, limit, overflow, first)
        return self._tokens(texts, prompt, limit, overflow, first)

    def placed(
        self, texts: Sequence[str], *, max_tokens: int | None = None, overflow: Overflow = "error", first: int = 0
    ) -> Tokens:
        """Ids of every text, and where its tokens stand; see `__call__`.

        Raises:
            InputError: for a model that reads no plain texts, too.
        """
        if self.inputs.reader is not None or self.inputs.messages is not None:
            raise InputError(
                "this model's texts become messages; where a token stands in its text is known of plain ones"
            )
        return self._tokens(texts, "", self._limit(max_tokens, overflow), overflow, first, places=True)

    def _limit(self, max_tokens: int | None, overflow: Overflow) -> int:
        limit = token_limit(max_tokens, self._ceiling, self.max_tokens)
        if overflow not in get_args(Overflow):
            raise InputError(f"{overflow=}; expected 'error' or 'truncate'")
        return limit

    def _tokens(
        self, texts: Sequence[str], prompt: str, limit: int, overflow: Overflow, first: int, *, places: bool = False
    ) -> Tokens:
        prepared = [self._prepare(text, first + index, prompt) for index, text in enumerate(texts)]
        # One token more shows that a text is too long.
        ready: dict[int, Encoding] = {}
        if overflow == "truncate" and self.side == "left":
            # What is kept of a text is its end.
            begun = [(text, False) for text in prepared]
        else:
            known = None if places else ready
            begun = self.long.beginnings(prepared, limit + 1, exact=overflow == "truncate", ready=known)
        rows: list[np.ndarray] = []
        truncated: list[int] = []
        stand: list[Places] = []
        encodings = encoded(self.tokenizer, [text for text, _ in begun], ready, offsets=places)
        for index, encoding in enumerate(encodings):
            row = self._finish(encoding.ids)
            rows.append(row)
            if not len(row) and self.inputs.empty_token is None:
                raise InputError(
                    f"text {first + index} ({texts[index]!r:.60}) has no tokens; this model needs at least one"
                )
            if len(row) <= limit:
                if places:
                    stand.append(self._places(encoding, WHOLE, begun[index][0], prepared[index], limit))
                continue
            if overflow == "error":
                more = f", or raise max_tokens= (at most {self.max_tokens})" if limit < self.max_tokens else ""
                tokens, count = self.long.count(len(row), begun[index][1], len(begun[index][0]), len(prepared[index]))
                raise ContextLengthExceeded(
                    f"text {first + index} has {count} tokens; the limit is {limit}. Pass overflow='truncate' to "
                    f"cut it{more}",
                    requested=tokens,
                    ceiling=limit,
                    max_tokens_that_fit=limit,
                    binding=f"max_tokens {limit}",
                )
            left, kept = self._cut(encoding, begun[index][0], limit)
            rows[index] = self._finish(chosen(left.ids, kept))
            truncated.append(first + index)
            if places:
                stand.append(self._places(left, kept, begun[index][0], prepared[index], limit))
        counted = tuple(map(self._counted, rows))
        return Tokens(counted, self._prompt_length(prompt, limit), tuple(truncated), places=tuple(stand))

    def _places(self, encoding: Encoding, kept: Kept, read: str, text: str, limit: int) -> Places:
        """Where the tokens stand that are kept of a text, of which `read` was encoded; dropped ones stand there too."""
        offsets = chosen(encoding.offsets, kept)
        if max((end for _, end in offsets), default=0) > common_characters(text, read):
            # Repetitions are gone from what was read; the text has the same ids elsewhere.
            encoding = self.tokenizer.encode(text)
            encoding, kept = self._cut(encoding, text, limit) if kept != WHOLE else (encoding, WHOLE)
            offsets = chosen(encoding.offsets, kept)
        special = chosen(encoding.special_tokens_mask, kept)
        if len(self._finish(chosen(encoding.ids, kept))) > len(offsets):
            offsets, special = [*offsets, (0, 0)], [*special, 1]
        return Places(offsets, special)

    def _counted(self, row: np.ndarray) -> np.ndarray:
        """The tokens of a row that the model is given."""
        if self.inputs.dropped:
            row = row[~np.isin(row, self.inputs.dropped)]
        empty = self.inputs.empty_token
        return row if len(row) or empty is None else np.asarray([empty], np.int32)

    def _read(
        self, reader: Reader, items: Sequence[object], prompt: str, limit: int, overflow: Overflow, first: int
    ) -> Tokens:
        """What a plugin's own reader finds in inputs of any kind it knows."""
        for index, item in enumerate(items):
            if isinstance(item, Unreadable):
                raise InputError(f"text {first + index}: {item.reason}")
        measured = tuple(
            reader.measure(item, self.encode, self.asked(_called(item, first + index), prompt or None, limit, overflow))
            for index, item in enumerate(items)
        )
        cut = tuple(first + index for index, each in enumerate(measured) if each.truncated)
        return Tokens(tuple(each.ids for each in measured), truncated=cut, measured=measured)

    def asked(self, name: str, prompt: str | None, limit: int, overflow: Overflow = "error") -> Asked:
        """What a reader is told of an input, and how it shortens texts that are far over the limit."""

        def shorten(text: str) -> str:
            return self.long.beginning(text, limit + 1, exact=overflow == "truncate")[0]

        return Asked(name, prompt, limit, overflow, shorten)

    def fitting(self, text: str, name: str, *, special: bool) -> list[int]:
        """Ids of a text that has to fit as a whole, or a few more than fit.

        Args:
            special: whether the tokenizer puts its special tokens around it.

        Raises:
            ContextLengthExceeded: for a text far over the limit.
        """
        part, more = self.long.beginning(text, self.max_tokens, exact=False)
        ids = self.tokenizer.encode(part, add_special_tokens=special).ids
        if more:
            tokens, count = self.long.count(len(ids), more, len(part), len(text))
            raise ContextLengthExceeded(
                f"{name} has {count} tokens and the context {self.max_tokens:,}, which leaves none to generate; "
                "shorten it, or raise max_context",
                requested=tokens,
                ceiling=self.max_tokens,
                max_tokens_that_fit=self.max_tokens - 1,
                binding="max_context",
            )
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text and nothing around them; the text of a special token becomes that token."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _prepare(self, text: str, index: int, prompt: str) -> str:
        check_text(text, f"text {index}")
        return prompt + text

    def _finish(self, ids: list[int]) -> np.ndarray:
        final = self.inputs.final_token
        if final is not None and (not ids or ids[-1] != final):
            ids = [*ids, final]
        return np.asarray(ids, dtype=np.int32)

    def _cut(self, encoding: Encoding, text: str, limit: int) -> tuple[Encoding, Kept]:
        """(an encoding, which of its tokens are left) of a text that is too long.

        The text is cut, not the special tokens around it.
        """
        room, special = self._room(limit)
        flags = encoding.special_tokens_mask
        before, behind = around(flags)
        if before + behind != special:
            # Special tokens elsewhere: the tokenizer knows what to do, for the price of a second run.
            return self._cutter(room).encode(text), WHOLE
        if self.side == "left":
            return encoding, (slice(before), slice(len(flags) - room + before, None))
        return encoding, (slice(room - behind), slice(len(flags) - behind, None))

    def _room(self, limit: int) -> tuple[int, int]:
        """(tokens that the tokenizer may give a text, special ones among them)."""
        special = self.tokenizer.num_special_tokens_to_add(False)
        final = self.inputs.final_token
        appended = final is not None and self.tokenizer.encode("").ids[-1:] != [final]
        if limit - appended < special:
            raise InputError(f"max_tokens={limit} leaves no room for this model's {special + appended} special tokens")
        return limit - appended, special

    def _prompt_length(self, prompt: str, limit: int) -> int:
        """Tokens of a prompt, or more than any row has."""
        if not prompt:
            return 0
        ids = self.tokenizer.encode(self.long.beginning(prompt, limit + 1, exact=False)[0]).ids
        # A final special token (SEP, EOS) closes the sequence; it is not part of the prompt.
        return len(ids) - (bool(ids) and ids[-1] in self._special)


def token_limit(asked: int | None, ceiling: int, default: int) -> int:
    """Tokens an input of this call may have: what was asked for, at most the model's ceiling.

    Raises:
        InputError: for no positive integer.
        ContextLengthExceeded: above the ceiling.
    """
    if asked is None:
        return default
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise InputError(f"max_tokens={shown(asked)}; expected a positive integer")
    if asked > ceiling:
        raise ContextLengthExceeded(
            f"max_tokens={asked} is above what this model takes ({ceiling}); it is refused rather than lowered",
            requested=asked,
            ceiling=ceiling,
            max_tokens_that_fit=ceiling,
            binding="the model's context",
        )
    return asked


def _called(item: object, index: int) -> str:
    """How messages call an input: one that only holds text is a text, like everywhere."""
    return f"input {index}" if isinstance(item, Mapping | list | tuple) else f"text {index}"


def iterable(texts: object) -> Iterable[Any]:
    """The items of `texts`, which may be anything that gives some but bytes; raises InputError otherwise."""
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise InputError(f"texts is a {type(texts).__name__}; expected a str or an iterable of str")
    return texts_of(texts)


def listed(texts: object) -> list[Any]:
    """A single text, or all that an iterable gives; raises as `iterable` does."""
    return [texts] if isinstance(texts, str) else list(iterable(texts))


def check_text(text: object, what: str) -> None:
    """Refuse what is no text, or no text that has an encoding.

    Args:
        what: how the message names it ("text 3").

    Raises:
        InputError: naming it.
    """
    if isinstance(text, Unreadable):
        raise InputError(f"{what}: {text.reason}")
    if isinstance(text, Mapping):
        raise InputError(f"{what} is {_describe(text)}, but this model reads text only; expected a str")
    if not isinstance(text, str):
        raise InputError(f"{what} is {_describe(text)}; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; it "
            "has no encoding. Repair it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error


def check_vocabulary(rows: Sequence[np.ndarray], size: int, what: str, first: int = 0) -> None:
    """Refuse ids past the embedding's end, where a device reads whatever lies there.

    Args:
        size: entries of the model's vocabulary.
        what, first: how messages name a row ("text") and number the first one.

    Raises:
        InputError: naming the row and the id.
    """
    if not rows:
        return
    everything = np.concatenate(rows)
    if not len(everything) or (everything.min() >= 0 and everything.max() < size):
        return
    for index, ids in enumerate(rows):
        low, high = (ids.min(), ids.max()) if len(ids) else (0, 0)
        if low < 0 or high >= size:
            raise InputError(
                f"{what} {first + index} holds token id {high if high >= size else low}; the model's vocabulary has "
                f"{size} entries. The tokenizer is another model's, or has tokens that were added without training them"
            )


def _describe(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({shown(value)})"
