"""What a recurrent layer's tokens leave in memory around its rule. Knows nothing of the rule itself."""

from __future__ import annotations

from archport.contract import DeviceKind, RecurrentLayer


def recurrent_widths(layer: RecurrentLayer) -> tuple[int, int]:
    """(projected channels, width of the answer) of a recurrent layer, as it declares them.

    Of one that declares bytes alone they are guessed: Hv x 128 x 128 numbers of state, and taps - 1 rows of its
    channels, all in float32 as a gated delta net keeps them.
    """
    if layer.heads is not None:
        return layer.heads.channels, layer.heads.values
    if layer.channels:
        return layer.channels, layer.values
    tail = layer.conv_bytes // (max(1, layer.conv_taps - 1) * 4)
    if not layer.state_bytes:
        return 3 * max(1, tail), max(1, tail)
    value = max(1, layer.state_bytes // (4 * 128))
    return tail or 3 * value, value


def recurrent_bytes(layer: RecurrentLayer, D: int, inner: int, s: int, kind: DeviceKind) -> tuple[int, int, int]:
    """Bytes of one token's temporaries in a recurrent layer: (in one graph, outside its rule, while its rule runs).

    Args:
        D, inner: model width, and bytes of the temporaries inside the MLP.
        s: bytes per element.

    Fitted like attention's on a CPU, with the convolution on the host; elsewhere counted and not measured.
    """
    channels, value = recurrent_widths(layer)
    keys = (channels - value) // 2
    if layer.heads is None:
        # Projections and convolution in the model's type; q, k, v, gates and output per value head in fp32.
        wide = 6 * value * 4 if layer.state_bytes else 0
        total = (8 * D + 3 * channels + 3 * value) * s + wide + inner
        return total, total, total
    if kind == "cpu":
        # In 16 bits the convolution's taps are products of their own, in float32, and q, k and v are widened.
        wide = 0 if s == 4 else 4
        convolution = (2 * D + 2 * (channels + value)) * s + 3 * channels * wide
        held = (7 * D // 2 + channels + value + 3 * keys) * s + channels * wide
        split = max(convolution, 4 * D * s + inner)
        return max(split, held + 2 * value * 4), split, held
    total = (8 * D + 3 * channels + 5 * value + 3 * keys) * s + inner
    return total, total, total
