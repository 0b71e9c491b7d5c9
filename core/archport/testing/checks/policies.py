"""Tiny tier: every mask policy that the planner takes or admits, in every kind of step that it makes of a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from archport.attention import attend
from archport.contract import (
    ArchSpec,
    AttentionLayer,
    AttentionPath,
    BatchShape,
    DistanceBias,
    DistanceVectors,
    InputError,
    LayerSpec,
    MaskPolicy,
    PluginError,
    Span,
)
from archport.contract.attention import MaskKind
from archport.planning import BatchPlan, NoPins, Pins, Plan, StepPlan
from archport.testing.check import check, fail, skip
from archport.testing.checks.masks import captured, observing_length
from archport.testing.measure import as_array, gap, reference, together
from archport.testing.subject import Tiny

# Policies that say a layer's reach and the lengths of rows themselves; where one of the others is right, it is planned.
CARRYING: tuple[MaskKind, ...] = ("window", "documents", "key_padding", "dense")


@dataclass(frozen=True, slots=True)
class Request:
    """What rows ask of the planner.

    Args:
        name: what it is an example of.
        lengths, cached: new and cached tokens of each row.
        options: others of a plan.
    """

    name: str
    lengths: tuple[int, ...]
    cached: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MaskPin(NoPins):
    """Pins that fix the mask policy of one layer spec and leave the rest to the plugin's own."""

    inner: Pins
    layer: AttentionLayer
    kind: MaskKind

    def mask_policy(self, spec: ArchSpec, layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None:
        return MaskPolicy(self.kind) if layer == self.layer else self.inner.mask_policy(spec, layer, shape)

    def sdpa_backend(self, spec: ArchSpec, layer: LayerSpec, call: Any, device: Any) -> str | None:
        return self.inner.sdpa_backend(spec, layer, call, device)

    def answered_by(self, hook: str) -> str:
        return self.inner.answered_by(hook)


@dataclass(frozen=True, slots=True)
class Shifted:
    """A rule of a row whose queries stand so many positions before those of the longest row."""

    rule: DistanceBias
    ahead: int

    def __call__(self, distances: mx.array) -> mx.array | DistanceVectors:
        return self.rule(distances + self.ahead)


def requests(t: Tiny) -> Iterator[Request]:
    """One of each kind of step: whole and in chunks, equal and ragged, fresh and behind cached tokens, packed."""
    L = observing_length(t)
    short = max(1, L - 7)
    inside = min((side + 1 for layer in t.spec.attention_layers for side in layer.reach if side), default=0)
    if inside > 1:
        yield Request("rows within a window", (inside, inside), (0, 0), {})
    yield Request("equal rows", (L, L), (0, 0), {})
    yield Request("ragged rows", (L, short), (0, 0), {})
    yield Request("short rows that may be packed", (11, 5, 7), (0, 0, 0), {"pack": True})
    spans = _spans(t, L, short)
    if any(spans):
        yield Request("rows with spans", (L, short), (0, 0), {"spans": spans})
    if not t.keeps:
        yield Request("rows whose ends are hidden", (L, L), (0, 0), {"visible": (L - 5, short)})
        return
    S, generate = min(L, t.spec.max_positions - 8), {"mode": "generate"}
    yield Request("ragged rows in chunks", (L, short), (0, 0), {"chunk": 16, **generate})
    yield Request("rows behind cached tokens", (5, 5), (S, S), generate)
    yield Request("one query behind cached tokens", (1, 1), (S, S), generate)
    yield Request("ragged rows behind cached tokens", (6, 2), (S, S), generate)
    yield Request("rows behind different numbers of cached tokens", (5, 5), (S, max(1, S - 3)), generate)
    if any(spans):
        few = {"spans": (((0, 3),), ((1, 5),))}
        yield Request("rows with spans in chunks", (L, short), (0, 0), {"chunk": 16, "spans": spans, **generate})
        yield Request("rows with spans behind cached tokens", (5, 5), (S, S), {**few, **generate})
        yield Request("rows with spans behind different ones", (5, 5), (S, max(1, S - 3)), {**few, **generate})


def _spans(t: Tiny, *lengths: int) -> tuple[tuple[Span, ...], ...]:
    """Spans of rows of these lengths that differ, for specs whose layers know any."""
    if not any(layer.spans for layer in t.spec.attention_layers):
        return ()
    return tuple(((n // 8 + at, n // 2), (n // 2, max(n // 2, n - 2))) for at, n in enumerate(lengths))


@check("tiny", hook="archport_mask_policy")
def mask_policies_agree(t: Tiny) -> str:
    """Every mask policy that the planner admits gives what a dense mask gives in float64, in every kind of step.

    A backend must honour the lengths and the reach of the call it accepts, under every policy.
    """
    if not t.attention:
        skip("no attention layer is declared")
    worst, count, kinds = 0.0, 0, set[str]()
    for request in requests(t):
        for layer, batch, step, path in _paths(t, request):
            difference = _difference(t, request, layer, batch, step, path)
            worst, count = max(worst, difference), count + 1
            kinds.add(path.call.mask)
            if difference > t.limit:
                fail(
                    f"policy {path.call.mask!r} on backend {path.backend.name!r} differs by {difference:.2g} (limit "
                    f"{t.limit:.0e}) from a dense mask for a {layer.semantics} layer of reach {layer.reach}, "
                    f"{request.name}: {path.call.q_len} queries of {path.call.kv_len} keys"
                )
    return f"{count} calls of {', '.join(sorted(kinds))}, {worst:.1e}"


def _paths(t: Tiny, request: Request) -> Iterator[tuple[AttentionLayer, BatchPlan, StepPlan, AttentionPath]]:
    """Every path that some legal policy leads to, once."""
    known: set[tuple[object, ...]] = set()
    options = {"cached": request.cached, **request.options}
    for _, layer in t.attention:
        for kind in (None, *CARRYING):
            pins = t.planner.pins if kind is None else MaskPin(t.planner.pins, layer, kind)
            try:
                plan = t.plan(request.lengths, pins=pins, **options)
            except (PluginError, InputError):
                # Not legal here, or no backend takes the pin: that is the planner's to say.
                if kind is None:
                    raise
                continue
            for batch, step, path in _of_layer(plan, layer):
                key = (layer, batch.rows, step.start, path.call, path.backend.name)
                if key not in known:
                    known.add(key)
                    yield layer, batch, step, path


def _of_layer(plan: Plan, layer: AttentionLayer) -> Iterator[tuple[BatchPlan, StepPlan, AttentionPath]]:
    for batch in plan.batches:
        for kind, decided in enumerate(batch.kinds):
            for step in batch.steps:
                path = step.paths[kind]
                if decided.layer == layer and isinstance(path, AttentionPath):
                    yield batch, step, path


def _difference(
    t: Tiny, request: Request, layer: AttentionLayer, batch: BatchPlan, step: StepPlan, path: AttentionPath
) -> float:
    """How far a path is from float64 at the rows that are no padding, for random queries, keys and values."""
    call, drawn = path.call, np.random.default_rng(t.example.seed)
    made = captured(t, observing_length(t))[dict((each, index) for index, each in t.attention)[layer]]
    shapes = (
        (call.B, call.n_heads, call.q_len, call.head_dim),
        (call.B, call.n_kv_heads, call.kv_len, call.head_dim),
        (call.B, call.n_kv_heads, call.kv_len, call.v_head_dim),
    )
    q, k, v = (mx.array(drawn.standard_normal(shape).astype(np.float32)) for shape in shapes)
    out = as_array(attend(path, q, k, v, scale=made.scale, sinks=made.sinks, bias=made.bias, zero_padding=False))
    worst = 0.0
    for row, seen in enumerate(_seen(request, layer, batch, step, call.kv_len)):
        real = seen.any(axis=-1)
        # Queries of padding see nothing and are not compared.
        shown = seen | ~np.expand_dims(real, -1)
        ahead = 0 if batch.packed else batch.shape.S - request.cached[batch.rows[row]]
        bias = None if made.bias is None else Shifted(made.bias, ahead)
        one = slice(row, row + 1)
        want = reference(q[one], k[one], v[one], made.scale, shown, made.sinks, layer.softcap, bias)
        worst = max(worst, gap(out[one][:, :, real], want[:, :, real]))
    return worst


def _seen(request: Request, layer: AttentionLayer, batch: BatchPlan, step: StepPlan, kv_len: int) -> np.ndarray:
    """(rows, queries, keys) bool: what the declared layer lets each real query see, by the request alone."""
    named = request.options.get("spans")
    if batch.packed:
        document = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
        document = np.pad(document, (0, batch.shape.L - len(document)), constant_values=-1)
        at = np.concatenate([np.arange(length) for length in (*batch.lengths, len(document) - sum(batch.lengths))])
        near = _near(layer, at[:, None], at[None])
        return (near & (document[:, None] == document[None]) & (document[:, None] >= 0))[None]
    found: list[np.ndarray] = []
    for index, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        cached = request.cached[row]
        queries: np.ndarray = np.arange(step.start, step.start + step.tokens)
        # What a window's cache dropped lies in front of the keys that are there.
        first = batch.shape.S + step.start + step.tokens - kv_len
        keys: np.ndarray = np.arange(first, first + kv_len)
        known = cached + (batch.batch.visible[index] if batch.batch.visible else length)
        spans = [(cached + a, cached + b) for a, b in named[row]] if named and layer.spans else []
        seen = _near(layer, cached + queries[:, None], keys[None], together(cached + queries, keys, spans))
        found.append(seen & (keys[None] < known) & (queries[:, None] < length))
    return np.stack(found)


def _near(layer: AttentionLayer, query: np.ndarray, key: np.ndarray, spanned: np.ndarray | bool = False) -> np.ndarray:
    """Whether keys at these positions are within the layer's reach of queries at those, or on their right in a span."""
    left, right = layer.reach
    near = np.ones(np.broadcast_shapes(query.shape, key.shape), dtype=bool)
    if left is not None:
        near &= key >= query - left
    if right is not None:
        near &= (key <= query + right) | spanned
    if layer.chunk is not None:
        near &= key // layer.chunk == query // layer.chunk
    return near
