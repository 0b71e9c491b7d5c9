"""Attention over blocks of keys with a running softmax, all in float32. Imports mlx only where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archport.contract import AttentionCall, DeviceFacts, Price

if TYPE_CHECKING:
    import mlx.core as mx

LARGEST_BLOCK, SMALLEST_BLOCK = 512, 16
# A running maximum that starts finite, so that a query that sees nothing in a block subtracts no infinities.
LOWEST = -1e30
# Seconds per score outside the matrix products, measured on one CPU core; slow on purpose elsewhere: it only ranks.
SECONDS_PER_SCORE = 6e-9


@dataclass(frozen=True, slots=True)
class Stream32:
    """Streaming softmax in float32: one block of scores at a time, for any mask that is told by numbers."""

    name: str = "stream32"

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        reasons: list[str] = []
        if call.mask == "documents":
            reasons.append("documents are run one by one")
        if call.mask_shape:
            reasons.append("an array mask is handed over; only lengths and reach are read")
        if call.sinks:
            reasons.append("the softmax has sink logits")
        return reasons

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        block = LARGEST_BLOCK
        while block > SMALLEST_BLOCK and self._priced(call, device, block).excess(call, device):
            block //= 2
        return self._priced(call, device, block)

    def _priced(self, call: AttentionCall, device: DeviceFacts, block: int) -> Price:
        block = min(block, call.kv_len)
        rows = call.B * call.n_heads * call.q_len
        # Queries, values before and after the block, maxima and sums, all in float32.
        held = rows * 4 * (call.head_dim + 2 * call.v_head_dim + 6)
        # Scores and their exponentials; the block of keys and of values; which keys each query sees.
        held += block * (rows * 4 * 2 + call.B * call.n_kv_heads * (call.head_dim + call.v_head_dim) * 4)
        held += block * call.q_len * max(1, len(call.lengths)) * 2
        flops = 2.0 * rows * call.kv_len * (call.head_dim + call.v_head_dim)
        blocks = -(-call.kv_len // block)
        rate = device.flops.get("float32") or 2e10
        seconds = 2 * flops / rate + rows * call.kv_len * SECONDS_PER_SCORE
        return Price(
            transient=held,
            output=call.output_bytes,
            largest_buffer=max(rows * block * 4, rows * 4 * max(call.head_dim, call.v_head_dim)),
            flops=flops,
            dispatch_flops=flops / blocks,
            k_chunk=block,
            evaluations=blocks,
            seconds=seconds,
            dispatch_seconds=seconds / blocks,
            route="composite",
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

        B, H, L, _ = q.shape
        group = H // call.n_kv_heads
        # Query heads of one key head side by side: (B, K, group * L, Dh), so that keys are never repeated.
        queries = (q.astype(mx.float32) * scale).reshape(B, call.n_kv_heads, group * L, -1)
        shape = (B, call.n_kv_heads, group * L)
        top, total = mx.full((*shape, 1), LOWEST), mx.zeros((*shape, 1))
        values = mx.zeros((*shape, call.v_head_dim))
        for start in range(0, call.kv_len, price.k_chunk):
            end = min(start + price.k_chunk, call.kv_len)
            keys = k[:, :, start:end].astype(mx.float32)
            scores = (queries @ keys.swapaxes(-1, -2)).reshape(B, H, L, end - start)
            scores = mx.where(_visible(call, start, end), scores, -mx.inf).reshape(*shape, end - start)
            peak = mx.maximum(top, scores.max(axis=-1, keepdims=True))
            weights, decay = mx.exp(scores - peak), mx.exp(top - peak)
            total = total * decay + weights.sum(axis=-1, keepdims=True)
            values = values * decay + weights @ v[:, :, start:end].astype(mx.float32)
            top = peak
            _settle(values, total, top)
        # A query that saw no key is padding; its output is read by nobody and must be finite.
        out = values / mx.maximum(total, 1e-30)
        return out.reshape(B, H, L, call.v_head_dim).astype(q.dtype)


def _settle(*arrays: mx.array) -> None:
    """Evaluate a block before the next one, so that the scores of one block are held at a time."""
    import mlx.core as mx

    try:
        mx.eval(*arrays)
    except ValueError:
        # MLX is tracing this call, for compile or vmap, and decides itself what it holds.
        return


def _visible(call: AttentionCall, start: int, end: int) -> mx.array:
    """Which keys [start, end) each query sees, (1 or B, 1, L, end - start) bool, as `AttentionCall` defines it."""
    import mlx.core as mx

    padded = call.mask not in ("none", "causal")
    lengths = (call.lengths if padded else ()) or (call.kv_len,)
    queries = (call.real_queries if padded else ()) or (call.q_len,) * len(lengths)
    real = mx.array(lengths, dtype=mx.int32).reshape(-1, 1, 1, 1)
    first = mx.array([s - n for s, n in zip(lengths, queries, strict=True)], dtype=mx.int32).reshape(-1, 1, 1, 1)
    at = first + mx.arange(call.q_len, dtype=mx.int32).reshape(1, 1, -1, 1)
    key = mx.arange(start, end, dtype=mx.int32).reshape(1, 1, 1, -1)
    left, right = call.visible_reach
    seen = key < real
    if left is not None:
        seen = seen & (key >= at - left)
    if right is not None:
        seen = seen & (key <= at + right)
    return seen
