"""Linear layers that do more in one product: several over one input merged, and an output added to what it changes.

Checkpoints store q, k and v (gate and up) apart; one wide product is faster than three narrow ones on every device. A
sum inside the last product of a block spares a GPU one pass over memory and one operation: 106 us instead of 134 for
32,768 rows of ModernBERT's MLP on an H200. What the outputs mean is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, cast, runtime_checkable

import mlx.core as mx
import mlx.nn as nn

from archport.contract import Trunk
from archport.kernels.launches import enough

# Elements of the sum below which the host binds, and folding takes it more operations than adding.
FEWEST = 1 << 21


def added(module: nn.Module, onto: mx.array, *arguments: Any) -> mx.array:
    """`onto` plus what the module makes of the arguments; one with `takes_onto` set is told, and adds it itself.

    The class itself has to say so: a subclass may have a call of its own.
    """
    call = cast(Any, module)
    return call(*arguments, onto=onto) if vars(type(module)).get("takes_onto") else onto + call(*arguments)


def linear_onto(linear: nn.Module, x: mx.array, onto: mx.array | None) -> mx.array:
    """The output (..., D) of a linear layer, plus `onto` (..., D) where that is given."""
    made = cast(Any, linear)
    if onto is None:
        return made(x)
    if not folds(linear, onto):
        return onto + made(x)
    weight = made["weight"].T
    if x.shape[0] == 1:
        return mx.addmm(onto, x, weight)
    # With more rows MLX would multiply each of them by itself.
    rows = mx.addmm(onto.reshape(-1, onto.shape[-1]), x.reshape(-1, x.shape[-1]), weight)
    return rows.reshape(onto.shape)


def folds(linear: nn.Module, onto: mx.array) -> bool:
    """Whether one product adds, too: on a GPU, for an unpacked matrix without a bias in the type of the sum."""
    if mx.default_device().type == mx.DeviceType.cpu or type(linear) is not nn.Linear or "bias" in linear:
        return False
    # One row is multiplied by a kernel of MLX's own, which adds nothing.
    return linear["weight"].dtype == onto.dtype and onto.size > onto.shape[-1] and enough(onto.size, FEWEST)


class MergedLinear(nn.Module):
    """Several linear layers over one input as one product; returns their outputs in order."""

    def __init__(self, linear: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear
        self._edges = list(accumulate(widths))[:-1]

    def __call__(self, x: mx.array) -> list[mx.array]:
        return self.split(self.product(x))

    def product(self, x: mx.array) -> mx.array:
        """All outputs side by side (..., sum of the widths)."""
        return self["linear"](x)

    def split(self, product: mx.array) -> list[mx.array]:
        """The outputs in a product, as views."""
        return cast("list[mx.array]", mx.split(product, self._edges, axis=-1))

    @staticmethod
    def of(parts: Sequence[nn.Module]) -> MergedLinear | None:
        """The merged layer, evaluated; None when the parts differ in kind, quantisation or bias."""
        first = parts[0]
        if any(_shape_of(part) != _shape_of(first) for part in parts):
            return None
        merged = cast(Any, first)
        widths = [cast(Any, part).weight.shape[0] for part in parts]
        for name in [name for name in ("weight", "scales", "biases", "bias") if name in first]:
            merged[name] = mx.concatenate([cast(Any, part)[name] for part in parts], axis=0)
        mx.eval(merged.parameters())
        return MergedLinear(first, widths)


def _shape_of(part: nn.Module) -> tuple[Any, ...]:
    packed = [getattr(part, name, None) for name in ("bits", "group_size", "mode")]
    names = [name for name in ("weight", "scales", "biases", "bias", "global_scale") if name in part]
    weight = cast(Any, part).weight
    return (type(part), *packed, *names, weight.dtype, weight.shape[1:])


@runtime_checkable
class Merging(Protocol):
    """A block that can merge its projections once its weights are loaded."""

    def merge(self) -> None: ...


def merge_projections(trunk: Trunk) -> None:
    """Merge every block of a loaded trunk that can; the parts are released block by block."""
    for block in cast(nn.Module, trunk).modules():
        if isinstance(block, Merging):
            block.merge()
