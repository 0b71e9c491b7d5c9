"""Attention over documents one after another in one row by one CUDA kernel: no padding, no masks, no new shapes.

MLX has no such call (its cuDNN plans are made per shape, 67 ms each); the kernel is in kernels/varlen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archport.attention import masks, prices
from archport.attention.backends import tensor_cores
from archport.contract.attention import AttentionCall, Price, unsuited
from archport.contract.device import DeviceFacts, DeviceKind

if TYPE_CHECKING:
    import mlx.core as mx

# Widest head whose queries, sums and scores a thread keeps in registers.
WIDEST = 128
# Share of the matrix rate that prices count with: what they are above cuDNN's for rows of equal length is then what was
# measured on an H200 (32,768 tokens in rows of 512, 256 and 128: 130, 88 and 67 us, where it was 122, 70 and 48; causal
# heads of 128 in rows of 512: 117, where it was 131).
SHARE = 0.47


@dataclass(frozen=True, slots=True)
class Varlen:
    """Flash attention on tensor cores, each document by itself."""

    name: str = "varlen"
    devices: frozenset[DeviceKind] = frozenset({"cuda"})

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if wrong := unsuited(self, device):
            return wrong
        if call.mask != "documents" or call.B != 1:
            return ["the call is not one row of documents"]
        narrow = call.head_dim % 16 == 0 and call.head_dim <= WIDEST
        found = tensor_cores.misfits(call, f"one multiple of 16 up to {WIDEST}", fits=narrow)
        if call.q_len != call.kv_len or call.q_lengths not in ((), call.lengths):
            found.append("cached keys")
        if sum(call.lengths) > call.kv_len:
            found.append(f"documents of {sum(call.lengths)} tokens in a row of {call.kv_len}")
        return found

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        flops = 2.0 * call.n_heads * (call.head_dim + call.v_head_dim) * _pairs(call)
        read = call.kv_len * call.itemsize * (call.n_heads * call.head_dim + call.n_kv_heads * 2 * call.head_dim)
        moved = (read + call.output_bytes) / prices.bandwidth(device)
        seconds = flops / (prices.steady_rate(device, call.dtype) * SHARE) + moved
        return Price(
            transient=prices.SLACK[device.kind],
            output=call.output_bytes,
            largest_buffer=call.output_bytes,
            flops=flops,
            dispatch_flops=flops,
            seconds=seconds,
            dispatch_seconds=seconds,
            route="fused",
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

        from archport.kernels.varlen import attend, tiles

        del price, mask, sinks
        q, k, v = tensor_cores.of_one_type(call, q, k, v)
        table = masks.known(("tiles", call.lengths, call.q_len), lambda: mx.array(tiles(call.lengths, call.q_len)))
        return attend(q, k, v, table, scale=scale, reach=call.reach)


def _pairs(call: AttentionCall) -> float:
    """Queries times the keys that each of them sees."""
    left, right = call.reach
    total = 0.0
    for length in call.lengths:
        seen = min(length, (length if left is None else left) + 1 + (length if right is None else right))
        total += length * (seen / 2 if (left, right) == (None, 0) else seen)
    return total
