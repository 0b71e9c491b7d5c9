"""Prompts that hold pictures, for generation: what stands behind a remembered beginning, and by which keys it is found.

Knows nothing of caches or decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from archport.contract import Measured, Reader


@dataclass(frozen=True, slots=True)
class VisualPrompts:
    """The prompts of a request, some of which hold pictures.

    Args:
        measured: one per prompt.
        reader: what decodes their pictures.
    """

    measured: tuple[Measured, ...]
    reader: Reader

    @property
    def keys(self) -> list[np.ndarray]:
        """What prompts are remembered by: ids, and numbers below zero made from a picture's pixels in its place."""
        return [_keys(each) for each in self.measured]

    @property
    def images(self) -> tuple[tuple[int, ...], ...]:
        """Per prompt the patches of its pictures, as plans take them."""
        return tuple(tuple(picture.patches for picture in each.pictures) for each in self.measured)

    @property
    def next_positions(self) -> list[int]:
        """Where the token behind each prompt stands."""
        return [len(each.ids) if each.next_position is None else each.next_position for each in self.measured]

    def edge(self, tokens: int) -> int:
        """The most leading tokens, at most so many, that cut no prompt inside a picture."""
        for each in self.measured:
            for picture in each.pictures:
                if picture.start < tokens < picture.start + picture.tokens:
                    return self.edge(picture.start)
        return tokens

    def only(self, row: int) -> VisualPrompts:
        """One of the prompts, alone."""
        return replace(self, measured=self.measured[row : row + 1])

    def behind(self, tokens: int) -> VisualPrompts:
        """The same prompts without their leading tokens, of which no picture is cut."""
        if not tokens:
            return self
        return replace(self, measured=tuple(_behind(each, tokens) for each in self.measured))


def _behind(measured: Measured, tokens: int) -> Measured:
    # Positions go on from where they were, so a row that only had pictures needs its own from here on.
    positions = measured.positions
    kept = [picture for picture in measured.pictures if picture.start >= tokens]
    return replace(
        measured,
        ids=measured.ids[tokens:],
        pictures=tuple(replace(picture, start=picture.start - tokens) for picture in kept),
        positions=None if positions is None else positions[:, tokens:],
    )


def _keys(measured: Measured) -> np.ndarray:
    keys = measured.ids.astype(np.int64)
    for picture in measured.pictures:
        digest = hashlib.blake2b(picture.digest() + repr(picture.grid).encode(), digest_size=8).digest()
        first = int.from_bytes(digest, "little") >> 2
        keys[picture.start : picture.start + picture.tokens] = -1 - (first + np.arange(picture.tokens)) % 2**62
    return keys


def of_prompts(measured: Sequence[Measured], reader: Reader | None) -> VisualPrompts | None:
    """The prompts, where any of them holds a picture or stands on places of its own."""
    if reader is None or not any(each.pictures or each.positions is not None for each in measured):
        return None
    return VisualPrompts(tuple(measured), reader)
