"""Which mask policies are right for a layer in a step, cheapest kind first. Knows nothing of prices or devices."""

from __future__ import annotations

from archport.contract import AttentionLayer, MaskPolicy, PluginError

CAUSAL = MaskPolicy("causal", "causal; padding on the right needs no mask")
ONE_QUERY = MaskPolicy("none", "one query sees the whole cache")
FULL = MaskPolicy("none", "every token sees every other, and lengths are equal")
SHORT = MaskPolicy("none", "the window covers the whole row, and lengths are equal")
WINDOW = MaskPolicy("window", "the layer sees only its window")
SEGMENTS = MaskPolicy("segments", "rows differ in length: one call per row or group of equal rows")
KEY_PADDING = MaskPolicy("key_padding", "rows differ in length: keys behind a row's end are hidden")
HIDDEN_ENDS = MaskPolicy("key_padding", "the ends of rows are computed, but nothing sees them")
HIDDEN_FRONTS = MaskPolicy("dense", "rows end at one column: what stands in front of short ones is hidden")
PACKED = MaskPolicy("segments", "rows lie behind one another, and each sees itself alone")
DENSE = MaskPolicy("dense", "asked for")


def policies(layer: AttentionLayer, *, q_len: int, kv_len: int, ragged: bool) -> tuple[MaskPolicy, ...]:
    """Policies that hide exactly what the layer must not see.

    Args:
        q_len, kv_len: padded tokens of the step, and keys it sees, cached ones included.
        ragged: whether rows need their own lengths. A causal step whose rows start at one position does not: padding
            on the right is never seen by a real token.
    """
    if ragged:
        return (SEGMENTS, KEY_PADDING)
    if layer.semantics == "causal":
        left = layer.reach[0]
        if left is not None and left + 1 < kv_len:
            return (WINDOW,)
        return (ONE_QUERY,) if q_len == 1 else (CAUSAL,)
    if not layer.is_windowed:
        return (FULL,)
    left, right = layer.reach
    covered = (left is None or left >= kv_len - 1) and (right is None or right >= kv_len - 1)
    return (SHORT,) if covered else (WINDOW,)


def check_pin(pin: MaskPolicy, layer: AttentionLayer, right: tuple[MaskPolicy, ...], who: str) -> MaskPolicy:
    """The pinned policy, with its reason.

    Raises:
        PluginError: when it would show a token what the layer must not see, or hide what it must.
    """
    kinds = {policy.kind for policy in right}
    # These carry the layer's reach and the rows' lengths, so they are right wherever anything is.
    legal = kinds | {"segments", "key_padding", "dense"}
    if layer.reach[0] is not None or layer.semantics == "causal":
        legal.add("window")
    if pin.kind not in legal or pin.contradicts(layer.semantics):
        raise PluginError(
            f"{who}: archport_mask_policy pins {pin.kind!r} for a {layer.semantics} layer with reach {layer.reach} "
            f"where {' or '.join(sorted(kinds))} is needed; pin one of {', '.join(sorted(legal))}, or declare the "
            "layer otherwise"
        )
    return MaskPolicy(pin.kind, pin.why or f"pinned by {who}")
