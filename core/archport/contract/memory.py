"""The words in which requests and KV memory are planned. Pure data; knows nothing of arrays or of any cache class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from archport.contract.errors import SpecError

KVStorage = Literal["planned", "growing", "ring", "recurrent"]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """One padded batch, in numbers.

    Args:
        B: rows.
        L: tokens of the longest row in this step.
        S: tokens already cached per row.
        new_tokens: tokens that decoding may add afterwards.
        ragged: whether rows differ in length.
    """

    B: int
    L: int
    S: int = 0
    new_tokens: int = 0
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may use: `max_context` tokens per row and `budget` bytes on the device."""

    max_context: int
    budget: int


@dataclass(frozen=True, slots=True)
class KVAllocation:
    """How one layer's KV (or recurrent state) is held.

    Args:
        storage: `planned` (allocated once), `growing` (doubles from `initial` to `ceiling`), `ring` (the last tokens
            a window can see) or `recurrent` (constant size).
        initial, ceiling: tokens per row at first and at most.
        bits: None for the model's dtype, 8 or 4 for affine-quantised KV.
        group_size: elements per quantisation group.
    """

    storage: KVStorage
    initial: int
    ceiling: int
    bits: int | None = None
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.storage not in get_args(KVStorage):
            raise SpecError(
                f"KV allocation: storage={self.storage!r}; expected one of {', '.join(get_args(KVStorage))}"
            )
        if not 0 <= self.initial <= self.ceiling:
            raise SpecError(
                f"KV allocation: initial={self.initial}, ceiling={self.ceiling}; expected 0 <= initial <= ceiling"
            )
        if self.bits not in (None, 4, 8):
            raise SpecError(f"KV allocation: bits={self.bits}; expected None, 4 or 8")
