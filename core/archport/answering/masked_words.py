"""Words for masked places: texts through the trunk, and the masked rows alone through the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from archport.contract import InputError, NonFiniteOutput
from archport.contract.heads import MaskedLM
from archport.planning import BatchPlan, Plan, Readout, Request
from archport.reading.texts import Overflow, TextTokeniser, check_vocabulary
from archport.running.encode import Encoder, verified
from archport.running.steps import run_steps

# Of one row of the vocabulary: logits, in two types where they are not float32 or before their bias, their chances,
# those turned round and the order of them. A CPU holds 4; an H200 held 5.3, the scratch of a product among them.
ARRAYS = 6


@dataclass(frozen=True, slots=True)
class Filled:
    """One candidate for a masked place: the token, its id, and its probability."""

    token: str
    token_id: int
    score: float


@dataclass(frozen=True, slots=True)
class MaskFiller:
    """Fills masked places of texts.

    Args:
        mask: vocabulary id of the mask token.
    """

    tokeniser: TextTokeniser
    encoder: Encoder
    mask: int

    def __call__(
        self, texts: Sequence[str], *, top_k: int, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> list[list[list[Filled]]]:
        """Per text, per masked place in order, the `top_k` likeliest tokens, best first.

        Raises:
            InputError: for a text without a mask token, or a `top_k` outside the vocabulary.
            ContextLengthExceeded: for a text over the limit, unless truncation was asked for.
            NonFiniteOutput: when a probability is NaN.
        """
        size = self.encoder.spec.vocab_size
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= size:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{top_k=}; expected 1 to {size}, the entries of the vocabulary")
        tokens = self.tokeniser(texts, max_tokens=max_tokens, overflow=overflow)
        check_vocabulary(tokens.ids, size, "text")
        places = [np.flatnonzero(ids == self.mask) for ids in tokens.ids]
        for index, found in enumerate(places):
            if not len(found):
                token = self.tokeniser.tokenizer.id_to_token(self.mask)
                cut = ", or it was cut off" if index in tokens.truncated else ""
                raise InputError(
                    f"text {index} ({texts[index]!r:.60}) holds no {token}{cut}; put one where a word is asked for"
                )
        filled: list[list[list[Filled]]] = [[] for _ in texts]
        if not texts:
            return filled
        plan = self.encoder.plan(
            Request(lengths=tokens.lengths, readout=Readout("the logits", "logits", ARRAYS, fixed=4 * size))
        )
        with verified(plan) as watch:
            for batch in watch.batches(plan.batches):
                hidden = self._hidden(plan, batch, tokens.ids, places)
                owners = [row for row in batch.rows for _ in places[row]]
                for owner, candidates in zip(owners, self._candidates(plan, hidden, top_k), strict=True):
                    filled[owner].append(candidates)
        return filled

    def _hidden(
        self, plan: Plan, batch: BatchPlan, ids: Sequence[np.ndarray], places: Sequence[np.ndarray]
    ) -> mx.array:
        """Hidden states (n, D) of a batch's masked places, evaluated: those of all other places are released."""
        rows = np.concatenate([np.full(len(places[row]), at) for at, row in enumerate(batch.rows)])
        at = np.concatenate([places[row] for row in batch.rows])
        with closing(run_steps(self.encoder.trunk, plan, batch, [ids[row] for row in batch.rows])) as steps:
            ((_, hidden),) = steps
        found = hidden[mx.array(rows), mx.array(at)]
        mx.eval(found)
        return found

    def _candidates(self, plan: Plan, hidden: mx.array, top_k: int) -> list[list[Filled]]:
        """The likeliest tokens of hidden rows, so many rows at a time that the plan's peak holds."""
        size = self.encoder.spec.vocab_size
        free = plan.peak - plan.bytes["weights"] - plan.bytes["margin"] - hidden.nbytes - 4 * size
        most = max(1, free // (ARRAYS * 4 * size))
        found: list[list[Filled]] = []
        for first in range(0, hidden.shape[0], most):
            logits = cast(MaskedLM, self.encoder.trunk).logits(hidden[first : first + most]).astype(mx.float32)
            chances = mx.softmax(logits, axis=-1)
            best = mx.argpartition(-chances, kth=top_k - 1, axis=-1)[:, :top_k]
            ids, scores = np.array(best), np.array(mx.take_along_axis(chances, best, axis=-1))
            if not np.isfinite(scores).all():
                raise NonFiniteOutput(
                    "the probability of a masked word is NaN; it is not returned. The weights may be damaged, or "
                    "overflow in this dtype: try dtype='float32'"
                )
            for row_ids, row_scores in zip(ids, scores, strict=True):
                order = np.lexsort((row_ids, -row_scores))
                found.append([self._filled(int(row_ids[i]), float(row_scores[i])) for i in order])
        return found

    def _filled(self, token_id: int, score: float) -> Filled:
        return Filled(self.tokeniser.tokenizer.decode([token_id], skip_special_tokens=False), token_id, score)
