"""Attention of a CPU's float32 prefill: MKL's products and numpy's softmax, tile by tile on every core.

MLX's softmax takes 69 ns per score on a CPU, numpy's passes in place about 1. Scores lie transposed, (keys, queries),
so that maximum and sum run over rows of memory, and q, k and v are read where they are, whatever their strides: heads
that share keys repeat an address, not an array. Knows nothing of other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from archport.attention import prices, run_tiles, tiles
from archport.attention.masks import Line, VectorLine, line_of, score_dtype
from archport.attention.mlx_call import Operands
from archport.attention.tiles import content_flops, key_step, lane_blocks, lane_shape, line_bytes
from archport.attention.visibility import Tile, Visibility, numbered, visibility
from archport.contract.attention import AttentionCall, DistanceBias, Feature, Price, unsuited
from archport.contract.device import DeviceFacts, DeviceKind
from archport.device import vectormath, workers
from archport.device.evaluation import traced

if TYPE_CHECKING:
    import mlx.core as mx

# Queries below which MLX's own call is as fast: a decode step is one pass over the keys.
FEWEST_QUERIES = 8
# Bytes of scores per tile: they pass through the cache six times, and a tile costs some 60 us of Python.
TILE_BYTES = 2 << 20
MOST_ROWS, FEWEST_ROWS = 256, 16
# Seconds per score outside matrix products, without and with hidden keys, and per tile; two cores of an AMD EPYC.
SCORE_SECONDS, HIDDEN_SECONDS, TILE_SECONDS, START_SECONDS = 1.0e-9, 0.5e-9, 1e-4, 1e-4
# The same for capping a score and for adding a bias to it.
CAP_SECONDS, BIAS_SECONDS = 2.0e-9, 1.0e-9
# The value of a hidden score: far below any other, and finite, so that a row without a single key stays finite.
HIDDEN = np.float32(-1e30)


@dataclass(frozen=True, slots=True)
class Host:
    """Query tiles per (row, kv head) lane on the host, each on the keys that it can see."""

    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "host"
    devices: frozenset[DeviceKind] = frozenset({"cpu"})

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if wrong := unsuited(self, device):
            return wrong
        reasons: list[str] = []
        if not device.vector_threads:
            reasons.append("MKL's vector functions are not there")
        if call.dtype != "float32":
            reasons.append(f"it computes in float32, not {call.dtype}")
        if call.q_len < FEWEST_QUERIES:
            reasons.append(f"{call.q_len} queries are fewer than {FEWEST_QUERIES}, where MLX's own call is as fast")
        if call.mask == "documents":
            reasons.append("documents run in host_documents")
        return reasons

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        """What the tiles cost.

        The scratch is numpy's, so MLX's own counter never shows it; it is priced all the same, because the process
        holds it: one tile's scores, maxima and sums per thread, at most 2 MiB each unless 16 queries need more.
        `depth` is the number of threads.
        """
        seen = visibility(call)
        rows, lanes, threads = _cut(call, seen, device)
        count = _tiles(call, rows, lanes)
        pairs = call.B * call.n_heads * tiles.visited(seen, call.q_len, rows, seen.widest(rows))
        flops = 2.0 * pairs * (call.head_dim + call.v_head_dim)
        hidden = pairs
        if not seen.has_array and not seen.windowed and seen.right is None:
            # Behind the end of a row whole keys are hidden, and nothing else is looked at.
            hidden = call.n_heads * call.q_len * sum(call.kv_len - length for length in seen.key_lengths)
            hidden *= call.B if seen.rows == 1 else 1
        host = pairs * SCORE_SECONDS + hidden * HIDDEN_SECONDS + count * TILE_SECONDS
        biases = 2 if call.bias == "content" else int(call.bias)
        host += pairs * (CAP_SECONDS * (call.softcap is not None) + BIAS_SECONDS * biases)
        flops += content_flops(call, rows, seen.widest(rows)) * -(-call.q_len // rows)
        seconds = flops / (prices.steady_rate(device, call.dtype) * 0.8) + host / threads + START_SECONDS
        held = tile_bytes(call, seen, rows, lanes)
        return Price(
            transient=threads * held + line_bytes(call) + prices.SLACK[device.kind],
            output=call.output_bytes,
            largest_buffer=max(held, call.output_bytes),
            flops=flops,
            dispatch_flops=flops,
            q_tile=rows,
            # The inputs are evaluated once; the tiles are no graph.
            evaluations=1,
            depth=threads,
            lanes=lanes,
            seconds=seconds,
            dispatch_seconds=seconds,
        )

    def run(
        self,
        call: AttentionCall,
        price: Price,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: mx.array | None = None,
        sinks: mx.array | None = None,
        bias: DistanceBias | None = None,
    ) -> mx.array:
        import mlx.core as mx

        if not vectormath.available() or traced(q, k, v, mask, sinks):
            # A transformation has no values to read. MLX's own call per tile, in order, as `tiled` does there.
            lazy = replace(price, evaluations=_tiles(call, price.q_tile, price.lanes), route="composite")
            own = line_of(call, bias, score_dtype(call, q.dtype))
            return run_tiles.run(call, lazy, Operands(q, k, v, scale, mask, sinks, own), Visibility.key_range)
        # Zeros that nobody else holds: the view writes into the array's own memory. Heads lie beside each other as the
        # output projection wants them.
        out = mx.zeros((call.B, call.q_len, call.n_heads, call.v_head_dim), dtype=q.dtype)
        line = line_of(call, bias, mx.float32)
        lines = [line.values] if isinstance(line, Line) else [line.queries, line.keys] if line is not None else []
        mx.eval([array for array in (q, k, v, mask, sinks, *lines, out) if array is not None])
        seen, rows = visibility(call), price.q_tile
        pieces = [
            Piece(at, heads, a, min(a + rows, call.q_len), seen.of_rows(at.start, at.stop))
            for at, heads, _ in lane_blocks(call, price.lanes)
            # Late queries of a causal call see the most keys; the longest pieces first keep all threads busy.
            for a in reversed(range(0, call.q_len, rows))
        ]
        scores = queries_of(call, price.lanes, min(rows, call.q_len)) * seen.widest(rows)
        scratch = scores, _met(call, price.lanes, min(rows, call.q_len), seen.widest(rows))
        fill(np.asarray(out), call, pieces, scratch, price.depth, Operands(q, k, v, scale, mask, sinks, line))
        return out.transpose(0, 2, 1, 3)


def _cut(call: AttentionCall, seen: Visibility, device: DeviceFacts) -> tuple[int, int, int]:
    """Rows and lanes of a tile, and tiles at once: as many as keep TILE_BYTES and the call's own limit."""
    threads = max(1, device.vector_threads)
    room = call.limits.transient_on(device) - prices.SLACK["cpu"] - line_bytes(call)
    # Products with vectors by distance take as much again.
    allowed = min(TILE_BYTES * (2 if call.bias == "content" else 1), room // threads)
    rows = min(call.q_len, MOST_ROWS)
    while rows > FEWEST_ROWS and tile_bytes(call, seen, rows, 1) > allowed:
        rows = max(FEWEST_ROWS, rows // 2)
    every = call.B * call.n_kv_heads
    most = -(-every // threads) if rows >= call.q_len else every
    lanes = 1
    for more in (*range(2, call.n_kv_heads + 1), *(call.n_kv_heads * many for many in range(2, call.B + 1))):
        if more > most or tile_bytes(call, seen, rows, more) > allowed:
            break
        lanes = more
    fitting = max(1, room // tile_bytes(call, seen, rows, lanes))
    return rows, lanes, min(threads, fitting, _tiles(call, rows, lanes))


def _tiles(call: AttentionCall, rows: int, lanes: int) -> int:
    B, kv_heads = lane_shape(call, lanes)
    return -(-call.q_len // rows) * -(-call.B // B) * -(-call.n_kv_heads // kv_heads)


def queries_of(call: AttentionCall, lanes: int, rows: int) -> int:
    B, kv_heads = lane_shape(call, lanes)
    return B * kv_heads * (call.n_heads // call.n_kv_heads) * rows


def tile_bytes(call: AttentionCall, seen: Visibility, rows: int, lanes: int) -> int:
    """Bytes of a tile: its scores, its products with vectors by distance on one side at a time, and per query a
    maximum, a sum and what numpy holds while it divides by that."""
    queries = queries_of(call, lanes, rows)
    return 4 * queries * seen.widest(rows) + 16 * queries + 4 * _met(call, lanes, rows, seen.widest(rows))


def _met(call: AttentionCall, lanes: int, rows: int, keys: int) -> int:
    """Products of a tile's queries, or of a step of its keys, with vectors by distance."""
    if call.bias != "content":
        return 0
    return queries_of(call, lanes, 1) * max(rows * (rows + keys), keys * (rows + min(keys, key_step(rows))))


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries [first, last) of some lanes, which one thread computes.

    Args:
        rows: of the batch.
        heads: kv heads.
        seen: what they see, of these rows alone.
        start: token of the row that is the first of the queries' and keys' document.
    """

    rows: slice
    heads: slice
    first: int
    last: int
    seen: Visibility
    start: int = 0


def fill(
    out: np.ndarray,
    call: AttentionCall,
    pieces: list[Piece],
    scratch: tuple[int, int],
    threads: int,
    on: Operands,
) -> None:
    """Write the attention of evaluated arrays into `out` (B, L, H, Dv), piece by piece.

    Args:
        scratch: numbers of the largest piece's scores, and of its products with vectors by distance.
        threads: pieces at once.
    """
    B, L, K, line = call.B, call.q_len, call.n_kv_heads, on.bias
    group = call.n_heads // K
    # Views with one more axis, for the query heads that share keys.
    queries = _rows(on.q).reshape(B, K, group, L, call.head_dim)
    keys, values = _rows(on.k)[:, :, None], _rows(on.v)[:, :, None]
    result = out.reshape(B, L, K, group, call.v_head_dim).transpose(0, 2, 3, 1, 4)
    shown = None if on.mask is None else _grouped(np.asarray(on.mask), K, group)
    logits = None if on.sinks is None else np.asarray(on.sinks).reshape(1, K, group, 1, 1)
    added = np.asarray(line.values).reshape(K, group, -1) if isinstance(line, Line) else None
    vectors = _Vectors.of(line, K) if isinstance(line, VectorLine) else None
    first = 0 if line is None else line.first

    def worker() -> Callable[[Piece], None]:
        numbers, products = (np.empty(most, dtype=np.float32) for most in scratch)

        def work(piece: Piece) -> None:
            at, heads, a, b, lane = piece.rows, piece.heads, piece.first, piece.last, piece.seen
            lo, hi = lane.key_range(a, b)
            tile = Tile(lane, a, b, lo, hi)
            of_queries = slice(piece.start + a, piece.start + b)
            of_keys = slice(piece.start + lo, piece.start + hi)
            tile_q = queries[at, heads, :, of_queries]
            shape = (*tile_q.shape[:3], hi - lo, b - a)
            scores = numbers[: prod(shape)].reshape(shape)
            tile_k = np.broadcast_to(keys[at, heads, :, of_keys], (*shape[:4], call.head_dim))
            vectormath.matmul(tile_k, tile_q.swapaxes(-1, -2), scores, scale=on.scale)
            if call.softcap is not None:
                scores *= 1 / call.softcap
                np.tanh(scores, out=scores)
                scores *= call.softcap
            if added is not None:
                _add_bias(scores, added[heads], first, tile)
            if vectors is not None:
                tile_keys = keys[at, heads, :, lo:hi]
                for row, offset in enumerate(lane.offsets):
                    one = slice(None) if len(lane.offsets) == 1 else slice(row, row + 1)
                    nearest = lo - (offset + b - 1) - first
                    vectors.add(scores[one], tile_q[one], tile_keys[one], products, heads, nearest)
            hidden = _hidden(tile)
            if shown is not None:
                part = _cut_mask(shown, at, heads, tile)
                if part.dtype == np.bool_:
                    hidden.append((slice(None), slice(None), ~part))
                else:
                    scores += part
            total = _softmax(scores, hidden, None if logits is None else logits[:, heads])
            tile_v = np.broadcast_to(values[at, heads, :, of_keys], (*shape[:4], call.v_head_dim))
            tile_out = result[at, heads, :, of_queries]
            vectormath.matmul(scores.swapaxes(-1, -2), tile_v, tile_out)
            tile_out /= total.swapaxes(-1, -2)

        return work

    workers.spread(pieces, worker, threads)


# Rows of the batch and keys of a tile, and which of their (.., keys, queries) are hidden.
Hidden = tuple[slice, slice, np.ndarray]


def _softmax(scores: np.ndarray, hidden: list[Hidden], logits: np.ndarray | None) -> np.ndarray:
    """Turn scores (b, K, G, keys, queries) into weights before division; returns what to divide by.

    Args:
        logits: sinks (1, K, G, 1, 1), one more score of every query.
    """
    for rows, keys, where in hidden:
        np.copyto(scores[rows, :, :, keys], HIDDEN, where=where)
    top = np.max(scores, axis=-2, keepdims=True)
    # An additive mask may have hidden every key with -inf.
    np.maximum(top, HIDDEN if logits is None else logits, out=top)
    scores -= top
    np.exp(scores, out=scores)
    total = np.sum(scores, axis=-2, keepdims=True)
    if logits is not None:
        total += np.exp(logits - top)
    # A query whose every key -inf hides: 0 / tiny is 0, where 0 / 0 would be NaN.
    return np.maximum(total, np.finfo(np.float32).tiny, out=total)


def _add_bias(scores: np.ndarray, line: np.ndarray, first: int, tile: Tile) -> None:
    """Add to a tile's scores (b, K, G, keys, queries) what a line (K, G, n) says of each distance.

    Args:
        first: distance of the line's first number.
    """
    shape, offsets = (*line.shape[:2], tile.hi - tile.lo, tile.b - tile.a), tile.seen.offsets
    for row, offset in enumerate(offsets):
        rows = slice(None) if len(offsets) == 1 else slice(row, row + 1)
        # A view whose next query is one distance less.
        start = line[:, :, tile.lo - (offset + tile.a) - first :]
        strides = (*start.strides[:2], start.itemsize, -start.itemsize)
        scores[rows] += np.lib.stride_tricks.as_strided(start, shape, strides, writeable=False)


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Vectors (K, G, n, Dh) of a line's distances, that queries and keys meet; None where they meet none."""

    queries: np.ndarray | None
    keys: np.ndarray | None

    @classmethod
    def of(cls, line: VectorLine, kv_heads: int) -> _Vectors:
        both = [None if each is None else np.asarray(each) for each in (line.queries, line.keys)]
        return cls(*(None if each is None else each.reshape(kv_heads, -1, *each.shape[1:]) for each in both))

    def add(self, scores: np.ndarray, q: np.ndarray, k: np.ndarray, scratch: np.ndarray, heads: slice, at: int) -> None:
        """Add to scores (b, K, G, keys, queries) what q (b, K, G, queries, Dh) and k (b, K, 1, keys, Dh) meet.

        Args:
            scratch: for the products of one side.
            at: where the line holds the distance of the first key from the last query.
        """
        (*leading, C, T), Dh = scores.shape, q.shape[-1]
        if self.queries is not None:
            n = T + C - 1
            met = scratch[: prod(leading) * n * T].reshape(*leading, n, T)
            line = np.broadcast_to(self.queries[heads, :, at : at + n], (*leading, n, Dh))
            vectormath.matmul(line, q.swapaxes(-1, -2), met)
            # One query on, a key is one distance nearer.
            scores += _slanted(met, (C, T), (T, 1 - T), (T - 1) * T)
        if self.keys is not None:
            step = min(C, key_step(T))
            whole = C // step * step
            self._add_keys(scores[..., :whole, :], k[..., :whole, :], scratch, heads, at, step)
            if whole < C:
                self._add_keys(scores[..., whole:, :], k[..., whole:, :], scratch, heads, at + whole, C - whole)

    def _add_keys(
        self, scores: np.ndarray, k: np.ndarray, scratch: np.ndarray, heads: slice, at: int, step: int
    ) -> None:
        """Add what keys meet, `step` keys at a time in one call: each has distances that the next one shifts."""
        assert self.keys is not None
        (*leading, C, T), Dh = scores.shape, k.shape[-1]
        count, n = C // step, T + step - 1
        # What each step needs of the line overlaps with what the next one does.
        line = self.keys[heads, :, at:]
        shape, strides = (*line.shape[:2], count, Dh, n), line.strides
        line = np.lib.stride_tricks.as_strided(
            line, shape, (*strides[:2], step * strides[2], strides[3], strides[2]), writeable=False
        )
        met = scratch[: prod(leading) * C * n].reshape(*leading, count, step, n)
        vectormath.matmul(
            np.broadcast_to(_steps(k, count), (*leading, count, step, Dh)),
            np.broadcast_to(line, (*leading, count, Dh, n)),
            met,
        )
        to = _steps(scores, count)
        to += _slanted(met, (step, T), (n + 1, -1), T - 1)


def _steps(x: np.ndarray, count: int) -> np.ndarray:
    """A view (..., count, rows / count, D) of x (..., rows, D), whatever its strides."""
    step = x.shape[-2] // count
    strides = (*x.strides[:-2], step * x.strides[-2], *x.strides[-2:])
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:-2], count, step, x.shape[-1]), strides)


def _slanted(met: np.ndarray, shape: tuple[int, int], steps: tuple[int, int], first: int) -> np.ndarray:
    """A view of the last two axes of contiguous products, whose lines begin one distance apart."""
    flat = met.reshape(*met.shape[:-2], -1)[..., first:]
    strides = (*flat.strides[:-1], steps[0] * met.itemsize, steps[1] * met.itemsize)
    return np.lib.stride_tricks.as_strided(flat, (*met.shape[:-2], *shape), strides, writeable=False)


def _hidden(tile: Tile) -> list[Hidden]:
    """What reach and lengths hide from a tile's queries of its keys, where they hide anything."""
    seen, a, b, lo, hi = tile.seen, tile.a, tile.b, tile.lo, tile.hi
    found: list[Hidden] = []
    for row in range(seen.rows):
        rows = slice(None) if seen.rows == 1 else slice(row, row + 1)
        offset = seen.offsets[row if len(seen.offsets) > 1 else 0]
        length = seen.key_lengths[row if len(seen.key_lengths) > 1 else 0]
        at = np.arange(offset + a, offset + b)
        sided = seen.right is not None and (seen.chunk is None or seen.right == 0)
        if sided and seen.right is not None and (first := max(lo, offset + a + seen.right + 1)) < hi:
            later = np.arange(first, hi)[:, None] > at + seen.right
            if seen.spanned(a, b):
                of_queries, of_keys = numbered(Tile(seen, a, b, first, hi))
                line = row if len(of_keys) > 1 else 0
                later &= of_keys[line][:, None] != of_queries[line]
            found.append((rows, slice(first - lo, hi - lo), later))
        if seen.chunk is not None:
            chunks = (at + seen.start) // seen.chunk
            keys = (np.arange(lo, hi) + seen.start) // seen.chunk
            if keys[0] != chunks[-1] or keys[-1] != chunks[0]:
                found.append((rows, slice(None), keys[:, None] != chunks))
        elif seen.left is not None and (last := min(hi, offset + b - 1 - seen.left)) > lo:
            found.append((rows, slice(0, last - lo), np.arange(lo, last)[:, None] < at - seen.left))
        if length < hi:
            found.append((rows, slice(max(0, length - lo), hi - lo), np.ones((1, 1), dtype=np.bool_)))
    return found


def _rows(x: mx.array) -> np.ndarray:
    """A view of x (B, H, L, D) whose rows MKL can read; a copy of an x whose rows are scattered or repeated."""
    view = np.asarray(x)
    if view.strides[-1] == view.itemsize and view.strides[-2] >= view.shape[-1] * view.itemsize:
        return view
    return np.ascontiguousarray(view)


def _grouped(mask: np.ndarray, K: int, group: int) -> np.ndarray:
    """A mask in broadcast form as a view (B or 1, K or 1, G or 1, S or 1, L or 1)."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    B, heads, L, S = mask.shape
    return mask.reshape(B, K if heads > 1 else 1, group if heads > 1 else 1, L, S).swapaxes(-1, -2)


def _cut_mask(mask: np.ndarray, at: slice, heads: slice, tile: Tile) -> np.ndarray:
    """The part of a grouped mask that one tile needs."""
    places = (at, heads, slice(None), slice(tile.lo, tile.hi), slice(tile.a, tile.b))
    return mask[tuple(place if length > 1 else slice(None) for place, length in zip(places, mask.shape, strict=True))]
