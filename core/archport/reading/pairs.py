"""A query and its documents to token ids: published bytes around them, and only what is between them is ever cut.

Knows nothing of scores or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from archport.contract import ContextLengthExceeded, InputError, PairText
from archport.reading.joined import JoinedTokeniser
from archport.reading.long_texts import LongTexts
from archport.reading.texts import Overflow, check_text, encoded, token_limit


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
        # One by one, because each holds the query.
        begun = [
            self._long.beginning(self.text.fill(instruction, query, document), room + 1, exact=exact)
            for document in documents
        ]
        bodies = self._ids([body for body, _ in begun])
        rows: list[np.ndarray] = []
        for index, body in enumerate(bodies):
            if len(body) > room and overflow == "error":
                text = self.text.fill(instruction, query, documents[index])
                tokens = len(prefix) + len(body) + len(suffix)
                needed, count = self._long.count(tokens, begun[index][1], len(begun[index][0]), len(text))
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
