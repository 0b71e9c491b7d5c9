"""Which mask policies are legal for a layer in a batch, cheapest first. Pure Python; prices nothing."""

from __future__ import annotations

from archport.contract.attention import MaskPolicy
from archport.contract.spec import AttentionLayer


def legal_policies(
    layer: AttentionLayer, *, q_len: int, kv_len: int, ragged: bool = False, packed: bool = False
) -> tuple[MaskPolicy, ...]:
    """The policies under which `layer` is right, the one to take by default first and `dense` last.

    A planner may price them all and take the cheapest; the first is right for lack of a price.

    Args:
        q_len, kv_len: padded tokens of this step, and padded keys with the cached ones.
        ragged: whether rows differ in length (with a cache: in tokens or in cached tokens). Rows are padded right.
        packed: whether one row holds several documents.
    """
    dense = MaskPolicy("dense", "an array of every query against every key; a last resort")
    segments = MaskPolicy("segments", "documents run one by one, nothing is computed between them or for padding")
    if packed:
        return (segments, dense)
    left, right = layer.reach
    causal = layer.semantics == "causal"
    # A limit that no pair of this step exceeds is no window.
    windowed = (left is not None and left < kv_len - 1) or (not causal and right is not None and right < kv_len - 1)
    cached = kv_len > q_len
    if not ragged:
        if windowed:
            return (MaskPolicy("window", "the layer's reach is shorter than its keys"), dense)
        if causal and q_len > 1:
            return (MaskPolicy("causal", "rows are equally long"), dense)
        return (MaskPolicy("none", "one query sees every key" if causal else "rows are equally long"), dense)
    if causal and not cached:
        why = "padding lies to the right, where no real token looks"
        return (MaskPolicy("window" if windowed else "causal", why), segments, dense)
    if q_len == 1:
        return (MaskPolicy("key_padding", "one query per row, rows with different numbers of keys"), segments, dense)
    if causal:
        # Each row's diagonal starts elsewhere, which MLX's "causal" can't express.
        return (segments, dense)
    if windowed:
        return (segments, MaskPolicy("window", "the reach and the rows' lengths in one mask per band"), dense)
    return (MaskPolicy("key_padding", "one compact row of keys per sequence"), segments, dense)
