"""Rotary position embedding over several axes: each frequency turns by the position on one of them.

Text stands at the same position on every axis, and is then rotated exactly as by a plain `Rotary`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from archport.contract import SpecError
from archport.kernels.rotate import turn
from archport.layers.rotary import Rotary


class SectionedRotary(Rotary):
    """A Rotary whose frequencies are dealt out to axes in turn (time, row, column; time, row, column; ...).

    Args:
        sections: frequencies per axis. The first axis takes what the others leave, whatever its own number says, and
            shares beyond half of `dims` are cut: a config may leave its own out, and a class means other heads.
        dims, theta, scaling: as in Rotary; `mrope_section` inside `scaling` is not read.

    Raises:
        SpecError: for sections that are no numbers of frequencies.
    """

    def __init__(self, dims: int, theta: float, scaling: Mapping[str, Any] | None, sections: Sequence[int]) -> None:
        kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type")
        # Some files name the type after the axes; the frequencies are the plain ones.
        super().__init__(dims, theta, {} if kind == "mrope" else scaling)
        self.axis_of = dealt(dims // 2, sections)
        self.axes = len(sections)

    def angles(self, positions: mx.array) -> tuple[mx.array, mx.array]:
        """Cosines and sines (B, 1, L, dims / 2) float32 of tokens at positions (axes, B, L), times `gain`."""
        places = positions.astype(mx.float32)[mx.array(self.axis_of)]
        angles = places.transpose(1, 2, 0)[:, None] * self.scale / self.periods
        return mx.cos(angles) * self.gain, mx.sin(angles) * self.gain

    def shared(
        self, positions: mx.array, known: dict[object, tuple[mx.array, mx.array]] | None
    ) -> tuple[mx.array, mx.array]:
        """`angles`, computed once per `known`."""
        found = None if known is None else known.get(id(self))
        if found is None:
            found = self.angles(positions)
            if known is not None:
                known[id(self)] = found
        return found

    def at(
        self, positions: mx.array, known: dict[object, tuple[mx.array, mx.array]] | None = None
    ) -> Callable[[mx.array], mx.array]:
        """What rotates x (B, H, L, Dh) whose token i of row b stands at positions (axes, B, L).

        Args:
            known: angles of the step by rotary, so that layers share what costs more than turning by it.
        """
        cos, sin = self.shared(positions, known)
        dims = self.dims

        def turned(x: mx.array) -> mx.array:
            if x.shape[-1] == dims:
                return turn(x, cos, sin)
            return mx.concatenate([turn(x[..., :dims], cos, sin), x[..., dims:]], axis=-1)

        return turned


def dealt(frequencies: int, sections: Sequence[int]) -> list[int]:
    """The axis of each frequency: dealt out in turn, until an axis has its share; what is left goes to the first.

    Raises:
        SpecError: for shares that are no numbers of frequencies.
    """
    axes = len(sections)
    if not axes or any(not isinstance(share, int) or isinstance(share, bool) or share < 0 for share in sections):
        raise SpecError(f"rotary embedding: sections {sections!r}; expected a number of frequencies >= 0 per axis")
    return [
        index % axes if index % axes and index < axes * sections[index % axes] else 0 for index in range(frequencies)
    ]
