"""Measuring: differences, peaks, a float64 reference of attention, and contexts that watch what a module asks for.

Knows what attention means and how a LayerContext is used; knows no plugin and no limit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from archport.attention import attend
from archport.contract import (
    AttentionCall,
    AttentionLayer,
    DistanceBias,
    DistanceVectors,
    Documents,
    LayerContext,
    LayerSpec,
    MaskPolicy,
    RecurrentLayer,
    Span,
)
from archport.contract.deprecation import documents_as_segments
from archport.device.evaluation import Stretches
from archport.planning import BatchPlan, Plan, Planner
from archport.planning.steps import choose_form
from archport.running.context import StateStep, StepKeys
from archport.running.encode import Encoder, run_ahead
from archport.running.pool import VectorHead


def gap(got: object, want: object) -> float:
    """Largest difference, relative to the largest magnitude of `want`; infinite when either is not finite."""
    a, b = as_array(got), as_array(want)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(b).max(initial=0.0)), 1e-30))


def as_array(value: object) -> np.ndarray:
    """A float64 numpy array of any array, bfloat16 of MLX included."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64)
    return np.array(value.astype(mx.float32) if isinstance(value, mx.array) else value, dtype=np.float64)


def visible(layer: AttentionLayer, q_len: int, kv_len: int, spans: Sequence[Span] = ()) -> np.ndarray:
    """Which of `kv_len` keys the last `q_len` positions see, (q_len, kv_len) bool, by the layer's reach or chunk.

    Args:
        spans: keys [start, stop) that see each other whichever comes first, in layers that know spans.
    """
    keys, queries = np.arange(kv_len), np.arange(kv_len - q_len, kv_len)
    ahead = keys[None] - queries[:, None]
    left, right = layer.reach
    seen = np.ones_like(ahead, dtype=bool)
    if layer.chunk is not None:
        keys = np.arange(kv_len)
        seen &= keys[None] // layer.chunk == keys[kv_len - q_len :, None] // layer.chunk
    if left is not None:
        seen &= ahead >= -left
    if layer.semantics == "causal":
        seen &= (ahead <= 0) | (together(queries, keys, spans) if layer.spans else False)
    elif right is not None:
        seen &= ahead <= right
    if layer.chunk is not None:
        seen &= keys[None] // layer.chunk == queries[:, None] // layer.chunk
    return seen


def together(queries: np.ndarray, keys: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """(queries, keys) bool: whether both stand in one span."""
    found = np.zeros((len(queries), len(keys)), dtype=bool)
    for start, stop in spans:
        found |= ((queries >= start) & (queries < stop))[:, None] & ((keys >= start) & (keys < stop))[None]
    return found


def reference(
    q: object,
    k: object,
    v: object,
    scale: float,
    seen: np.ndarray,
    sinks: object | None = None,
    softcap: float | None = None,
    bias: DistanceBias | None = None,
) -> np.ndarray:
    """Attention in float64: q (B, H, L, Dh), k (B, K, S, Dh), v (B, K, S, Dv), seen broadcastable to (B, H, L, S)."""
    q, k, v = as_array(q), as_array(k), as_array(v)
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, axis=1), np.repeat(v, repeat, axis=1)
    scores = q @ k.swapaxes(-1, -2) * scale
    if softcap is not None:
        scores = np.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + distance_bias(bias, q, k)
    scores = np.where(seen, scores, -np.inf)
    if sinks is not None:
        extra = np.broadcast_to(as_array(sinks).reshape(1, -1, 1, 1), (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, extra], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights[..., : k.shape[2]] @ v


def distance_bias(rule: DistanceBias, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """What a rule adds for queries (B, H, L, Dh) of the last positions on keys (B, H, S, Dh), (1 or B, H, L, S)."""
    q_len, kv_len = q.shape[2], k.shape[2]
    place = np.arange(kv_len)[None] - (np.arange(q_len) + kv_len - q_len)[:, None] + kv_len - 1
    line = rule(mx.arange(1 - kv_len, kv_len, dtype=mx.int32))
    if not isinstance(line, DistanceVectors):
        return as_array(line)[None, :, place]
    added = np.zeros((*q.shape[:3], kv_len))
    if line.queries is not None:
        added += np.einsum("bhld,hlsd->bhls", q, as_array(line.queries)[:, place])
    if line.keys is not None:
        added += np.einsum("bhsd,hlsd->bhls", k, as_array(line.keys)[:, place])
    return added


@dataclass(frozen=True, slots=True)
class Attended:
    """One call of `ctx.attend` as a module made it: without the keys and values that are another layer's."""

    layer: int
    q: mx.array
    k: mx.array | None
    v: mx.array | None
    scale: float
    sinks: mx.array | None
    out: mx.array
    bias: DistanceBias | None = None

    def first(self, length: int) -> Attended:
        """The same of the first tokens alone."""
        k, v = (each if each is None else each[:, :, :length] for each in (self.k, self.v))
        return replace(self, q=self.q[:, :, :length], k=k, v=v, out=self.out[:, :, :length])


@dataclass(slots=True)
class Tap:
    """A context that notes every attend and hands it on.

    Args:
        inner: the context that runs it.
        calls: where they are noted.
        tokens: where the tokens of each step are noted.
    """

    inner: Any
    calls: list[Attended] = field(default_factory=list[Attended])
    again: Callable[[Tap, Attended], None] | None = None

    @property
    def positions(self) -> mx.array:
        return self.inner.positions

    def rotate(self, q: mx.array, k: mx.array, rope: Any) -> tuple[mx.array, mx.array]:
        return self.inner.rotate(q, k, rope)

    def pause(self, x: mx.array) -> None:
        self.inner.pause(x)

    def attend(
        self,
        layer: int,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None,
        *,
        scale: float,
        sinks: mx.array | None = None,
        softcap: float | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        out = self.inner.attend(layer, q, k, v, scale=scale, sinks=sinks, softcap=softcap, bias=bias)
        call = Attended(layer, q, k, v, scale, sinks, out, bias)
        self.calls.append(call)
        if self.again is not None:
            self.again(self, call)
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class PackedContext:
    """Several documents one behind another in a single row: each has its own positions and sees only itself.

    Args:
        layers: specs of the trunk.
        lengths: tokens per document.
        planner: whose device and chooser run the attention.
    """

    decoding = None

    def __init__(self, layers: Sequence[LayerSpec], lengths: Sequence[int], planner: Planner) -> None:
        self._keys = StepKeys(layers)
        self._layers, self._lengths, self._planner = layers, tuple(lengths), planner
        self._positions = mx.concatenate([mx.arange(length, dtype=mx.int32) for length in lengths])[None]

    @property
    def positions(self) -> mx.array:
        return self._positions

    @property
    def visual(self) -> None:
        return None

    def rotate(self, q: mx.array, k: mx.array, rope: Any) -> tuple[mx.array, mx.array]:
        edges = np.cumsum(self._lengths)[:-1].tolist()
        turned = [
            mx.concatenate([rope(part, 0) for part in mx.split(array, edges, axis=2)], axis=2) for array in (q, k)
        ]
        return turned[0], turned[1]

    def pause(self, x: mx.array) -> None:
        pass

    def attend(
        self,
        layer: int,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None,
        *,
        scale: float,
        sinks: mx.array | None = None,
        softcap: float | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        spec = self._layers[layer]
        assert isinstance(spec, AttentionLayer), f"layer {layer} is declared recurrent but called attend"
        L = sum(self._lengths)
        k, v = self._keys.of(layer, spec, k, v, None)
        call = AttentionCall.of(
            spec,
            MaskPolicy("documents"),
            self._planner.device,
            B=1,
            q_len=L,
            kv_len=L,
            dtype=self._planner.dtype,
            lengths=self._lengths,
        )
        return attend(self._planner.choose(call, self._planner.device), q, k, v, scale=scale, sinks=sinks, bias=bias)

    @property
    def documents(self) -> Documents:
        return Documents(age=self._positions)

    segments = documents_as_segments()

    def state(self, layer: int, *_: object) -> StateStep:
        spec = self._layers[layer]
        assert isinstance(spec, RecurrentLayer), f"layer {layer} is declared an attention layer but asked for state"
        return StateStep(choose_form(spec, self._planner.device, B=1, tokens=sum(self._lengths), dtype="float32"), None)


def taps(store: list[Tap], again: Callable[[Tap, Attended], None] | None = None) -> Callable[[LayerContext], Any]:
    """A wrapper of contexts that keeps each step's Tap in `store`."""

    def wrap(ctx: LayerContext) -> Tap:
        store.append(Tap(ctx, again=again))
        return store[-1]

    return wrap


# Runs after which the highest peak is taken. MLX frees what an operation read when the device has passed it, and the
# host may be a hundred operations ahead or none: which arrays coexist differs from run to run.
RUNS = 10


def peaks(run: Callable[[], object], *, weights: int, runs: int = RUNS) -> Iterator[int]:
    """The highest active bytes of each run, the model's weights included, what else the process holds left out.

    The one measure that plans are compared with: `Plan.peak` counts the weights too, so a tiny model's plan is judged
    by the whole peak, of which its temporaries may be a small part. numpy's scratch of attention on a CPU, which plans
    count, is not in it. Freed buffers are given up before each run.

    Args:
        run: evaluates what it makes.
        weights: bytes of them that are there already.
    """
    steps = random.Random(0)
    for turn in range(runs):
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        others = max(0, mx.get_active_memory() - weights)
        run()
        mx.synchronize()
        yield mx.get_peak_memory() - others
        # So many operations more that what MLX counts in tens ends elsewhere, whatever a run adds to it.
        counted = mx.zeros((1,))
        for _ in range(steps.randrange(10)):
            counted = counted + turn
        mx.eval(counted)


def run_plan(encoder: Encoder, plan: Plan, rows: Sequence[np.ndarray], head: VectorHead) -> None:
    """Pool the rows of a request as planned, two batches under way as `embed` has them, and drop the vectors."""
    stretches = Stretches()

    def start(batch: BatchPlan) -> mx.array:
        ids = [rows[row] for row in batch.rows]
        vectors = encoder.pooled(plan, batch, ids, head, 0, stretches)
        return head.finish(vectors, dimensions=None, normalize=None)

    def take(_: BatchPlan, vectors: mx.array) -> None:
        np.array(vectors)

    run_ahead(plan.batches, start, take)


@contextmanager
def host_ahead() -> Iterator[None]:
    """Run a block with the host as far ahead of its device as MLX lets it get: the highest peak any run may have.

    Something slow in front of each evaluation keeps the device busy while the host hands it the rest.
    """
    busy = _waiting() if mx.cuda.is_available() else _multiplying()
    evaluate, started = mx.eval, mx.async_eval

    def behind(then: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arrays: Any) -> Any:
            # It is released when the device has passed it.
            started(busy())
            return then(*arrays)

        return run

    mx.eval, mx.async_eval = behind(evaluate), behind(started)
    try:
        yield
    finally:
        mx.eval, mx.async_eval = evaluate, started


def _multiplying() -> Callable[[], mx.array]:
    """A product that a CPU needs long for."""
    row, column = mx.ones((1, 1 << 20)), mx.ones((1 << 20, 1))
    mx.eval(row, column)
    return lambda: row @ column


# Clock ticks of the device, about 5 ms.
TICKS = 10_000_000


def _waiting() -> Callable[[], mx.array]:
    """A kernel of one thread that looks at the clock; no product of a few bytes keeps a GPU busy."""
    # MLX's stubs call it an object.
    wait: Any = mx.fast.cuda_kernel(
        name="wait",
        input_names=["one"],
        output_names=["out"],
        source=f"long long from = clock64(); while (clock64() - from < {TICKS}) {{}} out[0] = one[0];",
    )
    one = mx.ones((1,))
    mx.eval(one)
    return lambda: wait(
        inputs=[one], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[mx.float32]
    )[0]


@contextmanager
def held(bytes_: int) -> Iterator[None]:
    """Run a block while so many bytes of the device are taken by somebody else."""
    ballast = mx.zeros((bytes_ // 4,), dtype=mx.float32)
    mx.eval(ballast)
    yield
    del ballast
