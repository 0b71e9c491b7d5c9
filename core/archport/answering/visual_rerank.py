"""Scores of a yes/no reranker whose queries and documents may hold pictures, as its plugin's reader renders them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import mlx.core as mx
import numpy as np

from archport.answering.collecting import rows_named
from archport.answering.rerank import RerankRequest, ScoreKind
from archport.answering.yes_no import answer_row, scored
from archport.contract import CausalLM, Measured, PairReader, YesNoHead
from archport.planning import BatchPlan, Plan
from archport.reading.texts import TextTokeniser, check_vocabulary, token_limit
from archport.running.decoding import with_host_bytes
from archport.running.encode import Encoder, run_ahead
from archport.running.steps import batch_caches
from archport.running.stretches import Stretches
from archport.running.verify import verified
from archport.running.vision import Sight, sight_of


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
        with rows_named("document"):
            plan = self.encoder.planned([each.ids for each in measured], images=images)
        plan = with_host_bytes(plan, measured, self.encoder.spec.vision)
        difference, stretches = np.zeros(len(measured), np.float32), Stretches()

        def finish(batch: BatchPlan, answers: mx.array) -> None:
            difference[list(batch.rows)] = np.array(answers)
            request.scored(len(batch.rows))

        with verified(plan) as watch, sight_of(self.encoder.trunk, self.reader, stretches) as sight:
            assert sight is not None
            with closing(_decoding(plan, measured, sight)) as batches:
                watched = watch.batches(batches)
                run_ahead(watched, lambda batch: self._start(plan, batch, measured, sight, stretches), finish)
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
        return hidden @ answer_row(cast(CausalLM, self.encoder.trunk), self.head)


def _decoding(plan: Plan, measured: Sequence[Measured], sight: Sight) -> Generator[BatchPlan]:
    """A plan's batches, each with its own and the next one's pictures being decoded."""
    for batch, following in pairwise([*plan.batches, None]):
        assert batch is not None
        sight.ahead([batch, following] if following else [batch], measured)
        yield batch
