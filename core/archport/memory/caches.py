"""The caches of all layers of a batch, made as the plan says and refused as one.

Knows nothing of plans beyond the allocations in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from archport.contract import AttentionLayer, DType, InputError, KVAllocation, LayerSpec
from archport.memory.cache import KVCache
from archport.memory.recurrent import RecurrentState

LayerState = KVCache | RecurrentState | None


class Caches:
    """One state per layer: a KVCache, a RecurrentState, or None for layers that keep nothing of their own.

    Args:
        layers: specs, one per layer.
        allocations: how each is held, one per layer; None keeps nothing.
        B: rows.
        dtype: element type of keys and values.
    """

    def __init__(
        self, layers: Sequence[LayerSpec], allocations: Sequence[KVAllocation | None], B: int, dtype: DType
    ) -> None:
        if len(layers) != len(allocations):
            raise InputError(f"caches: {len(layers)} layers and {len(allocations)} allocations; expected one for each")
        self.rows = B
        self.layers: tuple[LayerState, ...] = tuple(
            None if allocation is None else _state(layer, allocation, B, dtype)
            for layer, allocation in zip(layers, allocations, strict=True)
        )

    def __getitem__(self, layer: int) -> LayerState:
        return self.layers[layer]

    @property
    def bytes(self) -> int:
        """Bytes allocated now, over all layers."""
        return sum(state.bytes for state in self.layers if state is not None)

    def check(self, adding: Sequence[int]) -> None:
        """Refuse tokens that some layer can't hold, before any layer allocates or writes.

        Args:
            adding: tokens per row.

        Raises:
            KvCeilingExceeded: with the row, what it would hold and the ceiling.
        """
        for state in self.layers:
            if isinstance(state, KVCache):
                state.check(adding)

    def align(self, lengths: Sequence[int]) -> None:
        """After a prefill of right-padded rows: drop the padding in every layer, and let all rows end at one column."""
        for state in self.layers:
            if isinstance(state, KVCache):
                state.align(lengths)

    @property
    def full(self) -> bool:
        """Whether some layer has to grow for the next column of aligned rows, or can't hold it."""
        return any(isinstance(state, KVCache) and state.full for state in self.layers)

    def drop_front(self, columns: int) -> None:
        """Forget the first columns of all aligned rows, which are padding of each of them, in every layer."""
        for state in self.layers:
            if isinstance(state, KVCache):
                state.drop_front(columns)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order, in every layer; one named twice is copied."""
        self.rows = len(rows)
        for state in self.layers:
            if state is not None:
                state.keep_rows(rows)


def joined(
    parts: Sequence[tuple[Caches, int]],
    layers: Sequence[LayerSpec],
    allocations: Sequence[KVAllocation | None],
    dtype: DType,
) -> Caches:
    """Caches that hold the rows of several others, which are spent: layer by layer, so that one array exists twice.

    Args:
        parts: aligned caches, and the columns of each that are its rows' own.
        layers, allocations, dtype: as `Caches` takes them.

    Raises:
        KvCeilingExceeded: the rows do not fit the allocations.
    """
    columns = [own for _, own in parts]
    made = Caches(layers, allocations, sum(part.rows for part, _ in parts), dtype)
    for index, state in enumerate(made.layers):
        others = [part.layers[index] for part, _ in parts]
        if isinstance(state, KVCache):
            state.take_over([other for other in others if isinstance(other, KVCache)], columns)
        elif isinstance(state, RecurrentState):
            state.take_over([other for other in others if isinstance(other, RecurrentState)])
    return made


def _state(layer: LayerSpec, allocation: KVAllocation, B: int, dtype: DType) -> KVCache | RecurrentState:
    if isinstance(layer, AttentionLayer):
        return KVCache(layer, allocation, B, dtype)
    return RecurrentState(layer, B)
