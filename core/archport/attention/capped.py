"""Attention of one block in plain operations, for scores that no kernel of MLX computes: those with a soft cap.

Scores are float32 whatever the inputs are. Decides nothing; knows nothing of tiles, prices or devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archport.attention.masks import lowest

if TYPE_CHECKING:
    import mlx.core as mx


def attend_capped(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    softcap: float,
    shown: mx.array | None,
    bias: mx.array | None,
    sinks: mx.array | None,
) -> mx.array:
    """Attention (B, H, T, Dv) of q (B, H, T, Dh) on k (B, K, C, Dh) and v (B, K, C, Dv).

    Args:
        shown: mask broadcastable to (B, H, T, C), bool or additive; None: every key is seen.
        bias: (1 or B, H, T, C), added to the capped scores.
    """
    import mlx.core as mx

    B, heads, rows, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    weights = scores(q, k, scale=scale, softcap=softcap, bias=bias)
    if shown is not None:
        weights = hide(weights, shown, group, lowest(mx.float32))
    if sinks is not None:
        # One more logit per row, with nothing to add.
        logit = sinks.astype(mx.float32).reshape(1, kv_heads, group, 1, 1)
        weights = mx.concatenate([mx.broadcast_to(logit, (B, kv_heads, group, rows, 1)), weights], axis=-1)
    weights = mx.softmax(weights, axis=-1, precise=True)
    if sinks is not None:
        weights = weights[..., 1:]
    out = weights.astype(v.dtype).reshape(B, kv_heads, group * rows, keys) @ v
    return out.reshape(B, heads, rows, v.shape[3])


def scores(q: mx.array, k: mx.array, *, scale: float, softcap: float | None, bias: mx.array | None) -> mx.array:
    """Float32 scores (B, K, H / K, T, C), capped and biased.

    Args:
        bias: (1 or B, H, T, C).
    """
    import mlx.core as mx

    B, heads, rows, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    # One product per kv head, with the queries of its group stacked: keys are never repeated.
    stacked = (q * mx.array(scale, q.dtype)).reshape(B, kv_heads, group * rows, width)
    found = (stacked @ k.swapaxes(-1, -2)).astype(mx.float32).reshape(B, kv_heads, group, rows, keys)
    if softcap is not None:
        found = mx.tanh(found * (1 / softcap)) * softcap
    if bias is not None:
        found = found + bias.astype(mx.float32).reshape(bias.shape[0], kv_heads, group, rows, keys)
    return found


def hide(logits: mx.array, shown: mx.array, group: int, hidden: float) -> mx.array:
    """Logits (B, K, G, T, C) under a mask broadcastable to (B, H, T, C); `hidden` where a bool one hides a key."""
    import mlx.core as mx

    if shown.shape[1] > 1:
        shown = shown.reshape(shown.shape[0], shown.shape[1] // group, group, *shown.shape[2:])
    else:
        shown = shown[:, :, None]
    if shown.dtype == mx.bool_:
        return mx.where(shown, logits, hidden)
    return logits + shown.astype(mx.float32)
