"""Key chunks with a streaming log-sum-exp merge: memory that grows neither with the keys nor with their chunks.

For calls whose single row of scores is already too much, and for whoever asks by name, argument or environment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from archport.attention import masks, prices
from archport.attention.capped import hide, scores
from archport.attention.masks import line_of
from archport.attention.mlx_call import Operands
from archport.attention.tiles import (
    SMALLEST,
    biased_row_bytes,
    block,
    content_bytes,
    content_flops,
    line_bytes,
    mask_bytes,
    tile_form,
)
from archport.attention.visibility import Tile, Visibility, visibility
from archport.contract.attention import AttentionCall, DistanceBias, Feature, Price
from archport.contract.device import DeviceFacts
from archport.device.evaluation import Chain, finish, traced

if TYPE_CHECKING:
    import mlx.core as mx

# A running maximum that starts finite, so that a chunk with every key hidden subtracts no infinities.
LOWEST_LOGIT = -1e30
MOST_ROWS = {"cpu": 256, "metal": 512, "cuda": 1024}


@dataclass(frozen=True, slots=True)
class Chunked:
    """Chunks of keys merged as they come; running maximum, sum and weighted values in float32."""

    features: frozenset[Feature] = frozenset({"softcap", "bias", "content", "chunk", "spans"})
    name: str = "chunked"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if call.mask == "documents":
            return ["documents are run one by one"]
        threshold = call.limits.chunk_threshold
        if call.kv_len < threshold:
            return [f"{call.kv_len:,} keys are fewer than the threshold of {threshold:,}"]
        return []

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        rows = min(call.q_len, MOST_ROWS[device.kind])
        price = self._priced(call, device, rows)
        while price.excess(call, device) and rows > 1:
            rows = max(1, rows // 2) if rows <= SMALLEST[device.kind] else max(SMALLEST[device.kind], rows // 2)
            price = self._priced(call, device, rows)
        return price

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

        seen = visibility(call)
        chain, lazy = Chain(), traced(q, k, v, mask, sinks)
        on = Operands(q, k, v, scale, mask, sinks, line_of(call, bias, mx.float32))
        out = mx.zeros((call.B, call.n_heads, call.q_len, call.v_head_dim), dtype=q.dtype)
        for a in range(0, call.q_len, price.q_tile):
            b = min(a + price.q_tile, call.q_len)
            part = chain.link(q[:, :, a:b]) if lazy else q[:, :, a:b]
            tile, _ = stream(seen, on.of_queries(part), a, b, price.k_chunk, softcap=call.softcap, lazy=lazy)
            if b - a == call.q_len:
                return tile
            out[:, :, a:b] = tile
            if lazy:
                chain.add(tile)
            else:
                finish(out)
        return out

    def _priced(self, call: AttentionCall, device: DeviceFacts, rows: int) -> Price:
        seen = visibility(call)
        chunk = min(call.limits.chunk_size, call.kv_len)
        tile = block(call, seen, rows, chunk, "none", lanes=0)
        pairs = tile.scores
        lines = call.B * call.n_heads * rows
        # Scores, then weights in their place, in float32; plus either in the input's type where that is narrower.
        held = pairs * (4 + (tile.itemsize if tile.itemsize < 4 else 0))
        held += lines * (call.head_dim * tile.itemsize + call.v_head_dim * (12 + tile.itemsize) + 6 * 4)
        hidden = line_bytes(call) + biased_row_bytes(call, seen, tile) + content_bytes(call, tile, 4)
        if tile_form(seen) != "none":
            # A bias is a view here, and no part of the mask.
            plain = replace(call, bias=False, softcap=None, additive=call.additive and not call.bias)
            masked = block(plain, seen, rows, chunk, "array", lanes=0)
            hidden += mask_bytes(plain, masked)
            if call.mask_shape and call.additive and tile.itemsize < 4:
                # MLX promotes an additive mask to the float32 of the scores.
                hidden += 4 * masked.mask_elements
        count = -(-call.q_len // rows)
        chunks = -(-call.kv_len // chunk)
        share = 1.0
        if seen.right == 0 and call.q_len > 1 and chunks > 1:
            share = 1.0 - 0.5 * min(1.0, call.q_len / call.kv_len) * (1 - 1 / chunks)
        time = tile.flops / (0.5 * prices.steady_rate(device, call.dtype)) + pairs * 40 / prices.bandwidth(device)
        if device.kind == "cpu":
            time += pairs * 4e-8
        if call.bias == "content":
            met = content_flops(call, rows, chunk)
            time += prices.content_seconds(met, call.head_dim, device, call.dtype)
        total = time * count * chunks * share + count * chunks * prices.sync_seconds(device)
        return Price(
            transient=held + hidden + prices.SLACK[device.kind],
            output=call.output_bytes,
            largest_buffer=max(4 * pairs, call.output_bytes),
            flops=tile.flops * count * chunks * share,
            dispatch_flops=tile.flops,
            q_tile=rows,
            k_chunk=chunk,
            evaluations=count * chunks,
            seconds=total,
            dispatch_seconds=time,
            route="composite",
        )


def stream(
    seen: Visibility, on: Operands, a: int, b: int, chunk: int, *, softcap: float | None = None, lazy: bool = False
) -> tuple[mx.array, mx.array]:
    """Attention of query rows [a, b), which are all that `on.q` holds, merged over chunks of keys.

    Args:
        chunk: keys per chunk.
        softcap: what becomes of the scores before a bias is added and keys are hidden.
        lazy: evaluate nothing.

    Returns:
        The output (B, H, b - a, Dv) in q's dtype, zeros where a query saw no key, and the float32 log-sum-exp of each
        query's logits (B, H, b - a), sink included.
    """
    import mlx.core as mx

    q, k, v, sinks = on.q, on.k, on.v, on.sinks
    B, heads, rows, _ = q.shape
    kv_heads, Dv = k.shape[1], v.shape[3]
    group = heads // kv_heads
    shape = (B, kv_heads, group, rows)
    if sinks is None:
        top = mx.full((*shape, 1), LOWEST_LOGIT, dtype=mx.float32)
        total = mx.zeros((*shape, 1), dtype=mx.float32)
    else:
        # The sink is one more logit with nothing to add; it counts once, before any chunk.
        logit = sinks.astype(mx.float32).reshape(1, kv_heads, group, 1, 1)
        top = mx.broadcast_to(logit, (*shape, 1))
        total = mx.ones((*shape, 1), dtype=mx.float32)
    values = mx.zeros((*shape, Dv), dtype=mx.float32)
    first, last = seen.key_range(a, b)
    for lo in range(first // chunk * chunk, last, chunk):
        hi = min(lo + chunk, last)
        tile = Tile(seen, a, b, lo, hi)
        added = None if on.bias is None else on.bias.tile(tile, q, k[:, :, lo:hi])
        logits = scores(q, k[:, :, lo:hi], scale=on.scale, softcap=softcap, bias=added)
        if tile.form != "none":
            shown = masks.build(tile, array=on.mask, additive=False, dtype=q.dtype)
            logits = hide(logits, shown, group, -mx.inf)
        peak = mx.maximum(top, logits.max(axis=-1, keepdims=True))
        if not lazy:
            # Both passes over the scores need them: once the maximum is known the second one overwrites them.
            finish(peak)
        decay = mx.exp(top - peak)
        weights = mx.exp(logits - peak)
        del logits
        total = total * decay + weights.sum(axis=-1, keepdims=True)
        weighted = weights.astype(v.dtype).reshape(B, kv_heads, group * rows, hi - lo) @ v[:, :, lo:hi]
        del weights
        values = values * decay + weighted.reshape(*shape, Dv).astype(mx.float32)
        top = peak
        if not lazy:
            finish(top, total, values)
    seen_any = total > 0
    out = mx.where(seen_any, values / mx.where(seen_any, total, 1.0), 0.0).astype(q.dtype)
    lse = mx.where(seen_any, top + mx.log(total), -mx.inf)
    return out.reshape(B, heads, rows, Dv), lse.reshape(B, heads, rows)


def merge(parts: list[tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
    """Attention over all keys from attention over disjoint sets of them.

    Args:
        parts: (output (B, H, L, Dv), log-sum-exp (B, H, L)) per set; a log-sum-exp of -inf saw no key and is skipped.

    Returns:
        (output in the first part's dtype, float32 log-sum-exp). Only a running sum is held, however many parts.
    """
    import mlx.core as mx

    dtype = parts[0][0].dtype
    top = mx.full(parts[0][1].shape, LOWEST_LOGIT, dtype=mx.float32)
    total = mx.zeros(parts[0][1].shape, dtype=mx.float32)
    values = mx.zeros(parts[0][0].shape, dtype=mx.float32)
    for out, lse in parts:
        peak = mx.maximum(top, lse)
        decay, weight = mx.exp(top - peak), mx.exp(lse - peak)
        total = total * decay + weight
        # A part without keys may hold anything: it is left out rather than multiplied by zero.
        part = mx.where(weight[..., None] > 0, out.astype(mx.float32), 0.0)
        values = values * decay[..., None] + part * weight[..., None]
        top = peak
    some = total > 0
    out = mx.where(some[..., None], values / mx.where(some, total, 1.0)[..., None], 0.0).astype(dtype)
    return out, mx.where(some, top + mx.log(total), -mx.inf)
