"""The one table of mask policies: which are right for a layer in a step, the one to take by default first.

The planner prices what it names, the runtime runs that, and the conformance kit holds each of them against float64.
Pure Python; knows nothing of prices, devices or arrays.
"""

from __future__ import annotations

from archport.contract.attention import MaskPolicy
from archport.contract.errors import PluginError
from archport.contract.spec import AttentionLayer

CAUSAL = MaskPolicy("causal", "causal; padding on the right needs no mask")
ONE_QUERY = MaskPolicy("none", "one query sees the whole cache")
FULL = MaskPolicy("none", "every token sees every other, and lengths are equal")
SHORT = MaskPolicy("none", "the window covers the whole row, and lengths are equal")
WINDOW = MaskPolicy("window", "the layer sees only its window")
SPANS = MaskPolicy("window", "tokens of a span see each other, and all others what came before them")
DOCUMENTS = MaskPolicy("documents", "rows differ in length: one call per row or group of equal rows")
KEY_PADDING = MaskPolicy("key_padding", "rows differ in length: keys behind a row's end are hidden")
HIDDEN_ENDS = MaskPolicy("key_padding", "the ends of rows are computed, but nothing sees them")
HIDDEN_FRONTS = MaskPolicy("dense", "rows end at one column: what stands in front of short ones is hidden")
PACKED = MaskPolicy("documents", "rows lie behind one another, and each sees itself alone")
DENSE = MaskPolicy("dense", "asked for")


def mask_policies(
    layer: AttentionLayer,
    *,
    q_len: int,
    kv_len: int,
    behind: int = 0,
    ragged: bool = False,
    even_start: bool = True,
    packed: bool = False,
    spans: bool = False,
) -> tuple[MaskPolicy, ...]:
    """Policies that hide exactly what the layer must not see.

    Args:
        q_len, kv_len: padded tokens of the step, and keys it sees, cached ones included.
        behind: tokens before the first of these keys, which a ring has dropped.
        ragged: whether rows differ in length; they are padded on the right.
        even_start: whether all rows begin this step at one position. A causal step then needs no lengths: padding on
            the right is never seen by a real token.
        packed: whether one row holds several documents.
        spans: whether some tokens of this step see each other whichever comes first.
    """
    if packed:
        return (PACKED,)
    if needs_lengths(layer, ragged=ragged, even_start=even_start):
        return (DOCUMENTS, KEY_PADDING)
    if spans and layer.spans:
        return (SPANS,)
    if _hides(layer, kv_len, behind):
        return (WINDOW,)
    if layer.semantics == "causal":
        return (ONE_QUERY,) if q_len == 1 else (CAUSAL,)
    return (SHORT,) if layer.is_windowed else (FULL,)


def needs_lengths(layer: AttentionLayer, *, ragged: bool, even_start: bool) -> bool:
    """Whether a call must know how long each row is: padding on the right is in nobody's way where all look back."""
    return ragged and (layer.semantics == "bidirectional" or not even_start)


def _hides(layer: AttentionLayer, kv_len: int, behind: int) -> bool:
    """Whether some pair of these tokens is out of reach."""
    if layer.chunk is not None:
        return behind % layer.chunk + kv_len > layer.chunk
    sides = layer.reach if layer.semantics == "bidirectional" else layer.reach[:1]
    return any(side is not None and side + 1 < kv_len for side in sides)


def check_pin(pin: MaskPolicy, layer: AttentionLayer, right: tuple[MaskPolicy, ...], who: str) -> MaskPolicy:
    """The pinned policy, with its reason.

    Raises:
        PluginError: when it would show a token what the layer must not see, or hide what it must.
    """
    kinds = {policy.kind for policy in right}
    # These carry the layer's reach and the rows' lengths, so they are right wherever anything is.
    legal = kinds | {"documents", "key_padding", "dense"}
    if layer.reach[0] is not None or layer.semantics == "causal":
        legal.add("window")
    if pin.kind not in legal or pin.contradicts(layer.semantics):
        raise PluginError(
            f"{who}: archport_mask_policy pins {pin.kind!r} for a {layer.semantics} layer with reach {layer.reach} "
            f"where {' or '.join(sorted(kinds))} is needed; pin one of {', '.join(sorted(legal))}, or declare the "
            "layer otherwise"
        )
    return MaskPolicy(pin.kind, pin.why or f"pinned by {who}")
