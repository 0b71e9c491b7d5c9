"""Pairs to token ids: a query and a document inside published bytes, of which only what is between them is ever cut, or
two texts through the tokenizer's own template, with the type of each token. Scores and batches are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from archport.contract import ContextLengthExceeded, InputError, PairText
from archport.reading.cutting import Cutters, Side
from archport.reading.long_texts import LongTexts
from archport.reading.texts import Overflow, check_text, encoded, token_limit

# One text, or the two texts of a pair.
Item = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class JoinedTokeniser:
    """Turns texts and pairs into ids as the tokenizer's template joins them.

    Args:
        tokenizer: without padding and truncation.
        max_tokens: tokens that an item may have at most, special tokens included.
        side: the end at which a longer text is cut.
    """

    tokenizer: Tokenizer
    max_tokens: int
    side: Side = "right"
    _long: LongTexts = field(init=False, repr=False, compare=False)
    _cutter: Cutters = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_long", LongTexts(self.tokenizer))
        object.__setattr__(self, "_cutter", Cutters(self.tokenizer, self.side))

    def __call__(
        self, items: Sequence[Item], *, what: str = "text", max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """(ids, types) of every item, int32 arrays.

        Args:
            what: how errors call an item.
            overflow: `error`, or `truncate`, which cuts the longer text of a pair first, as the reference library does.

        Raises:
            InputError: for something that is neither a text nor a pair of texts.
            ContextLengthExceeded: for an item over the limit, unless truncation was asked for.
        """
        limit = token_limit(max_tokens, self.max_tokens, self.max_tokens)
        ready = [self._prepared(item, f"{what} {index}") for index, item in enumerate(items)]
        begun = [self._begun(item, limit + 1, exact=overflow == "truncate") for item in ready]
        rows: list[np.ndarray] = []
        types: list[np.ndarray] = []
        for index, encoding in enumerate(encoded(self.tokenizer, [item for item, _ in begun])):
            if len(encoding.ids) > limit:
                if overflow == "error":
                    part, cut = begun[index]
                    tokens, count = self._long.count(
                        len(encoding.ids), cut, _characters(part), _characters(ready[index])
                    )
                    raise ContextLengthExceeded(
                        f"{what} {index} has {count} tokens; the limit is {limit}. Pass overflow='truncate' to cut it",
                        requested=tokens,
                        ceiling=limit,
                        max_tokens_that_fit=limit,
                        binding=f"max_tokens {limit}",
                    )
                encoding = self._cut(begun[index][0], limit)
            if not encoding.ids:
                raise InputError(f"{what} {index} ({items[index]!r:.60}) has no tokens; this model needs at least one")
            rows.append(np.asarray(encoding.ids, dtype=np.int32))
            types.append(np.asarray(encoding.type_ids, dtype=np.int32))
        return tuple(rows), tuple(types)

    def _prepared(self, item: object, name: str) -> Item:
        parts = item if isinstance(item, tuple | list) else (item,)
        if len(parts) not in (1, 2):
            raise InputError(f"{name} has {len(parts)} parts; expected a text or a pair of texts")
        for part in parts:
            check_text(part, name)
        texts = [str(part) for part in parts]
        return texts[0] if len(texts) == 1 else (texts[0], texts[1])

    def _begun(self, item: Item, tokens: int, *, exact: bool) -> tuple[Item, int]:
        """(a text or pair that is refused or cut alike, how many of its texts are beginnings only)."""
        if exact and self.side == "left":
            return item, 0
        if isinstance(item, str):
            text, more = self._long.beginning(item, tokens, exact=exact)
            return text, int(more)
        while True:
            (first, more), (second, rest) = self._long.beginnings(item, tokens, exact=exact)
            if not (exact and more and rest):
                break
            # Both may be cut, and the longer one keeps the odd token: go on to where one of them ends.
            tokens *= 4
        if exact and more + rest == 1:
            known = len(self.tokenizer.encode(second if more else first, add_special_tokens=False).ids)
            if known >= tokens:
                cut = self._long.beginning(item[0] if more else item[1], known + 1, exact=True)
                (first, more), (second, rest) = (cut, (second, rest)) if more else ((first, more), cut)
        return (first, second), more + rest

    def _cut(self, item: Item, limit: int) -> Encoding:
        special = self.tokenizer.num_special_tokens_to_add(True)
        if limit <= special:
            raise InputError(f"max_tokens={limit} leaves no room beside this model's {special} special tokens")
        cutter = self._cutter(limit)
        return cutter.encode(*item) if isinstance(item, tuple) else cutter.encode(item)


def _characters(item: Item) -> int:
    return len(item) if isinstance(item, str) else sum(map(len, item))


class Pairs(Protocol):
    """One way to make ids of pairs."""

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
    ) -> tuple[np.ndarray, ...]:
        """Ids of every pair, one int32 array per document."""
        ...


@dataclass(frozen=True, slots=True)
class JoinedPairs:
    """Turns pairs into ids by the tokenizer's own template, a prompt in front of the query.

    Args:
        prompt: the default one.
    """

    joined: JoinedTokeniser
    prompt: str = ""

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
    ) -> tuple[np.ndarray, ...]:
        """See `Pairs`; raises as JoinedTokeniser does."""
        check_text(query, "the query")
        prompt = self.prompt if instruction is None else instruction
        check_text(prompt, "the instruction")
        pairs = [(prompt + query, document) for document in documents]
        return self.joined(pairs, what="document", max_tokens=max_tokens, overflow=overflow)[0]


@dataclass(frozen=True, slots=True)
class PairTokeniser:
    """Turns pairs into ids as a checkpoint's inputs declare.

    Args:
        tokenizer: without padding and truncation.
        text: the parts around query and document.
        max_tokens: tokens a pair may have at most, all parts included.
    """

    tokenizer: Tokenizer
    text: PairText
    max_tokens: int
    _long: LongTexts = field(init=False, repr=False, compare=False)
    _ends: tuple[list[int], list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_long", LongTexts(self.tokenizer))
        ends = (self._ids([self.text.prefix])[0], self._ids([self.text.suffix])[0])
        object.__setattr__(self, "_ends", ends)

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "error",
    ) -> tuple[np.ndarray, ...]:
        """Ids of every pair, one int32 array per document.

        Args:
            instruction: the published default when left out.
            max_tokens: a limit for this call; default: the published one, within the model's context.
            overflow: `error`, or `truncate`, which cuts the body and keeps the suffix that the answer follows.

        Raises:
            InputError: for a query or instruction that is no text, or a limit that leaves the body no room.
            ContextLengthExceeded: for a pair over the limit, unless truncation was asked for.
        """
        limit = token_limit(max_tokens, self.max_tokens, min(self.text.max_tokens or self.max_tokens, self.max_tokens))
        prefix, suffix = self._ends
        room = limit - len(prefix) - len(suffix)
        if room < 1:
            raise InputError(
                f"a limit of {limit} tokens leaves no room for query and document beside the {len(prefix)} + "
                f"{len(suffix)} tokens around them; raise max_tokens"
            )
        instruction = self.text.instruction if instruction is None else instruction
        check_text(query, "the query")
        check_text(instruction, "the instruction")
        for index, document in enumerate(documents):
            check_text(document, f"document {index}")
        exact = overflow == "truncate"
        # The same for every document.
        first, _ = self.text.fill(instruction, query, "")
        shared, cut = self._long.beginning(first, room + 1, exact=exact)
        (before,) = self._ids([shared])
        # One by one, because each may hold the query.
        begun = [
            self._long.beginning(self.text.fill(instruction, query, document)[1], room + 1, exact=exact)
            for document in documents
        ]
        rows: list[np.ndarray] = []
        for index, part in enumerate(self._ids([part for part, _ in begun])):
            body = [*before, *part]
            if len(body) > room and overflow == "error":
                text = first + self.text.fill(instruction, query, documents[index])[1]
                tokens = len(prefix) + len(body) + len(suffix)
                began = len(shared) + len(begun[index][0])
                needed, count = self._long.count(tokens, cut + begun[index][1], began, len(text))
                raise ContextLengthExceeded(
                    f"document {index} makes a pair of {count} tokens; the limit is {limit}. Pass overflow='truncate' "
                    f"to cut it, or raise max_tokens= (at most {self.max_tokens})",
                    requested=needed,
                    ceiling=limit,
                    max_tokens_that_fit=limit,
                    binding=f"max_tokens {limit}",
                )
            rows.append(np.asarray([*prefix, *body[:room], *suffix], dtype=np.int32))
        return tuple(rows)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in encoded(self.tokenizer, list(texts), add_special_tokens=False)]


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Leading ids that all rows share, at least one token short of the shortest."""
    shortest = min(len(row) for row in rows) - 1
    first = rows[0]
    for row in rows[1:]:
        differs = np.flatnonzero(first[:shortest] != row[:shortest])
        if len(differs):
            shortest = int(differs[0])
    return max(0, shortest)
