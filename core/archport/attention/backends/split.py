"""Attention of few queries on long caches by CUDA kernels that divide the keys among blocks of threads.

No kernel of MLX for few queries takes heads wider than 128 on CUDA; those for narrower ones read as fast as these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archport.attention import masks, prices
from archport.attention.backends import tensor_cores
from archport.attention.backends.tensor_cores import WIDE
from archport.contract.attention import AttentionCall, Feature, Price
from archport.contract.device import DeviceFacts, DeviceKind
from archport.kernels import decode
from archport.kernels.launches import integers

if TYPE_CHECKING:
    import mlx.core as mx

# Queries of a row at most; more of them fill the matrix units of other kernels.
MOST_QUERIES = 8
# What the kernels read per second, by what MLX's unfused products read, which prices count with. On an H200 with 16 and
# 4 heads of 256: 1,024 keys 47 us where MLX takes 63, 16,384 keys 74 and 126, 65,536 keys 104 and 401.
SPEED = 2.5


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the keys side by side, merged by their log-sum-exp."""

    features: frozenset[Feature] = frozenset({"softcap"})
    name: str = "split"
    devices: frozenset[DeviceKind] = frozenset({"cuda"})

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if device.compute_capability < 80:
            return ["the kernels are written for CUDA, compute capability 8.0 and later"]
        if call.q_len > MOST_QUERIES:
            return [f"{call.q_len:,} queries; the kernels take up to {MOST_QUERIES}"]
        against = tensor_cores.misfits(call, " or ".join(map(str, WIDE)), fits=call.head_dim in WIDE)
        if call.mask == "documents":
            against.append("documents are run one by one")
        if _by_row(call) and set(call.real_queries) - {call.q_len}:
            against.append("rows with fewer queries than others")
        if call.q_len > call.kv_len or (_by_row(call) and any(0 < s < call.q_len for s in call.lengths)):
            against.append("more queries than keys")
        return against

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        shares = decode.most_shares(call.B, call.n_heads, call.n_kv_heads, call.q_len, call.kv_len, call.head_dim)
        scratch = decode.scratch_bytes(call.B, call.n_heads, call.n_kv_heads, call.q_len, shares, call.head_dim)
        keys = call.kv_len
        if call.visible_reach[0] is not None:
            keys = min(keys, call.visible_reach[0] + call.q_len)
        times = decode.row_tiles(call.n_heads, call.n_kv_heads, call.q_len)
        cache = 2 * call.B * call.n_kv_heads * keys * call.head_dim * call.itemsize
        flops = 4.0 * call.B * call.n_kv_heads * times * decode.ROWS * keys * call.head_dim
        # Eights of rows after the first find the keys in the L2 cache at best.
        seconds = cache * (1 + 0.5 * (times - 1)) / (prices.bandwidth(device) * SPEED)
        return Price(
            transient=prices.SLACK[device.kind] + scratch,
            output=call.output_bytes,
            largest_buffer=max(scratch, call.output_bytes),
            flops=flops,
            dispatch_flops=flops,
            k_chunk=-(-call.kv_len // shares),
            seconds=seconds,
            dispatch_seconds=seconds,
            route="split",
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

        del mask, sinks
        q, k, v = tensor_cores.of_one_type(call, q, k, v)
        if _by_row(call) and min(call.lengths) < call.kv_len:
            lengths = masks.known(("keys", call.lengths), lambda: mx.array(call.lengths, mx.int32))
        else:
            # Every row has all keys.
            lengths = integers(*[-1] * call.B)
        shares = -(-call.kv_len // price.k_chunk)
        return decode.attend(q, k, v, lengths, shares, scale=scale, reach=call.visible_reach, softcap=call.softcap)


def _by_row(call: AttentionCall) -> bool:
    """Whether lengths say which keys a row has, and not only what is padding."""
    return bool(call.lengths) and call.mask not in ("none", "causal")
