"""Scores of a reranker that answers yes or no: its pairs through the trunk, and two rows of the output head.

What all pairs of text in a call begin with (system text, instruction, query) is run once where the plan says that this
is faster, and every batch starts from its keys and values. Pairs that may hold pictures are rendered by the plugin's
reader.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import cast

import mlx.core as mx
import numpy as np

from archport.answering.rerank import RerankRequest, ScoreKind
from archport.contract import AdmissionRefused, CausalLM, Measured, PairReader, YesNoHead
from archport.contract.heads import Activation
from archport.device import evaluation
from archport.device.evaluation import Stretches
from archport.memory import Snapshot, put, row_bytes, take
from archport.planning import BatchPlan, Plan, Request
from archport.reading.pairs import Pairs, common_prefix
from archport.reading.texts import TextTokeniser, check_vocabulary, token_limit
from archport.running.encode import Encoder, Kept, run_scored, verified
from archport.running.pool import activated
from archport.running.steps import batch_caches, run_steps
from archport.running.vision import Sight


@dataclass(frozen=True, slots=True)
class YesNoScorer:
    """The scorer of a `YesNoHead`."""

    tokeniser: Pairs
    encoder: Encoder
    head: YesNoHead

    @property
    def kind(self) -> ScoreKind:
        return "probability" if self.head.activation == "sigmoid" else "logit"

    def scores(self, query: str, documents: Sequence[str], request: RerankRequest) -> np.ndarray:
        """The logit of yes less that of no (N,) float32.

        Raises:
            InputError, ContextLengthExceeded: for a pair that can't be scored.
            AdmissionRefused: when the pairs do not fit.
        """
        rows = self.read_pairs(query, documents, request)
        if not rows:
            return np.zeros(0, np.float32)
        plan, shared = self._plan(rows, request.share)
        snapshot = self._run_shared(rows[0][:shared]) if shared else None
        difference = np.zeros(len(rows), np.float32)
        stretches = Stretches()

        # No closure, whose cells would outlive the frames of an error that somebody keeps.
        start = partial(self._start, plan, rows=rows, snapshot=snapshot, stretches=stretches)
        held = Kept(snapshot.bytes) if snapshot else None
        run_scored(plan, start, partial(_put, difference, request), held=held)
        return difference

    def read_pairs(self, query: str, documents: Sequence[str], request: RerankRequest) -> tuple[np.ndarray, ...]:
        """Ids of pairs; may be called from any thread. Raises as `scores` does."""
        limits = {"max_tokens": request.max_tokens, "overflow": request.overflow}
        rows = self.tokeniser(query, documents, instruction=request.instruction, **limits)  # pyright: ignore[reportArgumentType]
        check_vocabulary(rows, self.encoder.spec.vocab_size, "document")
        return rows

    def run(self, rows: Sequence[np.ndarray], take: Callable[[Sequence[int], np.ndarray], None]) -> None:
        """Score pairs of any queries, all planned together and none of their beginnings shared.

        Args:
            take: given the indices of some rows and their scores (n,), batch by batch.

        Raises:
            AdmissionRefused: a row does not fit, naming it.
        """
        plan = self.encoder.planned(rows, what="document")
        stretches = Stretches()
        run_scored(plan, lambda batch: self._start(plan, batch, rows, None, stretches), take)

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities that the answer is yes, or what else the head's activation makes."""
        return scored(scores, self.head.activation)

    def _plan(self, rows: Sequence[np.ndarray], share: bool) -> tuple[Plan, int]:
        """The plan of all rows, or of what is after the tokens that they share, and how many those are."""
        plan = self.encoder.plan
        whole = self.encoder.planned(rows, what="document")
        # Tokens of a span may see behind what rows share.
        share = share and self.encoder.rule is None and self.encoder.spec.semantics == "causal"
        shared = common_prefix(rows) if share and len(rows) > 1 else 0
        if not shared:
            return whole, 0
        try:
            rest = plan(
                Request(
                    lengths=[len(row) - shared for row in rows],
                    cached=[shared] * len(rows),
                    resident=self._held(shared),
                )
            )
            first = self._first_plan(shared)
        except AdmissionRefused:
            return whole, 0
        return (rest, shared) if sharing_pays(first, rest, whole) else (whole, 0)

    def _first_plan(self, shared: int) -> Plan:
        """The plan of the shared tokens alone; a copy of what they leave behind is taken next to their caches."""
        return self.encoder.plan(Request(lengths=[shared], mode="generate", resident=self._held(shared)))

    def _held(self, shared: int) -> int:
        """Bytes of what the rows start from, which is there next to the batches that hold copies of it."""
        plan = self.encoder.plan
        return row_bytes(self.encoder.spec.layers, shared, plan.dtype or self.encoder.spec.dtype)

    def _run_shared(self, ids: np.ndarray) -> Snapshot:
        """What every layer remembers of the tokens that all rows begin with."""
        plan = self._first_plan(len(ids))
        (batch,) = plan.batches
        with verified(plan) as watch:
            caches = batch_caches(self.encoder.spec, plan, batch)
            assert caches is not None
            with closing(run_steps(self.encoder.trunk, plan, batch, [ids], caches)) as steps:
                for _, hidden in steps:
                    evaluation.finish(hidden)
            # Without what the row was padded with.
            caches.align([len(ids)])
            snapshot = take(caches, tokens=len(ids))
            watch.prefilled(Kept(snapshot.bytes))
            return snapshot

    def _start(
        self,
        plan: Plan,
        batch: BatchPlan,
        rows: Sequence[np.ndarray],
        snapshot: Snapshot | None,
        stretches: Stretches,
    ) -> mx.array:
        """Logit of yes, less that of no where there is one, (B,) of a batch, unevaluated."""
        first = snapshot.tokens if snapshot is not None else 0
        caches = batch_caches(self.encoder.spec, plan, batch)
        if snapshot is not None:
            assert caches is not None
            put(snapshot, caches)
        hidden = self.encoder.last_hidden(plan, batch, [rows[row][first:] for row in batch.rows], caches, stretches)
        return answer_scores(hidden, self.encoder, self.head)


def _put(difference: np.ndarray, request: RerankRequest, rows: Sequence[int], scores: np.ndarray) -> None:
    """Keep the scores of some rows, and tell how many more there are."""
    difference[list(rows)] = scores
    request.scored(len(rows))


def sharing_pays(first: Plan, rest: Plan, whole: Plan) -> bool:
    """Whether running what all pairs begin with first, then the rest of them, takes less time than all of them whole.

    A tiny model on a GPU never gains by it: what a pass costs before its first number outweighs the numbers.
    """
    return first.seconds + rest.seconds < whole.seconds


def answer_scores(hidden: mx.array, encoder: Encoder, head: YesNoHead) -> mx.array:
    """The logit of yes, less that of no where there is one, (B,) float32 of last hidden rows (B, D)."""
    answers = [head.yes] if head.no is None else [head.yes, head.no]
    rows = cast(CausalLM, encoder.trunk).head_rows(answers).astype(mx.float32)
    cap = encoder.spec.logit_softcap
    if cap is None:
        return hidden @ (rows[0] if head.no is None else rows[0] - rows[1])
    logits = mx.tanh(hidden @ rows.T / cap) * cap
    return logits[:, 0] if head.no is None else logits[:, 0] - logits[:, 1]


def scored(raw: np.ndarray, activation: Activation) -> np.ndarray:
    """Raw scores (N,) through an activation, each a row of its own."""
    return (
        probabilities(raw)
        if activation == "sigmoid"
        else np.array(activated(mx.array(np.ascontiguousarray(raw))[:, None], activation))[:, 0]
    )


def probabilities(difference: np.ndarray) -> np.ndarray:
    """Sigmoid of logit differences; both tails are exact, because exp never overflows for a negative argument."""
    tail = np.exp(-np.abs(difference))
    return np.where(difference >= 0, 1, tail) / (1 + tail)


@dataclass(frozen=True, slots=True)
class VisualScorer:
    """The scorer of a `YesNoHead` behind a reader of pairs."""

    tokeniser: TextTokeniser
    reader: PairReader
    encoder: Encoder
    head: YesNoHead

    @property
    def kind(self) -> ScoreKind:
        return "probability" if self.head.activation == "sigmoid" else "logit"

    def scores(self, query: object, documents: Sequence[object], request: RerankRequest) -> np.ndarray:
        """The logit of yes less that of no (N,) float32.

        Raises:
            InputError, ContextLengthExceeded: for a pair that can't be scored.
            AdmissionRefused: when the pairs do not fit.
        """
        most = self.tokeniser.max_tokens
        limit = token_limit(request.max_tokens, most, most)
        measured = tuple(
            self.reader.measure_pair(
                query,
                document,
                self.tokeniser.encode,
                self.tokeniser.asked(f"document {index}", request.instruction, limit, request.overflow),
            )
            for index, document in enumerate(documents)
        )
        if not measured:
            return np.zeros(0, np.float32)
        check_vocabulary([each.ids for each in measured], self.encoder.spec.vocab_size, "document")
        images = [[picture.patches for picture in each.pictures] for each in measured]
        plan = self.encoder.planned([each.ids for each in measured], what="document", images=images)
        plan = self.encoder.with_pictures(plan, measured)
        difference, stretches = np.zeros(len(measured), np.float32), Stretches()

        with self.encoder.sight(self.reader, stretches) as sight:
            assert sight is not None
            start = partial(self._start, plan, measured=measured, sight=sight, stretches=stretches)
            with closing(_decoding(plan, measured, sight)) as batches:
                run_scored(plan, start, partial(_put, difference, request), batches=batches)
        return difference

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities that the answer is yes, or what else the head's activation makes."""
        return scored(scores, self.head.activation)

    def _start(
        self, plan: Plan, batch: BatchPlan, measured: Sequence[Measured], sight: Sight, stretches: Stretches
    ) -> mx.array:
        """Logit of yes, less that of no where there is one, (B,) of a batch, unevaluated."""
        visual = sight.look(plan, batch, measured)
        caches = batch_caches(self.encoder.spec, plan, batch)
        ids = [measured[row].ids for row in batch.rows]
        hidden = self.encoder.last_hidden(plan, batch, ids, caches, stretches, visual)
        return answer_scores(hidden, self.encoder, self.head)


def _decoding(plan: Plan, measured: Sequence[Measured], sight: Sight) -> Generator[BatchPlan]:
    """A plan's batches, each with its own and the next one's pictures being decoded."""
    for batch, following in pairwise([*plan.batches, None]):
        assert batch is not None
        sight.ahead([batch, following] if following else [batch], measured)
        yield batch
