"""One call of MLX's attention with a decided route: mask form, force_fused, zero-padding of head dims.

Decides nothing. Knows nothing of tiles, prices or devices.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archport.attention import masks
from archport.attention.capped import attend_capped
from archport.attention.masks import Line, VectorLine
from archport.attention.visibility import Tile
from archport.contract.attention import AttentionCall, Price

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Operands:
    """What attention computes with, of a whole call or of some of its rows, heads and queries.

    Args:
        q, k, v: (B, H, L, Dh), (B, K, S, Dh), (B, K, S, Dv).
        scale: factor of the scores.
        mask: the caller's array over all queries and keys, broadcastable to (B, H, L, S).
        sinks: (H,), one more logit per head.
        bias: of the heads, at every distance of the call.
    """

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float
    mask: mx.array | None = None
    sinks: mx.array | None = None
    bias: Line | VectorLine | None = None

    def of_lanes(self, rows: slice, kv_heads: slice, heads: slice) -> Operands:
        """The same for some rows of the batch and some heads."""
        mask, sinks, bias = self.mask, self.sinks, self.bias
        if mask is not None:
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
            mask = mask[rows if mask.shape[0] > 1 else slice(None), heads if mask.shape[1] > 1 else slice(None)]
        sinks = None if sinks is None else sinks[heads]
        bias = None if bias is None else bias.of_heads(heads)
        k, v = self.k[rows, kv_heads], self.v[rows, kv_heads]
        return Operands(self.q[rows, heads], k, v, self.scale, mask, sinks, bias)

    def of_queries(self, q: mx.array) -> Operands:
        """The same with `q` for all queries."""
        return Operands(q, self.k, self.v, self.scale, self.mask, self.sinks, self.bias)


def attend_block(
    call: AttentionCall, price: Price, tile: Tile, on: Operands, prepared: mx.array | None = None
) -> mx.array:
    """Attention of a tile's queries, which are all that `on.q` holds, on the tile's keys.

    Args:
        prepared: the mask of the tile, when the caller already built it.
    """
    q, k, v, scale, mask, sinks, bias = on.q, on.k, on.v, on.scale, on.mask, on.sinks, on.bias
    if (tile.lo, tile.hi) != (0, k.shape[2]):
        k, v = k[:, :, tile.lo : tile.hi], v[:, :, tile.lo : tile.hi]
    form = tile.form
    if call.softcap is not None:
        if form != "none" and prepared is None:
            prepared = masks.build(tile, array=mask, additive=False, dtype=q.dtype)
        added = None if bias is None else bias.tile(tile, q, k)
        return attend_capped(q, k, v, scale=scale, softcap=call.softcap, shown=prepared, bias=added, sinks=sinks)
    if bias is not None:
        shown = None if form == "none" else masks.build(tile, array=mask, additive=False, dtype=q.dtype)
        added = masks.biased(bias.tile(tile, q, k), shown)
        return fast(price, q, k, v, scale=scale, mask=added, sinks=sinks)
    told: mx.array | str | None = "causal" if form == "causal" else None
    if form == "array":
        told = prepared
        if told is None:
            whole = q.shape[:3] == (call.B, call.n_heads, call.q_len)
            if whole and mask is None:
                told = masks.shared(tile, additive=call.additive, dtype=q.dtype)
            else:
                told = masks.build(tile, array=mask, additive=call.additive, dtype=q.dtype)
    return fast(price, q, k, v, scale=scale, mask=told, sinks=sinks)


def fast(
    price: Price,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    """`mx.fast.scaled_dot_product_attention` as the price decided it: padded or not, forced or not."""
    import mlx.core as mx

    wanted = v.shape[3]
    if price.padded != (0, 0):
        D, Dv = price.padded
        q, k, v = _widen(q, D), _widen(k, D), _widen(v, Dv)
    out: mx.array | None = None
    if price.route == "forced":
        # Refused inside grad, where MLX has no fused backward pass: the plain call is right there too.
        with contextlib.suppress(ValueError):
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks, force_fused=True)
    if out is None:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)
    return out if out.shape[3] == wanted else out[..., :wanted]


def _widen(x: mx.array, width: int) -> mx.array:
    import mlx.core as mx

    extra = width - x.shape[3]
    return mx.pad(x, [(0, 0), (0, 0), (0, 0), (0, extra)]) if extra else x
