"""Attention of a CPU's float32 documents behind one another in one row: no padding, and one hand-over for all of them.

Each document is pieces of `host`'s own, and threads take the pieces of all documents. Knows nothing of other devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from archport.attention import prices, run_tiles
from archport.attention.backends.documents import misfits
from archport.attention.backends.host import (
    FEWEST_ROWS,
    MOST_ROWS,
    SCORE_SECONDS,
    START_SECONDS,
    TILE_BYTES,
    TILE_SECONDS,
    Host,
    Piece,
    fill,
    queries_of,
    tile_bytes,
)
from archport.attention.mlx_call import Operands
from archport.attention.tiles import visited
from archport.attention.visibility import Visibility, visibility
from archport.contract.attention import AttentionCall, Feature, MaskKind, Price, unsuited
from archport.contract.device import DeviceFacts, DeviceKind
from archport.device import vectormath
from archport.device.evaluation import traced

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class HostDocuments:
    """Query tiles of every document on the host, each on the keys of its own document."""

    features: frozenset[Feature] = frozenset({"softcap"})
    name: str = "host_documents"
    devices: frozenset[DeviceKind] = frozenset({"cpu"})

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if wrong := unsuited(self, device):
            return wrong
        if call.mask != "documents" or call.B != 1:
            return ["the call is not one row of documents"]
        reasons = Host().reasons_against(replace(call, mask="none"), device) + misfits(call)
        if call.q_len != call.kv_len or call.q_lengths not in ((), call.lengths):
            reasons.append("cached keys")
        return reasons

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        """What the pieces of all documents cost; `depth` is the number of threads, as in `host`."""
        threads = max(1, device.vector_threads)
        room = call.limits.transient_on(device) - prices.SLACK[device.kind]
        flops = host = 0.0
        held = 0
        for length, count in Counter(call.lengths).items():
            if not length:
                continue
            cut = _cut_of(_document(call, length), min(TILE_BYTES, room // threads))
            pairs = count * call.n_heads * visited(cut.seen, length, cut.rows, cut.seen.widest(cut.rows))
            flops += 2.0 * pairs * (call.head_dim + call.v_head_dim)
            host += pairs * SCORE_SECONDS + count * cut.tiles * TILE_SECONDS
            held = max(held, cut.bytes)
        # Where not even the smallest pieces fit side by side, fewer run at once.
        threads = min(threads, max(1, room // max(1, held)))
        seconds = flops / (prices.steady_rate(device, call.dtype) * 0.8) + host / threads + START_SECONDS
        return Price(
            transient=threads * held + prices.SLACK[device.kind],
            output=call.output_bytes,
            largest_buffer=max(held, call.output_bytes),
            flops=flops,
            dispatch_flops=flops,
            evaluations=1,
            depth=threads,
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
    ) -> mx.array:
        import mlx.core as mx

        del mask
        if not vectormath.available() or traced(q, k, v, sinks):
            return _traced(call, price, Operands(q, k, v, scale, None, sinks))
        out = mx.zeros((1, call.q_len, call.n_heads, call.v_head_dim), dtype=q.dtype)
        mx.eval([array for array in (q, k, v, sinks, out) if array is not None])
        pieces, most = list[Piece](), 0
        for start, part, cut in _documents(call, price):
            most = max(most, queries_of(part, cut.lanes, cut.rows) * cut.seen.widest(cut.rows))
            pieces += [
                Piece(slice(0, 1), slice(head, head + cut.lanes), a, min(a + cut.rows, part.q_len), cut.seen, start)
                for head in range(0, call.n_kv_heads, cut.lanes)
                for a in reversed(range(0, part.q_len, cut.rows))
            ]
        # The longest first keep all threads busy to the end.
        pieces.sort(key=lambda piece: -(piece.last - piece.first))
        fill(np.asarray(out), call, pieces, (most, 0), price.depth, Operands(q, k, v, scale, None, sinks))
        return out.transpose(0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a document is cut: queries and kv heads of a piece, pieces, bytes of the largest, and what is visible."""

    rows: int
    lanes: int
    tiles: int
    bytes: int
    seen: Visibility


def _document(call: AttentionCall, length: int) -> AttentionCall:
    """The call of one document by itself."""
    kind: MaskKind = "none" if call.reach == (None, None) else "causal" if call.reach == (None, 0) else "window"
    return replace(call, q_len=length, kv_len=length, mask=kind, lengths=(), q_lengths=())


def _documents(call: AttentionCall, price: Price) -> Iterator[tuple[int, AttentionCall, _Cut]]:
    """(first token, call, how it is cut) of every document that has tokens."""
    allowed, start = (price.transient - prices.SLACK["cpu"]) // max(1, price.depth), 0
    for length in call.lengths:
        if length:
            part = _document(call, length)
            yield start, part, _cut_of(part, min(TILE_BYTES, allowed))
        start += length


def _traced(call: AttentionCall, price: Price, on: Operands) -> mx.array:
    """MLX's own call per tile of every document, where a transformation has no values to read."""
    import mlx.core as mx

    found: list[mx.array] = []
    for start, part, cut in _documents(call, price):
        lazy = replace(price, q_tile=cut.rows, lanes=cut.lanes, evaluations=cut.tiles, route="composite")
        q, k, v = (array[:, :, start : start + part.q_len] for array in (on.q, on.k, on.v))
        found.append(run_tiles.run(part, lazy, Operands(q, k, v, on.scale, None, on.sinks), Visibility.key_range))
    left = call.q_len - sum(call.lengths)
    return mx.concatenate([*found, mx.zeros((1, call.n_heads, left, call.v_head_dim), dtype=on.q.dtype)], axis=2)


@lru_cache(4096)
def _cut_of(part: AttentionCall, allowed: int) -> _Cut:
    """As many queries and then heads as keep the bytes: a short document is one piece, and there are many of them."""
    seen, rows = visibility(part), min(part.q_len, MOST_ROWS)
    while rows > FEWEST_ROWS and tile_bytes(part, seen, rows, 1) > allowed:
        rows = max(FEWEST_ROWS, rows // 2)
    lanes = part.n_kv_heads
    while lanes > 1 and tile_bytes(part, seen, rows, lanes) > allowed:
        lanes = -(-lanes // 2)
    tiles = -(-part.q_len // rows) * -(-part.n_kv_heads // lanes)
    return _Cut(rows, lanes, tiles, tile_bytes(part, seen, rows, lanes), seen)
