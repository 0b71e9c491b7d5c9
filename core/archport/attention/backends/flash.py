"""Attention of wide heads by one CUDA kernel: causal, windows, documents, rows of different length, soft caps.

MLX has no fused kernel for heads wider than 128 on CUDA; the kernel is in kernels/flash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from archport.attention import masks, prices
from archport.attention.backends import tensor_cores
from archport.attention.backends.documents import misfits
from archport.attention.backends.tensor_cores import WIDE
from archport.contract.attention import AttentionCall, Feature, MaskKind, Price, Reach
from archport.contract.device import DeviceFacts, DeviceKind
from archport.kernels.flash import Document, Tiling, Units, tiles

if TYPE_CHECKING:
    import mlx.core as mx

HOPPER = {192: Tiling("wgmma", 128, 96), 256: Tiling("wgmma", 128, 64)}
# What fits the shared memory of a block elsewhere: 163 KiB or more on these compute capabilities, 99 on all others.
LARGE = {192: Tiling("mma", 128, 48), 256: Tiling("mma", 128, 32)}
LARGE_SHARED = (80, 87, 100, 103, 110)
SMALL = {192: Tiling("mma", 64, 32), 256: Tiling("mma", 64, 32)}
# Share of the matrix rate that the kernel reaches when it fills the device, by what multiplies.
SHARE = {"wgmma": 0.9, "mma": 0.4}
# Blocks of threads that such a device runs at once.
BLOCKS = 128


def tiling(head_dim: int, device: DeviceFacts) -> Tiling:
    """How the kernel divides its work on a device."""
    if device.compute_capability == 90:
        return HOPPER[head_dim]
    return (LARGE if device.compute_capability in LARGE_SHARED else SMALL)[head_dim]


def documents(call: AttentionCall) -> tuple[Document, ...]:
    """Which queries of a call see which keys: each query is in one, padded ones in documents without keys."""
    found: list[Document] = []
    queries = call.real_queries
    if call.mask == "documents" and call.B == 1:
        query = key = 0
        for n, s in zip(queries or (call.q_len,), call.lengths, strict=True):
            found.append(Document(0, query, n, key, s, s - n))
            query, key = query + n, key + s
        found.append(Document(0, query, call.q_len - query, 0, 0, 0))
    else:
        of_rows = call.mask not in ("none", "causal") and bool(call.lengths)
        for row in range(call.B):
            n = queries[row] if queries else call.q_len
            s = call.lengths[row] if of_rows else call.kv_len
            # Where lengths only say what is padding, queries stand where those of a full row do.
            position = s - n if of_rows else call.kv_len - call.q_len
            found.append(Document(row, 0, n, 0, s, position))
            found.append(Document(row, n, call.q_len - n, 0, 0, 0))
    return tuple(document for document in found if document.queries)


@dataclass(frozen=True, slots=True)
class Flash:
    """Flash attention on tensor cores for what MLX runs unfused."""

    features: frozenset[Feature] = frozenset({"softcap"})
    name: str = "flash"
    devices: frozenset[DeviceKind] = frozenset({"cuda"})

    def reasons_against(self, call: AttentionCall, device: DeviceFacts) -> list[str]:
        if device.compute_capability < 80:
            return ["the kernel is written for CUDA, compute capability 8.0 and later"]
        against = tensor_cores.misfits(call, " or ".join(map(str, WIDE)), fits=call.head_dim in WIDE)
        if call.mask == "documents":
            against.extend(misfits(call))
        return against

    def price(self, call: AttentionCall, device: DeviceFacts) -> Price:
        how = tiling(call.head_dim, device)
        table = tiles(documents(call), how, call.visible_reach)
        pairs = float((table[:, 7] - table[:, 6]).clip(min=0).sum()) * how.queries
        flops = 4.0 * call.n_heads * call.head_dim * pairs
        # A device that is not full works at the speed of the blocks it has.
        full = min(1.0, len(table) * call.n_heads / BLOCKS)
        rows = call.B * (call.n_heads * call.q_len + 2 * call.n_kv_heads * call.kv_len)
        moved = rows * call.head_dim * call.itemsize + call.output_bytes
        seconds = flops / (prices.steady_rate(device, call.dtype) * SHARE[how.units] * full)
        seconds += moved / prices.bandwidth(device)
        return Price(
            transient=prices.SLACK[device.kind] + table.nbytes,
            output=call.output_bytes,
            largest_buffer=call.output_bytes,
            flops=flops,
            dispatch_flops=flops,
            q_tile=how.queries,
            k_chunk=how.keys,
            seconds=seconds,
            dispatch_seconds=seconds,
            route=how.units,
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
        from archport.kernels import flash

        del mask, sinks
        q, k, v = tensor_cores.of_one_type(call, q, k, v)
        how = Tiling(cast(Units, price.route), price.q_tile, price.k_chunk)
        return flash.attend(q, k, v, table_of(call, how), how, scale=scale, softcap=call.softcap)


def table_of(call: AttentionCall, how: Tiling) -> mx.array:
    """The tiles of a call on the device: made once where no lengths make calls many, else once per step."""
    if not call.lengths:
        return _kept(call.B, call.q_len, call.kv_len, call.mask, call.visible_reach, how)
    kind = (call.mask, call.visible_reach, call.lengths, call.q_lengths, call.q_len, call.kv_len)
    return masks.known(("flash", kind, how), lambda: _table(documents(call), how, call.visible_reach))


@lru_cache(maxsize=64)
def _kept(rows: int, q_len: int, kv_len: int, mask: MaskKind, reach: Reach, how: Tiling) -> mx.array:
    call = AttentionCall(rows, 1, 1, q_len, kv_len, 1, 1, "bfloat16", mask=mask, reach=reach)
    return _table(documents(call), how, call.visible_reach)


def _table(lines: tuple[Document, ...], how: Tiling, reach: Reach) -> mx.array:
    import mlx.core as mx

    return mx.array(tiles(lines, how, reach))
