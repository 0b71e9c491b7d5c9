"""What an adapter adds to rows of stored tensors, a few at a time, so that a matrix never is in memory whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from archport.checkpoint.adapting import Adapted
from archport.checkpoint.apart import own_tensors
from archport.checkpoint.headers import TensorInfo
from archport.contract.errors import CheckpointError


class Additions:
    """An adapter's terms by the names of stored tensors; its factors stay in memory, which are small."""

    def __init__(self, fit: Adapted) -> None:
        self._fit = fit

    @cached_property
    def _own(self) -> dict[str, mx.array]:
        return own_tensors(self._fit)

    def folder(self, name: str) -> Path | None:
        """Where the file of a tensor is that the adapter brings; None for those of the checkpoint."""
        return self._fit.adapter.folder if name in self._fit.whole else None

    def to(self, info: TensorInfo) -> Callable[[int, int], mx.array] | None:
        """(first row, end) -> what is added to these rows, (rows, columns) float32; None where nothing is.

        Raises:
            CheckpointError: a filter of more than two dimensions.
        """
        term, bias = self._fit.terms.get(info.name), self._fit.biases.get(info.name)
        if term is None and bias is None:
            return None
        if term is not None and len(info.shape) != 2:
            raise CheckpointError(
                f"{self._fit.adapter.name}: adds to {info.name} {info.shape}; archport converts adapted matrices only. "
                "Merge the adapter with peft (merge_and_unload), and convert the result."
            )

        def rows(first: int, end: int) -> mx.array:
            if bias is not None:
                assert bias.bias is not None, "a bias that is adapted has one"
                return bias.scale * self._own[bias.bias.name][first:end].astype(mx.float32)[:, None]
            assert term is not None, "else a bias"
            a, b = (self._own[each.name].astype(mx.float32) for each in (term.a, term.b))
            turned = term.table or (self._fit.adapter.turned if info.shape == term.shape else True)
            left, right = (a.T, b.T) if turned else (b, a)
            return term.scale * (left[first:end] @ right)

        return rows
