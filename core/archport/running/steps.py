"""Plan requests of one loaded model with the spans of their rows, and run a planned batch step by step. Decides nothing
that a plan has decided.

Short texts run as one compiled function each: a GPU does them faster than the host can say what to do. On an H200 the
28 layers of Qwen3-Embedding-0.6B take the host some 5 ms to describe, whatever the length of a text, and the device
less. Only what a plan holds in one evaluation is compiled, so no plan grows by it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    AttentionPath,
    DeviceKind,
    Documents,
    DType,
    PluginError,
    Price,
    RecurrentPath,
    Span,
    SpanRule,
    Trunk,
)
from archport.contract.attention import row_spans
from archport.contract.deprecation import documents_as_segments
from archport.contract.errors import shown
from archport.device.evaluation import Stretches
from archport.kernels.launches import described_once
from archport.layers.compiled import Entry, unchanged, weights_and_modules
from archport.memory import Caches
from archport.planning import BatchPlan, Plan, StepPlan
from archport.running.context import StateStep, StepContext
from archport.running.vision import BatchVisual


@dataclass(frozen=True, slots=True)
class RowSpans:
    """Which tokens of the rows of a request see each other whichever comes first.

    Args:
        rows: per row (start, stop), ascending and apart.
    """

    rows: tuple[tuple[Span, ...], ...]

    def edge(self, tokens: int) -> int:
        """The most leading tokens, at most so many, that cut no span of any row."""
        for start, stop in (span for row in self.rows for span in row):
            if start < tokens < stop:
                return self.edge(start)
        return tokens

    def after(self, tokens: int) -> tuple[tuple[Span, ...], ...]:
        """The same without leading tokens, of which no span is cut; empty when nothing is left."""
        found = tuple(tuple((a - tokens, b - tokens) for a, b in row if a >= tokens) for row in self.rows)
        return found if any(found) else ()

    def keys(self, keys: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What rows are remembered by: a token of a span by all of that, since it has seen all of that.

        A remembered span then equals another one whole, or not at all.
        """
        found: list[np.ndarray] = []
        for row, spans in zip(keys, self.rows, strict=True):
            own = row.astype(np.int64)
            for start, stop in spans:
                digest = hashlib.blake2b(own[start:stop].tobytes(), digest_size=8).digest()
                own[start:stop] = -1 - ((int.from_bytes(digest, "little") >> 2) + np.arange(stop - start)) % 2**62
            found.append(own)
        return found


def spans_of(rule: SpanRule | None, rows: Sequence[np.ndarray]) -> RowSpans | None:
    """The spans of rows; None where no rule names any.

    Raises:
        PluginError: the rule's answer is no ascending pairs within a row.
    """
    if rule is None:
        return None
    found = tuple(_checked(rule(row), len(row)) for row in rows)
    return RowSpans(found) if any(found) else None


def _checked(spans: Sequence[Span], length: int) -> tuple[Span, ...]:
    checked = row_spans(spans, length)
    if checked is None:
        raise PluginError(
            f"the spans of archport_inputs are {shown([tuple(span) for span in spans])} for a row of {length} tokens; "
            "expected (start, stop) pairs within the row, ascending and apart from each other"
        )
    return checked


def run_steps(
    trunk: Trunk,
    plan: Plan,
    batch: BatchPlan,
    ids: Sequence[np.ndarray],
    caches: Caches | None = None,
    stretches: Stretches | None = None,
    visual: BatchVisual | None = None,
    passes: CompiledPasses | None = None,
) -> Generator[tuple[StepPlan, mx.array]]:
    """Run a batch as planned; yields each step with its hidden states (B, tokens, D), unevaluated.

    Of a packed batch they are (1, tokens, D), rows one after another. The caller evaluates what it keeps of a
    step before it takes the next one; that is what bounds a chunked prefill.

    Args:
        ids: the batch's rows in its order, ragged.
        caches: what the steps write to; `batch_caches` makes them.
        stretches: shared by the batches of a request, so that the plan's depth holds across them.
        visual: the batch's pictures, seen; None without any.
        passes: the trunk's compiled ones, for batches that keep nothing.

    Raises:
        KvCeilingExceeded: before a step writes anything that a cache can't hold.
    """
    stretches = stretches or Stretches()
    padded = np.zeros((batch.shape.B, batch.shape.L), dtype=np.int32)
    if batch.packed:
        np.concatenate(ids, out=padded[0, : sum(batch.lengths)])
    else:
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = tokens
    longest = max(batch.lengths)
    for step in batch.steps:
        if caches is not None and step.start >= longest:
            # Padding alone, which would push what is real out of a window's cache.
            break
        offsets = (batch.shape.S + step.start,) * batch.shape.B
        if caches is not None:
            caches.check([step.tokens] * batch.shape.B)
        tokens = mx.array(padded[:, step.start : step.start + step.tokens])
        hidden = None
        if passes is not None and caches is None and visual is None:
            hidden = passes.hidden(trunk, plan, batch, step, tokens)
        if hidden is None:
            hidden = trunk(tokens, StepContext(plan, batch, step, offsets, caches, stretches, visual))
        yield step, hidden


def batch_caches(spec: ArchSpec, plan: Plan, batch: BatchPlan) -> Caches | None:
    """The caches a batch needs, empty; None when the plan keeps nothing between its steps."""
    allocations = [batch.kinds[kind].kv for kind in plan.layer_kinds]
    if not any(allocation is not None for allocation in allocations):
        return None
    return Caches(spec.layers, allocations, batch.shape.B, plan.dtype)


class _DTypeProbe:
    """A layer context that runs nothing, to learn the element type of hidden states from an unevaluated graph."""

    documents = Documents()
    segments = documents_as_segments()
    visual = decoding = None

    @property
    def positions(self) -> mx.array:
        # Made where it is used: an array that waits for evaluation belongs to the thread that made it.
        return mx.zeros((1, 1), dtype=mx.int32)

    def rotate(self, q: mx.array, k: mx.array, rope: object) -> tuple[mx.array, mx.array]:
        return q, k

    def pause(self, x: mx.array) -> None:
        pass

    def __init__(self, spec: ArchSpec) -> None:
        self._layers = spec.layers

    def attend(self, layer: int, q: mx.array, k: mx.array | None, v: mx.array | None, **_: object) -> mx.array:
        spec = self._layers[layer]
        # Values may be another layer's, or a part of the keys.
        width = spec.v_head_dim if isinstance(spec, AttentionLayer) else q.shape[-1]
        return mx.zeros((*q.shape[:-1], width), dtype=q.dtype)

    def state(self, layer: int, *_: object) -> StateStep:
        return StateStep(RecurrentPath("sequential", 0, Price(0, 0, 0, 0.0, 0.0)), None)


def hidden_dtype(trunk: Trunk, spec: ArchSpec) -> DType:
    """Element type of a loaded trunk's hidden states; builds a graph of one token and evaluates nothing."""
    hidden = trunk(mx.zeros((1, 1), dtype=mx.int32), _DTypeProbe(spec))
    names: dict[mx.Dtype, DType] = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
    return names[hidden.dtype]


def parameter_bytes(trunk: Trunk) -> int:
    """Bytes that a loaded trunk holds."""
    return sum(array.nbytes for array in dict(tree_flatten(cast(Any, trunk).parameters())).values())


# Shapes with a trace, per thread: more than there are widths of short rows.
MOST = 32

log = logging.getLogger("archport")


@dataclass(frozen=True, slots=True)
class _Trace:
    """A pass as MLX keeps it: by these paths, and with these weights and modules inside."""

    paths: Sequence[object]
    entries: tuple[Entry, ...]
    run: Any

    def serves(self, paths: Sequence[object]) -> bool:
        return paths == self.paths and unchanged(self.entries)


class _Shapes(threading.local):
    """What one thread has traced; MLX's traces belong to the thread that made them."""

    def __init__(self) -> None:
        self.traces = OrderedDict[object, _Trace]()


def compiles(kind: DeviceKind) -> bool:
    """Whether compiled passes gain something: where the host binds, and where that was measured."""
    return kind == "cuda"


class CompiledPasses:
    """The compiled passes of one trunk, from a shape's first time on: the same text has the same vector each time.

    A copy starts with none.
    """

    def __init__(self) -> None:
        self._shapes, self._refused = _Shapes(), False

    def __reduce__(self) -> tuple[type[CompiledPasses], tuple[()]]:
        return CompiledPasses, ()

    def hidden(self, trunk: Trunk, plan: Plan, batch: BatchPlan, step: StepPlan, ids: mx.array) -> mx.array | None:
        """Hidden states (B, L, D) for ids (B, L), unevaluated; None where the pass is to be run in the usual way.

        Args:
            batch: one whose passes keep nothing: no caches, no pictures.
        """
        if self._refused or not (compiles(plan.device.kind) and compilable(plan, batch, step)):
            return None
        mine, key = self._shapes, _key(batch, step)
        found = mine.traces.get(key)
        if found is not None and found.serves(step.paths):
            mine.traces.move_to_end(key)
            return found.run(ids)
        return self._traced(trunk, plan, batch, step, key, ids)

    def _traced(
        self, trunk: Trunk, plan: Plan, batch: BatchPlan, step: StepPlan, key: object, ids: mx.array
    ) -> mx.array | None:
        def run(ids: mx.array) -> mx.array:
            with described_once():
                return trunk(ids, StepContext(plan, batch, step, (0,) * batch.shape.B, None, Stretches()))

        compiled: Any = mx.compile(run)
        try:
            hidden = compiled(ids)
        except ValueError as error:
            # MLX's, for modules that read values while they run: slower so, and as right as ever.
            if "transformation" not in str(error):
                raise
            self._refused = True
            log.debug("short passes are not compiled: %s", error)
            return None
        entries = tuple(weights_and_modules(trunk)) if isinstance(trunk, nn.Module) else ()
        self._shapes.traces[key] = _Trace(step.paths, entries, compiled)
        if len(self._shapes.traces) > MOST:
            self._shapes.traces.popitem(last=False)
        return hidden


def compilable(plan: Plan, batch: BatchPlan, step: StepPlan) -> bool:
    """Whether a batch is one row in one pass that its plan holds in one evaluation: all stretches in flight at once."""
    schedule = batch.schedule
    # Several rows come in too many shapes to trace each.
    if batch.shape.B > 1 or len(batch.steps) > 1 or batch.packed or schedule.split:
        return False
    together = max(schedule.in_flight, 1) if len(plan.batches) == 1 else 1
    if schedule.stretches(len(plan.layer_kinds)) > together:
        return False
    paths = [path for path in step.paths if isinstance(path, AttentionPath)]
    # A trace for each length of a text would be used once.
    return not any(path.call.lengths for path in paths) and all(path.price.evaluations <= 1 for path in paths)


def _key(batch: BatchPlan, step: StepPlan) -> object:
    """What two passes of the same work have in common."""
    work = tuple(
        (path.call, path.backend.name, path.price.route) if isinstance(path, AttentionPath) else path.form
        for path in step.paths
    )
    return batch.shape, work, batch.batch.visible
