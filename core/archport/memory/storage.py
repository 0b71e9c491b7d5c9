"""Buffers of one layer's keys and values, plain or quantised. Knows nothing of rows' lengths or of ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import mlx.core as mx

from archport.contract import AttentionLayer, DType, KVAllocation
from archport.device.evaluation import finish

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Storage(Protocol):
    """Keys and values of (B, K, capacity, width)."""

    @property
    def capacity(self) -> int:
        """Tokens per row."""
        ...

    @property
    def bytes(self) -> int: ...

    def write(self, rows: slice, start: int, k: mx.array, v: mx.array) -> None:
        """Put k and v of the given rows at `start`."""
        ...

    def read(self, first: int, last: int) -> tuple[mx.array, mx.array]:
        """Keys and values of tokens `first` to `last` (excluded) of every row."""
        ...

    def grow(self, capacity: int, held: int) -> None:
        """Move the first `held` tokens into buffers of `capacity`; nothing of the old ones remains."""
        ...

    def shift(self, dropping: Sequence[int], keeping: int) -> None:
        """Move each row forward by its own number of tokens; at most `keeping` remain per row."""
        ...

    def align(self, held: Sequence[int]) -> None:
        """Move each row's first `held[b]` tokens so that all rows end where the longest one does; zeros in front."""
        ...

    def take_rows(self, rows: list[int]) -> None:
        """Keep only these rows, in this order."""
        ...

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Move tokens of other storages of the same kind here, one array after the other; those are empty then."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of another storage, of all its rows, and where they go.

    Args:
        rows, start: where the first of them is put.
        source: the storage that they come from.
        first, count: which of its tokens.
    """

    rows: slice
    start: int
    source: Storage
    first: int
    count: int


class Buffers:
    """A few arrays of (B, K, capacity, anything) that are written, grown and shifted together."""

    def __init__(self, arrays: Sequence[mx.array]) -> None:
        self.arrays = list(arrays)

    @property
    def capacity(self) -> int:
        return self.arrays[0].shape[2]

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def put(self, rows: slice, start: int, parts: Sequence[mx.array]) -> None:
        """Write a part of each array at `start` of the given rows."""
        for index, part in enumerate(parts):
            # In place where nobody else holds the buffer, which is what `del` in the readers is for.
            self.arrays[index][rows, :, start : start + part.shape[2]] = part

    def grow(self, capacity: int, held: int) -> None:
        for index, old in enumerate(self.arrays):
            B, K, _, width = old.shape
            new = mx.zeros((B, K, capacity, width), dtype=old.dtype)
            new[:, :, :held] = old[:, :, :held]
            # Evaluated one by one: old and new of one array coexist, not of all layers.
            finish(new)
            self.arrays[index] = new

    def shift(self, dropping: Sequence[int], keeping: int) -> None:
        for index, array in enumerate(self.arrays):
            if len(set(dropping)) == 1:
                tail = array[:, :, dropping[0] : dropping[0] + keeping]
            else:
                rows = [array[row : row + 1, :, drop : drop + keeping] for row, drop in enumerate(dropping)]
                # A row that drops more may reach the end of the buffer sooner.
                rows = [mx.pad(row, [(0, 0), (0, 0), (0, keeping - row.shape[2]), (0, 0)]) for row in rows]
                tail = mx.concatenate(rows, axis=0)
            # A copy of its own: writing over the tokens it was cut from must not copy the whole buffer.
            tail = mx.contiguous(tail)
            finish(tail)
            array[:, :, :keeping] = tail
            self.arrays[index] = array

    def align(self, held: Sequence[int]) -> None:
        end = max(held)
        for index, old in enumerate(self.arrays):
            new = mx.zeros(old.shape, dtype=old.dtype)
            for row, count in enumerate(held):
                new[row : row + 1, :, end - count : end] = old[row : row + 1, :, :count]
            finish(new)
            self.arrays[index] = new

    def take_rows(self, rows: list[int]) -> None:
        index = mx.array(rows)
        for at, array in enumerate(self.arrays):
            self.arrays[at] = mx.take(array, index, axis=0)
            finish(self.arrays[at])

    def fill(self, pieces: Sequence[Piece]) -> None:
        for index, array in enumerate(self.arrays):
            for piece in pieces:
                first, last, source = piece.first, piece.first + piece.count, cast(Buffers, piece.source)
                array[piece.rows, :, piece.start : piece.start + piece.count] = source.arrays[index][:, :, first:last]
            mx.eval(array)
            for piece in pieces:
                # Of all layers together, one array exists twice.
                cast(Buffers, piece.source).arrays[index] = mx.zeros((0, 0, 0, 0))


class PlainStorage(Buffers):
    """Keys and values in the model's element type; of a latent cache, keys that hold the values."""

    def __init__(self, layer: AttentionLayer, B: int, capacity: int, dtype: DType) -> None:
        shape = (B, layer.n_kv_heads, capacity)
        self._values = layer.v_head_dim
        super().__init__([mx.zeros((*shape, width), dtype=DTYPES[dtype]) for width in layer.kv_widths])

    def write(self, rows: slice, start: int, k: mx.array, v: mx.array) -> None:
        self.put(rows, start, (k, v)[: len(self.arrays)])

    def read(self, first: int, last: int) -> tuple[mx.array, mx.array]:
        held = [array[:, :, first:last] for array in self.arrays]
        return held[0], held[1] if len(held) > 1 else held[0][..., : self._values]


class QuantizedStorage(Buffers):
    """Keys and values as affine-quantised integers with a scale and a bias per group along each head."""

    def __init__(self, layer: AttentionLayer, B: int, capacity: int, dtype: DType, bits: int, group_size: int) -> None:
        self._bits, self._group_size, self._dtype = bits, group_size, DTYPES[dtype]
        shape = (B, layer.n_kv_heads, capacity)
        self._widths, self._values = layer.kv_widths, layer.v_head_dim
        arrays: list[mx.array] = []
        for width in layer.kv_widths:
            arrays.append(mx.zeros((*shape, width * bits // 32), dtype=mx.uint32))
            arrays += [mx.zeros((*shape, width // group_size), dtype=self._dtype) for _ in range(2)]
        super().__init__(arrays)

    def write(self, rows: slice, start: int, k: mx.array, v: mx.array) -> None:
        parts = [
            part
            for array in (k, v)[: len(self._widths)]
            for part in mx.quantize(array.astype(self._dtype), group_size=self._group_size, bits=self._bits)
        ]
        self.put(rows, start, parts)

    def read(self, first: int, last: int) -> tuple[mx.array, mx.array]:
        held = [array[:, :, first:last] for array in self.arrays]
        wide = [
            mx.dequantize(*held[at : at + 3], group_size=self._group_size, bits=self._bits)
            for at in range(0, len(held), 3)
        ]
        return wide[0], wide[1] if len(wide) > 1 else wide[0][..., : self._values]


def storage_for(layer: AttentionLayer, allocation: KVAllocation, B: int, capacity: int, dtype: DType) -> Storage:
    """Buffers of `capacity` tokens per row, as the allocation says."""
    if allocation.bits is None:
        return PlainStorage(layer, B, capacity, dtype)
    return QuantizedStorage(layer, B, capacity, dtype, allocation.bits, allocation.group_size)
