"""What recurrent layers see of one step: their planned form, their state, documents and padding. Computes no rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from archport.contract import ArchportError, AttentionPath, RecurrentPath, Segments
from archport.memory import RecurrentState


@dataclass(frozen=True, slots=True)
class StateStep:
    """One recurrent layer in one step; without `held` nothing is kept between steps."""

    path: RecurrentPath
    held: RecurrentState | None

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return () if self.held is None else self.held.arrays

    @property
    def keeps(self) -> bool:
        return self.held is not None

    def store(self, arrays: Sequence[mx.array]) -> None:
        if self.held is not None:
            self.held.store(arrays)


def padding(real: Sequence[int], tokens: int) -> Segments:
    """The segments of a step in which row b holds `real[b]` tokens, padded on the right to `tokens`."""
    if min(real) >= tokens:
        return Segments()
    return Segments(real=mx.arange(tokens)[None] < mx.array(list(real))[:, None])


def recurrent_path(layer: int, path: AttentionPath | RecurrentPath | None) -> RecurrentPath:
    """The planned form of a recurrent layer; raises ArchportError for a layer that is declared otherwise."""
    if not isinstance(path, RecurrentPath):
        raise ArchportError(
            f"layer {layer} is declared an attention layer but asked for recurrent state; declare it a RecurrentLayer"
        )
    return path
