"""What modules of a plugin's own hold in memory, where they are not archport's. Pure data."""

# Values come from plugins that nobody type-checked, so the checks below are not redundant.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from dataclasses import dataclass

from archport.contract.errors import SpecError


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one layer's own modules hold, which plans price instead of what archport's blocks would.

    A half's temporaries are counted as the width of every array that it makes, as if nothing were released before the
    half is done: a device runs behind its host, and releases late. Views are no arrays; the block's input is not
    counted, attention's output is, and attention's own scratch is not. `archport check` measures them.

    Args:
        mixer: numbers per token that the half around attention or a recurrence makes, in the model's element type (two
            for one of float32 in a model of 16 bits); None where it is archport's `Attention`.
        mlp: the same of the MLP's half; None where it is archport's.
        matrices: numbers in the mixer's matrices, where these are not one for each of q, k, v and the output.
        more: numbers per token that a block of archport's holds at its peak beyond what its kind is priced with, such
            as turned queries and keys in one without a gated MLP, which is priced as BERT's.

    Raises:
        SpecError: a number that is no positive integer.
    """

    mixer: int | None = None
    mlp: int | None = None
    matrices: int | None = None
    more: int | None = None

    def __post_init__(self) -> None:
        for name in ("mixer", "mlp", "matrices", "more"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
                raise SpecError(f"footprint: {name}={value!r}; expected an integer > 0, or None")
