"""Where a module has what an adapter adds to stored weights, for adapters that are kept apart from them.

A plugin's `sanitize` renames tensors, cuts one into several and joins several to one. It is asked with stand-ins whose
rows hold numbers, so that each row of a parameter tells which row of which stored matrix it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from archport.checkpoint.adapter_files import LowRank
from archport.checkpoint.adapting import Adapted
from archport.checkpoint.disk import inside
from archport.checkpoint.files import ADAPTER_WEIGHTS, shorten
from archport.checkpoint.headers import TensorInfo
from archport.contract.errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx

_FIRST = 1 << 10
_OTHERWISE = (
    "holds more than the rows of one matrix that is adapted, so that what is added to it can't be kept apart. Load "
    "this adapter alone, with adapter=."
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows of a module's matrix are in the files.

    Args:
        name: of the stored matrix.
        rows: of it, in the module's order.
    """

    name: str
    rows: np.ndarray


def sources_of(fit: Adapted, module: Any) -> dict[str, Source]:
    """Path of a module -> where its matrix is stored, of every matrix that an adapter adds to and the model has.

    A pooler that no pipeline reads is none of those.

    Args:
        module: with `sanitize`; thrown away afterwards.

    Raises:
        CheckpointError: the module rearranges a matrix otherwise than by its rows.
    """
    import mlx.core as mx

    starts: dict[str, int] = {}
    names: list[str] = []
    # Above what a plugin may add to zeros.
    end = _FIRST
    for name in fit.terms:
        starts[name] = end
        names += [name]
        end += fit.tensors[name].shape[0]
    bounds = np.array([starts[name] for name in names])
    stand_ins = {name: _stand_in(info, starts.get(name)) for name, info in fit.tensors.items()}
    found: dict[str, Source] = {}
    for name, array in module.sanitize(stand_ins).items():
        if not array.size or float(mx.max(array.astype(mx.float32))) < _FIRST:
            continue
        if array.ndim != 2 or not name.endswith(".weight"):
            raise CheckpointError(f"{fit.adapter.name}: {name} {_OTHERWISE}")
        ids = np.array(array[:, 0].astype(mx.float32)).astype(np.int64)
        last = np.array(array[:, -1].astype(mx.float32)).astype(np.int64)
        owners = np.searchsorted(bounds, ids, side="right") - 1
        if (ids != last).any() or (owners != owners[0]).any() or owners[0] < 0:
            raise CheckpointError(f"{fit.adapter.name}: {name} {_OTHERWISE}")
        source = names[owners[0]]
        found[name.removesuffix(".weight")] = Source(source, ids - starts[source])
    return found


def _stand_in(info: TensorInfo, start: int | None) -> mx.array:
    """An array of a tensor's shape that takes no memory: zeros, or in each row its number."""
    import mlx.core as mx

    if start is None or not math.prod(info.shape):
        return mx.broadcast_to(mx.zeros(1, getattr(mx, info.dtype, mx.uint8)), info.shape)
    numbers = mx.arange(start, start + info.shape[0]).astype(mx.float32)
    return mx.broadcast_to(numbers[:, None], info.shape)


def check_apart(fit: Adapted) -> None:
    """Refuse an adapter that does more than add to matrices.

    Raises:
        CheckpointError: naming what else it does.
    """
    others = sorted({*fit.whole, *fit.biases})
    rows = sum(fit.tensors[name].shape[0] for name in fit.terms)
    filters = [name for name in fit.terms if len(fit.tensors[name].shape) != 2]
    if others or filters or fit.adapter.turned or rows >= 1 << 24:
        what = shorten(others or filters or [fit.adapter.name])
        raise CheckpointError(
            f"{fit.adapter.name}: changes {what}, and of an adapter that is kept apart only what is added to matrices "
            "can run. Load it alone, with adapter=."
        )


def factors_of(fit: Adapted, sources: Mapping[str, Source], own: Mapping[str, mx.array], dtype: str) -> dict[str, Any]:
    """Path of a module -> (down (in, r), up (r, out) with the scale in it), unevaluated.

    Args:
        own: the adapter's tensors.
        dtype: element type of both.
    """
    import mlx.core as mx

    kind = getattr(mx, dtype)
    made: dict[str, Any] = {}
    for path, source in sources.items():
        term = fit.terms[source.name]
        a, b = (own[info.name].astype(mx.float32) for info in (term.a, term.b))
        rows = mx.array(source.rows)
        # Of a table the rows are the tokens, which A has as columns.
        down, up = (a.T[rows], b.T) if term.table else (a.T, b[rows].T)
        made[path] = mx.contiguous(down.astype(kind)), mx.contiguous((term.scale * up).astype(kind))
    return made


def factor_count(term: LowRank, source: Source) -> int:
    """Numbers in what `factors_of` makes for a module: the factor that its rows do not divide is there in full."""
    whole = term.b.shape[0] if term.table else term.shape[1]
    return term.a.shape[0] * (len(source.rows) + whole)


def own_tensors(fit: Adapted) -> dict[str, mx.array]:
    """An adapter's tensors by their stored names, lazily."""
    from archport.checkpoint.weights import load_arrays

    return load_arrays(inside(fit.adapter.folder, ADAPTER_WEIGHTS, "an adapter"))
