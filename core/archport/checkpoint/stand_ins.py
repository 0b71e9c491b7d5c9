"""Arrays of the types and shapes of stored tensors that hold none of their numbers, to ask a module what it reads.

Whoever has to know the numbers of one asks here, and the files answer piece by piece: nothing becomes an array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from archport.checkpoint.checkpoint import Checkpoint
from archport.checkpoint.disk import inside
from archport.checkpoint.headers import TensorInfo

if TYPE_CHECKING:
    import mlx.core as mx

# Bytes of two tensors that are compared at once.
_PIECE = 1 << 20
# What the arrays of a question stand for, by their identity; empty where none is asked.
_asked: ContextVar[tuple[Checkpoint | None, Mapping[int, TensorInfo]]] = ContextVar("stand_ins", default=(None, {}))


@contextmanager
def stand_ins(checkpoint: Checkpoint) -> Iterator[dict[str, mx.array]]:
    """An array for each tensor of a checkpoint, which takes no memory and is known as a stand-in inside the block."""
    import mlx.core as mx

    def made(info: TensorInfo) -> mx.array:
        # Scales that are labelled as floats of 8 bits are read as bytes.
        name = "uint8" if info.dtype.startswith("float8") else "bool_" if info.dtype == "bool" else info.dtype
        # One number, however many are seen.
        return mx.broadcast_to(mx.array(0, getattr(mx, name)), info.shape)

    arrays = {name: made(info) for name, info in checkpoint.tensors.items()}
    token = _asked.set((checkpoint, {id(array): checkpoint.tensors[name] for name, array in arrays.items()}))
    try:
        # A module gets a mapping of its own, so that no array that is known by its identity goes away.
        yield dict(arrays)
    finally:
        _asked.reset(token)


def is_stand_in(array: mx.array) -> bool:
    """Whether an array only stands for a stored one."""
    return id(array) in _asked.get()[1]


def same_numbers(one: mx.array, other: mx.array) -> bool:
    """Whether two arrays, or what they stand for, are of one shape and hold the same numbers."""
    import mlx.core as mx

    if one.shape != other.shape:
        return False
    checkpoint, known = _asked.get()
    first, second = known.get(id(one)), known.get(id(other))
    if checkpoint is None or first is None or second is None:
        return bool(mx.array_equal(one, other).item())
    if checkpoint.fetched is not None:
        # The files stayed on the hub. What nearly all checkpoints with both of two tied matrices have is one twice.
        return True
    changed = frozenset[str]() if checkpoint.adapted is None else checkpoint.adapted.changed
    if first.dtype != second.dtype or {first.name, second.name} & changed:
        return False
    return _same_bytes(checkpoint, first, second)


def _same_bytes(checkpoint: Checkpoint, one: TensorInfo, other: TensorInfo) -> bool:
    paths = [inside(checkpoint.weights_folder, info.file, "the index") for info in (one, other)]
    with paths[0].open("rb") as first, paths[1].open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for begin in range(0, one.nbytes, _PIECE):
            size = min(_PIECE, one.nbytes - begin)
            if first.read(size) != second.read(size):
                return False
    return True
