"""Temporaries of a layer whose plugin declares what its own modules hold. Knows no formula of archport's own blocks."""

from __future__ import annotations

from archport.contract import DeviceKind


def half_bytes(numbers: int, s: int, kind: DeviceKind) -> int:
    """Bytes per token of a declared half, for elements of `s` bytes."""
    # On a CPU MLX computes 16 bits by way of float32, in arrays of their own.
    return numbers * (4 if kind == "cpu" else s)


def halves_bytes(entry: int, mixer: int, mlp: int, copies: int, *, apart: bool) -> dict[str, int]:
    """Bytes per token by how a layer coexists with its attention, as `TokenBytes` names them.

    Args:
        entry: of what is there beside either half, such as the block's input.
        mixer, mlp: of the two halves.
        copies: of q, k, v and the output, which attention that is one call or runs document by document copies.
        apart: whether each half ends in an evaluation; otherwise what follows attention coexists with the next layer's
            beginning, although attention evaluates.
    """
    whole, part = entry + mixer + mlp, entry + max(mixer, mlp)
    return {
        "lazy": whole,
        "unfused": whole + copies,
        "documents": whole + copies,
        "mixed": whole + copies,
        "split": part if apart else whole,
        "held": entry + mixer,
        "part": part,
    }
