"""Texts and pairs of many callers through one model: read on any thread, run together on the device's.

Each kind of work is the two halves of a call of `Model`: `embed` (sparse, too), `classify`, `tag`, `rerank`, late
interaction. Knows nothing of who asks, in which order, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from archport.answering.labels import LabelScorer
from archport.answering.outputs import OutputEmbedder
from archport.answering.rerank import RerankRequest
from archport.answering.tags import Tagger
from archport.answering.token_vectors import Role, TokenEmbedder
from archport.answering.vectors import Embedder, EmbedRequest
from archport.answering.yes_no import YesNoScorer
from archport.contract import Measured
from archport.reading.cutting import Places
from archport.reading.pairs import Item
from archport.reading.texts import Overflow, Tokens
from archport.running.calls import device_call

# Given a row's index and its result, in whatever order they are done.
Take = Callable[[int, np.ndarray], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One text or pair, as ids.

    Args:
        ids: int32 (n,).
        types: of each token, where the model tells two texts apart by them.
        measured: what a reader found in it, pictures included; None for a text that is only text.
        prompt_tokens: leading tokens that belong to a prompt.
        truncated: whether it was cut.
        places: where its tokens stand in its text, for labels of tokens.
    """

    ids: np.ndarray
    types: np.ndarray | None = None
    measured: Measured | None = None
    prompt_tokens: int = 0
    truncated: bool = False
    places: Places | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids)


class Work(Protocol):
    """One way to run rows. Rows of equal work may run together, whoever asked."""

    def run(self, rows: Sequence[Row], take: Take) -> None:
        """Run rows as they are planned, all together; `take` sees results that may hold NaN.

        Raises:
            AdmissionRefused: some row does not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class VectorWork:
    """Texts to vectors (D,).

    Args:
        request: what is asked; its prompt and its limit count for reading only.
    """

    embedder: Embedder
    request: EmbedRequest

    def form(self, rows: Sequence[Row]) -> tuple[object, ...]:
        """What has to be equal for rows of several callers to run together."""
        skipped = self.embedder.head.skipped(rows[0].prompt_tokens) if rows else 0
        return self.request.dimensions, self.request.normalize, skipped

    def read(self, texts: Sequence[Any]) -> list[Row]:
        """Rows of texts; raises InputError and ContextLengthExceeded as `embed` does."""
        tokens = self.embedder.tokens_of(texts, self.request, 0)
        return _rows(tokens.ids, tokens.measured, tokens.prompt_tokens, tokens.truncated)

    @device_call
    def run(self, rows: Sequence[Row], take: Take) -> None:
        """See `Work`."""
        measured = tuple(row.measured for row in rows if row.measured is not None)
        tokens = Tokens(tuple(row.ids for row in rows), rows[0].prompt_tokens, (), measured)
        self.embedder.run_tokens(tokens, self.request, take)


@dataclass(frozen=True, slots=True)
class TokenWork:
    """Texts to vectors of the tokens that count (n, D)."""

    embedder: TokenEmbedder
    role: Role = "document"

    def read(
        self, texts: Sequence[Any], *, prompt: str = "", max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[Row]:
        """Rows of texts; raises InputError and ContextLengthExceeded as `embed(output="tokens")` does."""
        ids, measured = self.embedder.read(texts, self.role, prompt, max_tokens, overflow)
        return _rows(ids, measured)

    @device_call
    def run(self, rows: Sequence[Row], take: Take) -> None:
        """See `Work`."""
        measured = [row.measured for row in rows if row.measured is not None]
        for index, vectors in enumerate(self.embedder.run([row.ids for row in rows], measured, self.role)):
            take(index, vectors)


@dataclass(frozen=True, slots=True)
class SparseWork:
    """Texts to sparse vectors (n, 2) float64: ids of the vocabulary, and their weights."""

    embedder: OutputEmbedder

    def read(
        self, texts: Sequence[Any], *, prompt: str = "", max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[Row]:
        """Rows of texts; raises InputError and ContextLengthExceeded as `embed(output="sparse")` does."""
        tokens = self.embedder.read(texts, prompt, max_tokens, overflow)
        return _rows(tokens.ids, (), tokens.prompt_tokens, tokens.truncated)

    @device_call
    def run(self, rows: Sequence[Row], take: Take) -> None:
        """See `Work`."""
        for index, (ids, weights) in enumerate(self.embedder.run([row.ids for row in rows])):
            take(index, np.column_stack([ids.astype(np.float64), weights.astype(np.float64)]))


@dataclass(frozen=True, slots=True)
class LabelWork:
    """Texts and pairs to raw scores (labels,)."""

    scorer: LabelScorer

    def read(self, items: Sequence[Item], *, max_tokens: int | None = None, overflow: Overflow = "error") -> list[Row]:
        """Rows of texts and pairs; raises InputError and ContextLengthExceeded as `classify` does."""
        ids, types = self.scorer.read(items, max_tokens=max_tokens, overflow=overflow)
        return [Row(row, kind) for row, kind in zip(ids, types, strict=True)]

    def read_pairs(self, query: str, documents: Sequence[str], request: RerankRequest) -> list[Row]:
        """Rows of a query's pairs; raises as `rerank` does."""
        ids, types = self.scorer.read_pairs(query, documents, request)
        return [Row(row, kind) for row, kind in zip(ids, types, strict=True)]

    @device_call
    def run(self, rows: Sequence[Row], take: Take) -> None:
        """See `Work`."""
        types = [np.zeros(len(row.ids), np.int32) if row.types is None else row.types for row in rows]
        self.scorer.run([row.ids for row in rows], types, _one_by_one(take))


@dataclass(frozen=True, slots=True)
class TagWork:
    """Texts to raw scores of their tokens (n, labels)."""

    tagger: Tagger

    def read(self, texts: Sequence[str], *, max_tokens: int | None = None, overflow: Overflow = "error") -> list[Row]:
        """Rows of texts; raises InputError and ContextLengthExceeded as `tag` does."""
        tokens = self.tagger.read(texts, max_tokens=max_tokens, overflow=overflow)
        rows = _rows(tokens.ids, (), 0, tokens.truncated)
        return [replace(row, places=places) for row, places in zip(rows, tokens.places, strict=True)]

    @device_call
    def run(self, rows: Sequence[Row], take: Take) -> None:
        """See `Work`."""
        for index, scores in enumerate(self.tagger.scores([row.ids for row in rows])):
            take(index, scores)


@dataclass(frozen=True, slots=True)
class AnswerWork:
    """Pairs to the logit of yes less that of no ()."""

    scorer: YesNoScorer

    def read_pairs(self, query: str, documents: Sequence[str], request: RerankRequest) -> list[Row]:
        """Rows of a query's pairs; raises as `rerank` does."""
        return [Row(row) for row in self.scorer.read_pairs(query, documents, request)]

    @device_call
    def run(self, rows: Sequence[Row], take: Take) -> None:
        """See `Work`."""
        self.scorer.run([row.ids for row in rows], _one_by_one(take))


def _rows(
    ids: Sequence[np.ndarray], measured: Sequence[Measured], prompt_tokens: int = 0, truncated: Sequence[int] = ()
) -> list[Row]:
    cut = set(truncated)
    return [
        Row(row, None, measured[index] if measured else None, prompt_tokens, index in cut)
        for index, row in enumerate(ids)
    ]


def _one_by_one(take: Take) -> Callable[[Sequence[int], np.ndarray], None]:
    def each(rows: Sequence[int], results: np.ndarray) -> None:
        for row, result in zip(rows, results, strict=True):
            take(row, result)

    return each
