"""Scores of labels: texts and pairs through the trunk, one pooled row each through its classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import mlx.core as mx
import numpy as np

from archport.answering.rerank import RerankRequest, ScoreKind
from archport.answering.yes_no import scored
from archport.contract import EmbeddingHead, InputError, LayerContext, NonFiniteOutput, Trunk
from archport.contract.heads import ClassificationHead, Classifier, ScoreActivation, TypedTrunk
from archport.device.evaluation import Stretches
from archport.device.progress import Counter, nothing_shown
from archport.planning import BatchPlan, Plan
from archport.reading.pairs import Item, JoinedTokeniser, PairTokeniser
from archport.reading.texts import Overflow, check_text, check_vocabulary
from archport.running.encode import Encoder, run_scored
from archport.running.pool import VectorHead


@dataclass(frozen=True, slots=True)
class Classified:
    """What a classifier makes of one text or pair.

    Args:
        label: the one with the highest score.
        score: its score.
        scores: of every label, in the model's order.
    """

    label: str
    score: float
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class LabelScorer:
    """The scorer of a `ClassificationHead`: of labels for `classify`, of pairs for `rerank`.

    Args:
        templated: how a query and a document are put into one text; None joins them by the tokenizer's template.
        dense: (weight, bias) of each Dense layer of the head's own vector.
        prompt: put in front of every text, and of the first text of a pair.
    """

    tokeniser: JoinedTokeniser
    encoder: Encoder
    head: ClassificationHead
    templated: PairTokeniser | None = None
    dense: tuple[tuple[mx.array, mx.array | None], ...] = ()
    prompt: str = ""

    @property
    def kind(self) -> ScoreKind:
        return "probability" if self.head.ranks_by in ("sigmoid", "softmax") else "logit"

    def classify(
        self, items: Sequence[Item], *, raw: bool = False, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[Classified]:
        """Labels of texts and pairs, in their order.

        Args:
            raw: scores as the classifier gives them, instead of probabilities.

        Raises:
            InputError, ContextLengthExceeded: for an item that can't be scored.
            NonFiniteOutput: when a score is NaN or infinity.
        """
        rows, types = self.read(items, max_tokens=max_tokens, overflow=overflow)
        scores = self._scores(rows, types, "text")
        bad = ~np.isfinite(scores).all(axis=1)
        if bad.any():
            raise NonFiniteOutput(
                f"the scores of text {int(bad.argmax())} hold NaN or infinity; they are not returned. The weights may "
                "be damaged, or overflow in this dtype: try dtype='float32'"
            )
        return self.classified(scores, raw=raw)

    def read(
        self, items: Sequence[Item], *, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """(ids, types) of texts and pairs; may be called from any thread. Raises as `classify` does."""
        prompted = [self._prompted(item) for item in items] if self.prompt else items
        return self.tokeniser(prompted, max_tokens=max_tokens, overflow=overflow)

    def classified(self, scores: np.ndarray, *, raw: bool = False) -> list[Classified]:
        """What raw scores (N, labels) say."""
        scores = scores if raw else activated(scores, self.head.activation)
        names = self.head.labels
        return [
            Classified(names[best], float(row[best]), dict(zip(names, map(float, row), strict=True)))
            for row, best in zip(scores, scores.argmax(axis=1), strict=True)
        ]

    def _prompted(self, item: Item) -> Item:
        if isinstance(item, str):
            return self.prompt + item
        # What is no text is refused by its place, later.
        pair = isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
        return (self.prompt + item[0], item[1]) if pair else item

    def scores(self, query: str, documents: Sequence[str], request: RerankRequest) -> np.ndarray:
        """Raw scores (N,) float32 of pairs: of the one label, or of the second of two less that of the first.

        Raises:
            InputError, ContextLengthExceeded: for a pair that can't be scored, or a head with more labels.
        """
        rows, types = self.read_pairs(query, documents, request)
        return self.order(self._scores(rows, types, "document", request.scored))

    def read_pairs(
        self, query: str, documents: Sequence[str], request: RerankRequest
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """(ids, types) of pairs; may be called from any thread. Raises as `scores` does."""
        labels = len(self.head.labels)
        if labels > 2:
            raise InputError(
                f"this model scores {labels} labels ({', '.join(self.head.labels)}), which is no order of documents; "
                "use Model.classify with (query, document) pairs"
            )
        limits = {"max_tokens": request.max_tokens, "overflow": request.overflow}
        if self.templated is not None:
            rows = self.templated(query, documents, instruction=request.instruction, **limits)  # pyright: ignore[reportArgumentType]
            return rows, tuple(np.zeros(len(row), np.int32) for row in rows)
        if request.instruction is not None:
            raise InputError("this model takes no instruction: it reads the query and the document alone")
        check_text(query, "the query")
        pairs = [(self.prompt + query, document) for document in documents]
        return self.tokeniser(pairs, what="document", **limits)  # pyright: ignore[reportArgumentType]

    def order(self, scores: np.ndarray) -> np.ndarray:
        """What documents are ordered by, (N,), of raw scores (N, 1 or 2)."""
        return scores[:, 0] if len(self.head.labels) == 1 else scores[:, 1] - scores[:, 0]

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """What the head ranks by; of two labels the second one's probability."""
        return scored(scores, self.head.ranks_by if len(self.head.labels) == 1 else "sigmoid")

    def _scores(
        self,
        rows: Sequence[np.ndarray],
        types: Sequence[np.ndarray],
        what: str,
        scored: Counter = nothing_shown,
    ) -> np.ndarray:
        """Raw scores (N, labels) float32; `scored` is told of every batch."""
        found = np.zeros((len(rows), len(self.head.labels)), np.float32)

        def take(batch: Sequence[int], scores: np.ndarray) -> None:
            found[list(batch)] = scores
            scored(len(batch))

        self.run(rows, types, take, what)
        return found

    def run(
        self,
        rows: Sequence[np.ndarray],
        types: Sequence[np.ndarray],
        take: Callable[[Sequence[int], np.ndarray], None],
        what: str = "text",
    ) -> None:
        """Score what was read, all planned together.

        Args:
            take: given the indices of some rows and their raw scores (n, labels), batch by batch.
            what: how messages call a row.

        Raises:
            AdmissionRefused: a row does not fit, naming it.
        """
        if not len(rows):
            return
        check_vocabulary(rows, self.encoder.spec.vocab_size, what)
        rows = [_unpadded(row, self.head.padding) for row in rows]
        plan = self.encoder.planned(rows, what=what)
        stretches = Stretches()
        run_scored(plan, lambda batch: self._start(plan, batch, rows, types, stretches), take)

    def _start(
        self,
        plan: Plan,
        batch: BatchPlan,
        rows: Sequence[np.ndarray],
        types: Sequence[np.ndarray],
        stretches: Stretches,
    ) -> mx.array:
        """Raw scores (B, labels) of a batch, unevaluated."""
        encoder = self.encoder
        if self.head.token_types and any(types[row].any() for row in batch.rows):
            padded = np.zeros((batch.shape.B, batch.shape.L), dtype=np.int32)
            for at, row in enumerate(batch.rows):
                padded[at, : len(types[row])] = types[row]
            encoder = replace(encoder, trunk=cast(Trunk, _Typed(cast(TypedTrunk, encoder.trunk), mx.array(padded))))
        vector = VectorHead(self.head.vector or EmbeddingHead((self.head.pooling,)), self.dense)
        pooled = encoder.pooled(plan, batch, [rows[row] for row in batch.rows], vector, 0, stretches)
        scores = pooled if self.head.vector is not None else cast(Classifier, self.encoder.trunk).scores(pooled)
        return scores.astype(mx.float32) / self.head.temperature


class _Typed:
    """A trunk that is handed the types of its tokens; a bidirectional batch runs in one step, so they all apply."""

    def __init__(self, trunk: TypedTrunk, types: mx.array) -> None:
        self._trunk, self._types = trunk, types

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self._trunk(input_ids, ctx, token_types=self._types)


def _unpadded(row: np.ndarray, padding: int | None) -> np.ndarray:
    """A row (L,) up to its last id that is not `padding`: what a causal trunk makes of it needs none of the rest."""
    if padding is None or row[-1] != padding:
        return row
    others = np.flatnonzero(row != padding)
    return row[: int(others[-1]) + 1 if len(others) else 1]


def activated(scores: np.ndarray, activation: ScoreActivation) -> np.ndarray:
    """Raw scores (N, labels) as probabilities, or as they are."""
    if activation == "identity":
        return scores
    if activation == "softmax":
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)
    # Both tails are exact: exp never overflows for a negative argument.
    tail = np.exp(-np.abs(scores))
    return np.where(scores >= 0, 1, tail) / (1 + tail)
