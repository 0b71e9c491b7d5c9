"""Low-rank terms of a task that run next to a module's own matrix, in a copy of the tree that shares its weights.

A copy per task instead of a switch: no module keeps what one call asked for, and what is compiled belongs to a task.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from archport.contract import PluginError, Trunk


@dataclass(frozen=True, slots=True)
class Term:
    """What a module's output gets besides.

    Args:
        down: (in, r), of a table (V, r).
        up: (r, out), the scale in it.
    """

    down: mx.array
    up: mx.array

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


class _LinearTerm:
    """Of a linear layer: x W + (x A) B."""

    def __call__(self, x: mx.array) -> mx.array:
        own = cast(Any, self)
        return cast(Any, super()).__call__(x) + (x @ own.lora_down) @ own.lora_up


class _TableTerm:
    """Of a table: its row and the row of A, times B. As an output head the table is the base's."""

    def __call__(self, x: mx.array) -> mx.array:
        own = cast(Any, self)
        return cast(Any, super()).__call__(x) + own.lora_down[x] @ own.lora_up


@cache
def _with_term(kind: type[nn.Module]) -> type[nn.Module]:
    term = _TableTerm if issubclass(kind, nn.Embedding | nn.QuantizedEmbedding) else _LinearTerm
    return cast("type[nn.Module]", type(f"{kind.__name__}WithTerm", (term, kind), {}))


def takes_term(module: nn.Module) -> bool:
    """Whether a module can have a term: a linear layer or a table, packed or not."""
    return isinstance(module, nn.Linear | nn.QuantizedLinear | nn.Embedding | nn.QuantizedEmbedding)


def with_terms(trunk: Trunk, terms: Mapping[str, Term]) -> Trunk:
    """A copy of a trunk around the same weights, whose modules add their terms.

    Args:
        terms: by the path of a module for which `takes_term`.

    Raises:
        PluginError: a tree that can't be copied.
    """
    try:
        tree = copy.deepcopy(trunk)
    except Exception as error:
        raise PluginError(
            f"{type(trunk).__name__} can't be copied ({error}); load one adapter, with adapter="
        ) from error
    modules = dict(cast(nn.Module, tree).named_modules())
    for path, term in terms.items():
        module: Any = modules[path]
        module.__class__ = _with_term(type(module))
        module.lora_down, module.lora_up = term.down, term.up
    return tree
