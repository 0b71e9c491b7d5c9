"""The state a recurrent layer carries from step to step. Knows how much there is and nothing of what it means."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from archport.contract import InputError, RecurrentLayer
from archport.device.evaluation import finish


class RecurrentState:
    """Arrays of constant size, one row per sequence; empty before the first step.

    Args:
        layer: whose state this is; its bytes are what the plan reserved.
        B: rows.
    """

    def __init__(self, layer: RecurrentLayer, B: int) -> None:
        if B < 1:
            raise InputError(f"recurrent state: B={B} rows; expected at least one")
        self.layer, self.B = layer, B
        self.arrays: tuple[mx.array, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def planned(self) -> int:
        """Bytes the plan reserved."""
        return self.B * (self.layer.state_bytes + self.layer.conv_bytes)

    def store(self, arrays: Sequence[mx.array]) -> None:
        """Keep the state that the next step starts from.

        Args:
            arrays: each with B rows.

        Raises:
            InputError: another number of rows, or more bytes than were planned.
        """
        rows = [array.shape[0] if array.ndim else 0 for array in arrays]
        if any(count != self.B for count in rows):
            raise InputError(f"recurrent state: arrays of {rows} rows; expected {self.B} each")
        size = sum(array.nbytes for array in arrays)
        if size > self.planned:
            raise InputError(
                f"recurrent state: {size:,} bytes for {self.B} rows, but the layer declares {self.planned:,}; "
                "correct state_bytes and conv_bytes of its RecurrentLayer"
            )
        self.arrays = tuple(arrays)

    def take_over(self, parts: Sequence[RecurrentState]) -> None:
        """Begin an empty state with the rows of others, which are spent."""
        arrays = [list(part.arrays) for part in parts]
        for part in parts:
            part.arrays = ()
        found: list[mx.array] = []
        for index in range(len(arrays[0])):
            found.append(mx.concatenate([each[index] for each in arrays]))
            mx.eval(found[-1])
            for each in arrays:
                each[index] = mx.zeros((0,))
        self.store(found)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; one named twice is copied."""
        unknown = [row for row in rows if not 0 <= row < self.B]
        if unknown or not rows:
            raise InputError(f"recurrent state: rows {list(rows)}; expected at least one of 0 to {self.B - 1}")
        index, arrays = mx.array(list(rows)), list(self.arrays)
        self.arrays = ()
        for at, array in enumerate(arrays):
            # Evaluated one by one: an unevaluated copy holds the old array too.
            arrays[at] = mx.take(array, index, axis=0)
            del array
            finish(arrays[at])
        self.arrays, self.B = tuple(arrays), len(rows)
