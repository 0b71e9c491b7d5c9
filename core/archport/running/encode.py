"""Encode rows through a trunk as planned: vectors for `embed`, hidden states for `forward`, scores for whoever scores.

A plan runs within the pool that it says. With ARCHPORT_VERIFY_MEMORY=1 what it predicts is compared with what MLX says:
measuring waits for the device and makes each batch wait for the one before it, so that what is read belongs to one
batch; it is off by default. Two batches that overlap are measured by `archport.testing.measure`.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from archport.contract import AdmissionRefused, ArchSpec, InputError, Measured, Reader, SpanRule, Trunk
from archport.contract.arguments import as_array
from archport.device import evaluation
from archport.device.evaluation import Stretches
from archport.device.pool import bounded, pool, wired
from archport.device.ranks import joined
from archport.memory import Caches
from archport.planning import BatchPlan, Plan, Planner, Request
from archport.reading.ids import beyond, id_rows, named
from archport.running.calls import note
from archport.running.pixels import with_host_bytes
from archport.running.pool import PackedPooling, Pooling, VectorHead
from archport.running.steps import CompiledPasses, batch_caches, run_steps, spans_of
from archport.running.vision import BatchVisual, Sight

VARIABLE = "ARCHPORT_VERIFY_MEMORY"

# Components of a plan that may be there when a batch is done: what the caller still reads, and what is decoded from.
_KEPT = ("weights", "outputs", "logits", "margin")
_CACHES = ("kv_cached", "kv", "kv_growth", "kv_conversion")

T = TypeVar("T")

log = logging.getLogger("archport")


def verifying() -> bool:
    """Whether plans are compared with what they take."""
    return os.environ.get(VARIABLE) == "1"


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """What one batch took, beside what its plan said. Bytes; what others of the process hold is left out.

    Args:
        stage: `batch`, `prefill` or `decode`.
        rows, tokens: of the batch, padding included.
        measured, planned: the highest active bytes, and the plan's peak with no more of the prefix cache than there is.
        left, resident: active bytes when it was done, and those that may be there.
        pool, pool_limit: freed buffers that MLX kept, and those that it may keep.
    """

    stage: str
    rows: int
    tokens: int
    measured: int
    planned: int
    left: int
    resident: int
    pool: int
    pool_limit: int

    @property
    def holds(self) -> bool:
        """Whether the peak, and what was left in use and in the pool, are within the plan."""
        return self.measured <= self.planned and self.left + self.pool <= self.resident + self.pool_limit

    def log(self) -> None:
        """One line; the record carries this reading as its attribute `reading`."""
        log.warning(
            "memory of a %s: measured %s bytes, predicted %s, predicted/measured %.2f; %s left, %s in the pool%s",
            f"{self.stage} of {self.rows} x {self.tokens:,} tokens",
            f"{self.measured:,}",
            f"{self.planned:,}",
            self.planned / max(self.measured, 1),
            f"{self.left:,}",
            f"{self.pool:,}",
            "" if self.holds else "; the plan was too low, please report it",
            extra={"reading": self},
        )


class Held(Protocol):
    """What outlives a request, such as a prefix cache: its bytes now, and at most while the request ran."""

    @property
    def bytes(self) -> int: ...

    @property
    def most(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """So many bytes, all the while."""

    bytes: int = 0

    @property
    def most(self) -> int:
        return self.bytes


class Watch:
    """Measures the batches of a plan while it runs; does nothing unless the variable is set.

    Args:
        plan: of the request.
        limit: bytes that the pool may hold.
        held: of what the plan counts as resident.
    """

    def __init__(self, plan: Plan, limit: int, held: Held) -> None:
        self._plan, self._on, self._held, self._others, self._peak = plan, verifying(), held, 0, 0
        # A larger request of a little while ago may have left its buffers.
        self._limit = max(limit, plan.pool)
        if self._on:
            mx.synchronize()
            mx.clear_cache()
            mx.reset_peak_memory()
            # Other models of this process are not part of the plan.
            self._others = max(0, mx.get_active_memory() - plan.bytes["weights"] - held.bytes)

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Keep to what the plan may hold together inside this block, and keep the model resident on a Mac."""
        plan = self._plan
        note(plan, getattr(self._held, "cache", None))
        with wired(plan.device), bounded(plan.device, plan.together - plan.peak + plan.moving):
            yield

    @contextmanager
    def batch(self, batch: BatchPlan) -> Iterator[None]:
        """Run a batch inside this block, results taken to the host included."""
        self._start()
        yield
        self._take()
        self._tell("batch", batch)

    def batches(self, batches: Iterable[BatchPlan]) -> Iterator[BatchPlan]:
        """The batches; each is done when the next one is asked for."""
        for batch in batches:
            with self.batch(batch):
                yield batch

    def prefilled(self, copied: Held | None = None) -> None:
        """Note that the prompts are read, of a plan with one batch whose caches stay.

        Args:
            copied: what was made of them, where the plan counts that as resident.
        """
        self._take()
        self._held = copied or self._held
        self._tell("prefill", self._plan.batches[0], _CACHES)

    def decoding(self, pieces: Generator[T, None, None]) -> Generator[T, None, None]:
        """The pieces of a generation, closed with this; what the caller does between two of them is not measured."""
        with self.limits():
            if not self._on:
                yield from pieces
                return
            try:
                while True:
                    self._start()
                    piece = next(pieces, None)
                    self._take()
                    if piece is None:
                        break
                    yield piece
            finally:
                pieces.close()
            # With the generator, its caches go.
            del pieces, piece
            self._tell("decode", self._plan.batches[0])

    def _start(self) -> None:
        if self._on:
            mx.reset_peak_memory()

    def _take(self) -> None:
        if self._on:
            mx.synchronize()
            self._peak = max(self._peak, mx.get_peak_memory() - self._others)

    def _tell(self, stage: str, batch: BatchPlan, more: Iterable[str] = ()) -> None:
        if not self._on:
            return
        # An allocation makes MLX trim its pool; until then it may be a buffer above its limit.
        mx.eval(mx.zeros((2,)) + 1)
        mx.synchronize()
        left = mx.get_active_memory() - self._others
        resident = self._held.bytes + sum(batch.bytes.get(name, 0) for name in (*_KEPT, *more))
        planned = batch.peak - batch.bytes.get("resident", 0) + max(self._held.bytes, self._held.most)
        kept = mx.get_cache_memory()
        peak, self._peak = self._peak, 0
        shape = batch.shape
        MemoryReading(stage, shape.B, shape.L, peak, planned, left, resident, kept, self._limit).log()


@contextmanager
def verified(plan: Plan, held: Held | None = None) -> Iterator[Watch]:
    """Run a plan inside this block: MLX's pool keeps no more than it says, and a Mac keeps the model resident.

    Args:
        held: of what the plan counts as resident; nothing when left out.
    """
    group = joined() if plan.split is not None else None
    if group is not None:
        group.agree("the request", plan.request)
    watch = Watch(plan, pool().hold(plan.pool, plan.room), held or Kept())
    with watch.limits():
        yield watch


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded trunk and the planner of its requests.

    Args:
        trunk: ids (B, L) to hidden states (B, L, D).
        spec: its architecture.
        rule: which tokens of a row see each other whichever comes first; None where none do.
        passes: the trunk's short passes, compiled.
    """

    trunk: Trunk
    spec: ArchSpec
    plan: Planner
    rule: SpanRule | None = None
    passes: CompiledPasses = field(default_factory=CompiledPasses, repr=False, compare=False)

    def planned(
        self, rows: Sequence[np.ndarray], *, what: str | None = None, place: Callable[[int], int] = int, **options: Any
    ) -> Plan:
        """The plan of rows of ids, and of the spans in them; `options` are those of a `Request`.

        Args:
            what: how a refusal of one row calls it ("text"); without it the error knows the row alone.
            place: a row to its index in what the caller gave.
        """
        spans = spans_of(self.rule, rows)
        seen = () if spans is None else spans.rows
        try:
            return self.plan(Request(lengths=[len(row) for row in rows], spans=seen, **options))
        except AdmissionRefused as error:
            if what is not None and error.row is not None:
                error.args = (f"{what} {place(error.row)}: {error}", *error.args[1:])
                error.row = None
            raise

    def with_pictures(self, plan: Plan, measured: Sequence[Measured]) -> Plan:
        """The plan with the bytes of host memory that the pictures of the inputs that it indexes take at the peak."""
        return plan if self.spec.vision is None else with_host_bytes(plan, measured, self.spec.vision)

    def sight(self, reader: Reader | None, stretches: Stretches) -> AbstractContextManager[Sight | None]:
        """The sight of one request, closed at the end of the block; None for a model that reads text only."""
        return nullcontext() if reader is None else Sight(self.trunk, reader, stretches)

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
        with closing(run_steps(self.trunk, plan, batch, ids, caches, stretches, visual, self.passes)) as steps:
            for step, hidden in steps:
                pooling.add(hidden, step.start)
                if len(batch.steps) > 1:
                    pooling.evaluate(hidden)
                del hidden
        rows = pooling.rows()
        stretches.start(rows, room=plan.ahead(batch))
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
        if not real:
            return mx.zeros((*ids.shape, self.spec.hidden_size))
        plan = self.planned([ids[row, starts[row] : starts[row] + lengths[row]] for row in real])
        out = mx.zeros((*ids.shape, self.spec.hidden_size), getattr(mx, self.plan.dtype))
        mx.eval(out)
        with verified(plan, Kept(out.nbytes)) as watch:
            for batch in watch.batches(plan.batches):
                rows = [real[index] for index in batch.rows]
                tokens = [ids[row, starts[row] : starts[row] + lengths[row]] for row in rows]
                hidden = self._hidden(plan, batch, tokens)
                for index, row in enumerate(rows):
                    # A slice is a view; a number alone (`hidden[index]`), `mx.pad` and `mx.stack` would copy.
                    out[row, starts[row] : starts[row] + lengths[row]] = hidden[index, : lengths[row]]
                # Into the buffer that is there, or every batch's states would wait for the last one's.
                evaluation.finish(out)
                del hidden
        return out

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


def run_scored(
    plan: Plan,
    start: Callable[[BatchPlan], mx.array],
    take: Callable[[Sequence[int], np.ndarray], None],
    *,
    held: Held | None = None,
    batches: Iterable[BatchPlan] | None = None,
) -> None:
    """Score the rows of a plan, batch by batch: the one loop of everything that scores.

    Args:
        start: a batch's scores (B, ...), unevaluated.
        take: given the rows of a batch and their scores.
        held: of what the plan counts as resident; nothing when left out.
        batches: the plan's, where something has to be done before each is started.
    """
    with verified(plan, held=held) as watch:
        run_ahead(
            watch.batches(plan.batches if batches is None else batches),
            start,
            lambda batch, scores: take(batch.rows, np.array(scores)),
        )
