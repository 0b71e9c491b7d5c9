"""Encode rows through a trunk as planned: vectors for `embed`, hidden states for `forward`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from archport.contract import ArchSpec, InputError, SpanRule, Trunk
from archport.contract.arguments import as_array
from archport.device import evaluation
from archport.memory import Caches
from archport.planning import BatchPlan, Plan, Planner, Request
from archport.reading.ids import beyond, id_rows, named
from archport.running.packed import PackedPooling
from archport.running.pool import Pooling, VectorHead
from archport.running.spans import spans_of
from archport.running.steps import batch_caches, run_steps
from archport.running.stretches import Stretches
from archport.running.verify import verified, verifying
from archport.running.vision import BatchVisual

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded trunk and the planner of its requests.

    Args:
        trunk: ids (B, L) to hidden states (B, L, D).
        spec: its architecture.
        rule: which tokens of a row see each other whichever comes first; None where none do.
    """

    trunk: Trunk
    spec: ArchSpec
    plan: Planner
    rule: SpanRule | None = None

    def planned(self, rows: Sequence[np.ndarray], **options: Any) -> Plan:
        """The plan of rows of ids, and of the spans in them; `options` are those of a `Request`."""
        spans = spans_of(self.rule, rows)
        seen = () if spans is None else spans.rows
        return self.plan(Request(lengths=[len(row) for row in rows], spans=seen, **options))

    def pooled(
        self,
        plan: Plan,
        batch: BatchPlan,
        ids: Sequence[np.ndarray],
        head: VectorHead,
        prompt_tokens: int,
        stretches: Stretches | None = None,
        visual: BatchVisual | None = None,
    ) -> mx.array:
        """Vectors (B, D') of a batch's rows, before dimensions and unit length; being evaluated."""
        kind = PackedPooling if batch.packed else Pooling
        pooling = kind(batch.lengths, head.head.pooling, head.skipped(prompt_tokens))
        caches = batch_caches(self.spec, plan, batch)
        return head.project(self._pool(pooling, plan, batch, ids, caches, stretches, visual))

    def last_hidden(
        self,
        plan: Plan,
        batch: BatchPlan,
        ids: Sequence[np.ndarray],
        caches: Caches | None,
        stretches: Stretches | None = None,
        visual: BatchVisual | None = None,
    ) -> mx.array:
        """Hidden states (B, D) float32 of the rows' last tokens; being evaluated.

        Args:
            caches: what the steps write to, made by `batch_caches`.
            visual: the batch's pictures, seen.
        """
        return self._pool(Pooling(batch.lengths, ("last",)), plan, batch, ids, caches, stretches, visual)

    def _pool(
        self,
        pooling: Pooling | PackedPooling,
        plan: Plan,
        batch: BatchPlan,
        ids: Sequence[np.ndarray],
        caches: Caches | None,
        stretches: Stretches | None,
        visual: BatchVisual | None = None,
    ) -> mx.array:
        stretches = stretches or Stretches()
        with closing(run_steps(self.trunk, plan, batch, ids, caches, stretches, visual)) as steps:
            for step, hidden in steps:
                pooling.add(hidden, step.start)
                if len(batch.steps) > 1:
                    pooling.evaluate(hidden)
                del hidden
        rows = pooling.rows()
        stretches.start(plan, batch, rows)
        return rows

    def forward(self, input_ids: object, attention_mask: object = None) -> mx.array:
        """Hidden states (B, L, D) in the caller's own layout, padded left or right; zeros at padding.

        The rows are run as the planner batches them and moved to where they were, so no mask of (L, L) ever exists.

        Args:
            input_ids: (B, L) integers below the vocabulary size.
            attention_mask: (B, L), 1 or true at real tokens, which are contiguous in each row; None: all are real.

        Raises:
            InputError: for a wrong shape, type, token id, or a mask with holes.
            AdmissionRefused: when the rows do not fit the memory budget.
        """
        ids = id_rows(input_ids, "input_ids")
        L = ids.shape[1]
        if L > self.spec.max_positions:
            raise InputError(f"input_ids is {L} tokens long; this model has {self.spec.max_positions} positions")
        starts, lengths = _extents(attention_mask, ids.shape)
        ids = _known(ids, starts, lengths, self.spec.vocab_size)
        real = [row for row, length in enumerate(lengths) if length]
        out: list[mx.array | None] = [None] * len(ids)
        if real:
            plan = self.planned([ids[row, starts[row] : starts[row] + lengths[row]] for row in real])
            with verified(plan) as watch:
                for batch in watch.batches(plan.batches):
                    rows = [real[index] for index in batch.rows]
                    tokens = [ids[row, starts[row] : starts[row] + lengths[row]] for row in rows]
                    hidden = self._hidden(plan, batch, tokens)
                    for index, row in enumerate(rows):
                        before, after = starts[row], L - starts[row] - lengths[row]
                        out[row] = mx.pad(hidden[index, : lengths[row]], [(before, after), (0, 0)])
        blank = mx.zeros(
            (L, self.spec.hidden_size), dtype=next((row.dtype for row in out if row is not None), mx.float32)
        )
        return mx.stack([blank if row is None else row for row in out])

    def _hidden(self, plan: Plan, batch: BatchPlan, ids: Sequence[np.ndarray]) -> mx.array:
        """Hidden states (B, L, D) of a batch's rows, evaluated."""
        pieces: list[mx.array] = []
        caches = batch_caches(self.spec, plan, batch)
        with closing(run_steps(self.trunk, plan, batch, ids, caches)) as steps:
            for _step, hidden in steps:
                evaluation.finish(hidden)
                pieces.append(hidden)
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)


def _known(ids: np.ndarray, starts: Sequence[int], lengths: Sequence[int], vocabulary: int) -> np.ndarray:
    """Ids (B, L) int32 that the vocabulary has, zeros at padding, whatever stood there."""
    found = np.zeros(ids.shape, np.int32)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        tokens = ids[row, start : start + length]
        bad = tokens[beyond(tokens, vocabulary)]
        if len(bad):
            raise InputError(
                f"row {row} of input_ids holds token id {named(bad[0])}; the vocabulary has {vocabulary} entries"
            )
        found[row, start : start + length] = tokens
    return found


def _extents(attention_mask: object, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Start and length of the real tokens of each row."""
    B, L = shape
    if attention_mask is None:
        return [0] * B, [L] * B
    mask = as_array(attention_mask, "attention_mask")
    if mask.shape != shape:
        raise InputError(f"attention_mask has shape {mask.shape}; expected that of input_ids, {shape}")
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError("attention_mask holds values other than 0 and 1; expected 1 at real tokens, 0 at padding")
    mask = mask.astype(bool)
    lengths = mask.sum(axis=1)
    starts = np.where(lengths > 0, mask.argmax(axis=1), 0)
    for row in range(B):
        if not mask[row, starts[row] : starts[row] + lengths[row]].all():
            raise InputError(
                f"attention_mask of row {row} has a hole; expected real tokens in one stretch, padded left or right"
            )
    return starts.tolist(), lengths.tolist()


def run_ahead(items: Iterable[T], start: Callable[[T], mx.array], finish: Callable[[T, mx.array], None]) -> None:
    """Start and finish items in their order, two under way, so that host and device work overlap.

    Where memory is verified there is one, so that what is measured belongs to one batch.

    Args:
        start: called with an item; returns its lazy result, which is evaluated asynchronously.
        finish: called with an item and its result, which it waits for.
    """
    depth, waiting = 1 if verifying() else 2, deque[tuple[T, mx.array]]()
    for item in items:
        result = start(item)
        mx.async_eval(result)
        waiting.append((item, result))
        if len(waiting) >= depth:
            finish(*waiting.popleft())
    while waiting:
        finish(*waiting.popleft())
