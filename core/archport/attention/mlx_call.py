"""One call of MLX's attention with a decided route: mask form, force_fused, zero-padding of head dims.

Decides nothing. Knows nothing of tiles, prices or devices.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from archport.attention import masks
from archport.attention.capped import attend_capped
from archport.attention.masks import Line, VectorLine
from archport.attention.visibility import Visibility
from archport.contract.attention import AttentionCall, Price

if TYPE_CHECKING:
    import mlx.core as mx


def attend_block(
    call: AttentionCall,
    price: Price,
    seen: Visibility,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    a: int,
    b: int,
    lo: int,
    hi: int,
    *,
    scale: float,
    mask: mx.array | None = None,
    sinks: mx.array | None = None,
    prepared: mx.array | None = None,
    bias: Line | VectorLine | None = None,
) -> mx.array:
    """Attention of query rows [a, b), which is all that `q` holds, on keys [lo, hi) of `k` and `v`.

    Args:
        mask: the caller's array mask over the whole call.
        prepared: the mask of this block, when the caller already built it.
        bias: of the block's heads, at every distance of the call.
    """
    if (lo, hi) != (0, k.shape[2]):
        k, v = k[:, :, lo:hi], v[:, :, lo:hi]
    form = seen.form(a, b, lo, hi)
    if call.softcap is not None:
        if form != "none" and prepared is None:
            prepared = masks.build(seen, a, b, lo, hi, array=mask, additive=False, dtype=q.dtype)
        added = None if bias is None else bias.tile(seen, a, b, lo, hi, q, k)
        return attend_capped(q, k, v, scale=scale, softcap=call.softcap, shown=prepared, bias=added, sinks=sinks)
    if bias is not None:
        shown = None if form == "none" else masks.build(seen, a, b, lo, hi, array=mask, additive=False, dtype=q.dtype)
        added = masks.biased(bias.tile(seen, a, b, lo, hi, q, k), shown)
        return fast(price, q, k, v, scale=scale, mask=added, sinks=sinks)
    told: mx.array | str | None = "causal" if form == "causal" else None
    if form == "array":
        told = prepared
        if told is None:
            whole = (q.shape[0], q.shape[1], b - a) == (call.B, call.n_heads, call.q_len)
            if whole and mask is None:
                told = masks.shared(seen, a, b, lo, hi, additive=call.additive, dtype=q.dtype)
            else:
                told = masks.build(seen, a, b, lo, hi, array=mask, additive=call.additive, dtype=q.dtype)
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
