"""The words in which requests and KV memory are planned, and the one formula for the bytes of a cache.

The formula stands here because the planner prices with it and the cache allocates by it. Pure data; knows nothing of
arrays or of any cache class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from archport.contract.errors import SpecError
from archport.contract.spec import LayerSpec, RecurrentLayer

KVStorage = Literal["planned", "growing", "ring", "recurrent"]

# Caches hold multiples of this many tokens per row: cuDNN's decode kernel asks for it, and freed buffers get reused.
KV_STEP = 256


def kv_capacity(tokens: int) -> int:
    """Tokens per row that a buffer for `tokens` holds: the next multiple of KV_STEP."""
    return -(-tokens // KV_STEP) * KV_STEP


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
        why: the reason of whoever pins it, for `explain()`; no part of what it is.
    """

    storage: KVStorage
    initial: int
    ceiling: int
    bits: int | None = None
    group_size: int = 64
    why: str = field(default="", compare=False)

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
        if self.group_size not in (32, 64, 128):
            raise SpecError(f"KV allocation: group_size={self.group_size}; MLX quantises in groups of 32, 64 or 128")

    def problems_with(self, layer: LayerSpec) -> list[str]:
        """Why this allocation can't hold that layer's state, one sentence each; empty means it can."""
        if isinstance(layer, RecurrentLayer):
            return [] if self.storage == "recurrent" else [f"a recurrent layer has no KV, but storage={self.storage!r}"]
        problems: list[str] = []
        if self.storage == "recurrent":
            problems.append("an attention layer has no recurrent state")
        if not layer.keeps:
            problems.append(f"the layer keeps no cache of its own (kv={layer.kv!r})")
        if self.storage == "ring" and layer.reach[0] is None:
            problems.append("a ring keeps only the last tokens, but the layer sees all of them")
        if self.storage == "ring" and layer.reach[0] is not None and self.ceiling <= layer.reach[0]:
            problems.append(
                f"a ring of {self.ceiling} tokens is shorter than the {layer.reach[0] + 1} that the layer sees"
            )
        for width in layer.kv_widths:
            if self.bits is not None and width % self.group_size:
                problems.append(f"heads of width {width} do not split into groups of {self.group_size}")
        return problems

    def capacity(self, tokens: int) -> int:
        """Tokens per row that the buffers hold once `tokens` were written, a multiple of KV_STEP.

        `growing` doubles from `initial` until it holds `tokens`, and stops at `ceiling`; the others are constant.
        """
        if self.storage == "recurrent":
            return 0
        most = kv_capacity(self.ceiling)
        if self.storage != "growing":
            return most
        held = max(kv_capacity(self.initial), min(KV_STEP, most))
        while held < min(tokens, most):
            held *= 2
        return min(held, most)

    def bytes(self, layer: LayerSpec, *, B: int, tokens: int, itemsize: int) -> int:
        """Bytes this layer holds for B rows once `tokens` were written to each."""
        return B * self.row_bytes(layer, self.capacity(tokens), itemsize)

    def row_bytes(self, layer: LayerSpec, capacity: int, itemsize: int) -> int:
        """Bytes of one row with buffers for `capacity` tokens."""
        if isinstance(layer, RecurrentLayer):
            return layer.state_bytes + layer.conv_bytes
        return sum(capacity * layer.n_kv_heads * self._element_bytes(width, itemsize) for width in layer.kv_widths)

    def _element_bytes(self, width: int, itemsize: int) -> int:
        if self.bits is None:
            return width * itemsize
        # Packed elements, and one scale and one bias per group.
        return width * self.bits // 8 + 2 * itemsize * (width // self.group_size)

    def largest_buffer(self, layer: LayerSpec, *, B: int, tokens: int, itemsize: int) -> int:
        """Bytes of the largest single array of this layer's cache."""
        if isinstance(layer, RecurrentLayer):
            return B * max(layer.state_bytes, layer.conv_bytes)
        width = max(layer.head_dim, layer.v_head_dim)
        per_token = width * itemsize if self.bits is None else width * self.bits // 8
        return B * self.capacity(tokens) * layer.n_kv_heads * per_token
