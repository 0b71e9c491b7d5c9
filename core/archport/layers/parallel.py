"""Linear layers and tables of which each rank of a group holds a part; their answers are those of the whole.

Blocks put them where the products of all ranks meet. How much a rank holds is `contract.split`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from archport.device.ranks import Ranks

# (module, ids (n,)) -> rows (n, D) of its matrix.
RowsOf = Callable[[nn.Module, mx.array], mx.array]


class SummedLinear(nn.Module):
    """A linear layer of whose inputs each rank has a share: the products of all ranks are summed, then the bias added.

    Args:
        linear: with this rank's columns, and the whole bias.
    """

    def __init__(self, linear: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks
        bias = linear.pop("bias", None)
        self.linear = linear
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        """Output (..., D) for this rank's inputs x (..., n)."""
        y = self._ranks.sum(self["linear"](x))
        return y + self["bias"] if "bias" in self else y


class GatheredLinear(nn.Module):
    """A linear layer of whose outputs each rank makes a share, such as an output head.

    Args:
        linear: with this rank's rows.
        size: outputs of all ranks.
    """

    def __init__(self, linear: nn.Module, size: int, ranks: Ranks) -> None:
        super().__init__()
        self._split = size, ranks
        self.linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        """Output (..., size) for x (..., D)."""
        return gathered(self["linear"](x), *self._split)

    def rows(self, ids: mx.array, rows_of: RowsOf) -> mx.array:
        """Rows (n, D) of the whole matrix at ids (n,)."""
        return owned_rows(lambda at: rows_of(self["linear"], at), ids, *self._split)


class SplitEmbedding(nn.Module):
    """A table of which each rank has some rows, and the output head that may share it.

    Args:
        table: with this rank's rows.
        size: rows of all ranks.
    """

    def __init__(self, table: nn.Module, size: int, ranks: Ranks) -> None:
        super().__init__()
        self._split = size, ranks
        self.table = table

    def __call__(self, x: mx.array) -> mx.array:
        """Rows (..., D) at x (...) integers."""
        return owned_rows(cast(Any, self["table"]), x, *self._split)

    def as_linear(self, x: mx.array) -> mx.array:
        """Products (..., size) of x (..., D) with every row."""
        return gathered(cast(Any, self["table"]).as_linear(x), *self._split)

    def rows(self, ids: mx.array, rows_of: RowsOf) -> mx.array:
        """Rows (n, D) of the whole table at ids (n,)."""
        return owned_rows(lambda at: rows_of(self["table"], at), ids, *self._split)


def gathered(products: mx.array, size: int, ranks: Ranks) -> mx.array:
    """All ranks' products (..., size), of which this rank made those of its rows."""
    each = -(-size // ranks.rank.count)
    short = each - products.shape[-1]
    if short:
        products = mx.pad(products, [(0, 0)] * (products.ndim - 1) + [(0, short)])
    return ranks.gather(products)[..., :size]


def owned_rows(rows_at: Callable[[mx.array], mx.array], ids: mx.array, size: int, ranks: Ranks) -> mx.array:
    """Rows (..., D) at ids (...), each of which one rank has.

    Args:
        rows_at: this rank's rows by their place among them.
    """
    start, stop = ranks.rank.rows(size)
    mine = (ids >= start) & (ids < stop)
    rows = rows_at(mx.where(mine, ids - start, 0))
    return ranks.sum(mx.where(mine[..., None], rows, mx.array(0, rows.dtype)))
