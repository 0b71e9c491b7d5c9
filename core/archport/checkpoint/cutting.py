"""What one rank keeps of a tensor: read alone where it lies in a file as it is, and else cut out of what was read.

Which cut a parameter has is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from archport.checkpoint.disk import inside
from archport.checkpoint.headers import TensorInfo
from archport.contract.split import Cut

if TYPE_CHECKING:
    import mlx.core as mx

# numpy has no name for it; its bits are read as these.
_BITS = {"bfloat16": "uint16"}


def cut_of(name: str, cuts: Mapping[str, Cut]) -> Cut | None:
    """The cut of a parameter, by its own path or by its module's."""
    return cuts.get(name) or cuts.get(name.rpartition(".")[0])


def kept_size(name: str, shape: Sequence[int], cut: Cut | None) -> int:
    """Numbers of a parameter that a rank keeps."""
    axis, size = _axis(name, len(shape), cut), 1
    for at, length in enumerate(shape):
        size *= sum(b - a for a, b in cut.bounds(length, name)) if cut is not None and at == axis else length
    return size


def cut_array(whole: mx.array, name: str, cut: Cut, folder: Path, stored: TensorInfo | None) -> mx.array:
    """What is kept of a parameter.

    Args:
        whole: unevaluated, and left so where the file is read instead.
        stored: where it lies in a file, if it does as it is.
    """
    import mlx.core as mx

    axis = _axis(name, whole.ndim, cut)
    if axis is None:
        return whole
    bounds = cut.bounds(whole.shape[axis], name)
    at = [(*[slice(None)] * axis, slice(start, stop)) for start, stop in bounds]
    kind = str(whole.dtype).removeprefix("mlx.core.")
    if stored is None or (stored.dtype, stored.shape) != (kind, tuple(whole.shape)):
        pieces = [whole[each] for each in at]
        # Contiguous, or a view would keep all of it.
        return mx.contiguous(pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=axis))
    import numpy as np

    path = inside(folder, stored.file, "the index")
    bits = np.dtype(_BITS.get(kind, kind)).newbyteorder("<")
    mapped = np.memmap(path, bits, "r", stored.offset, stored.shape)
    pieces = [np.ascontiguousarray(mapped[each]) for each in at]
    read = mx.array(pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis))
    return read.view(whole.dtype) if kind in _BITS else read


def _axis(name: str, ndim: int, cut: Cut | None) -> int | None:
    return None if cut is None else cut.axis(name.rpartition(".")[2], ndim)
