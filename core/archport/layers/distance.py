"""What attention adds to its scores by distance: ALiBi's slopes, and the bucketed tables of T5 and MPNet.

Rules for `ctx.attend(..., bias=...)`, asked for distances and never for pairs of tokens. Knows nothing of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import SpecError


class Slopes:
    """Attention with linear biases: every head takes its slope times the distance off the score, in both directions.

    Args:
        slopes: one per head; those of a checkpoint's own, or `alibi_slopes(heads)`.
    """

    def __init__(self, slopes: Sequence[float]) -> None:
        self._slopes = mx.array(list(slopes), dtype=mx.float32)

    def __call__(self, distances: mx.array) -> mx.array:
        """(H, n) float32 for distances (n,)."""
        return -self._slopes[:, None] * mx.abs(distances).astype(mx.float32)


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of the ALiBi paper, which BLOOM, MPT and JinaBERT use: powers of two, filled up from the next size.

    Source: arXiv 2108.12409, section 3, and its published code for numbers of heads that are no power of two.
    """
    if heads < 1:
        raise SpecError(f"alibi slopes: heads={heads}; expected at least one")
    power = 1 << (heads.bit_length() - 1)
    whole = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4.0 * (head + 1) / power) for head in range(2 * power)]
    return whole + between[0::2][: heads - power]


class RelativeBuckets(nn.Module):
    """A table of one number per bucket of distances and head, as T5 and MPNet have it.

    Parameter `weight` (buckets, H), so that a module named `relative_attention_bias` has the published name. Several
    layers share one by being handed the same object.

    Args:
        heads: query heads.
        buckets: rows of the table; half of them are for keys after the query when `bidirectional`.
        max_distance: distance from which on all share the last bucket.
        bidirectional: whether later keys have buckets of their own; without it they count as distance 0.
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, *, bidirectional: bool = True) -> None:
        super().__init__()
        self._half = buckets // 2 if bidirectional else buckets
        self._bidirectional = bidirectional
        exact = self._half // 2
        if exact < 1 or max_distance <= exact:
            raise SpecError(
                f"relative buckets: buckets={buckets}, max_distance={max_distance}; expected at least "
                f"{4 if bidirectional else 2} buckets and a distance above {max(exact, 1)}"
            )
        # First distance of each bucket: integers on every device, where logarithms differ in their last bit.
        self._edges = mx.array(_edges(self._half, max_distance), dtype=mx.int32)
        self.weight = mx.zeros((buckets, heads))

    def __call__(self, distances: mx.array) -> mx.array:
        """(H, n) for distances (n,)."""
        return self.weight[self.buckets(distances)].T

    def buckets(self, distances: mx.array) -> mx.array:
        """Bucket (n,) int32 of each distance (n,)."""
        past = mx.abs(distances) if self._bidirectional else mx.maximum(-distances, 0)
        # The first edge is 1: distance 0 is past none of them.
        bucket = (past[:, None] >= self._edges).sum(axis=1).astype(mx.int32)
        if not self._bidirectional:
            return bucket
        return bucket + mx.where(distances > 0, self._half, 0)


def _edges(count: int, max_distance: int) -> list[int]:
    """The least distance of each of `count` buckets but the first: one each up to half, then ever wider ones.

    In float32 and in the order of transformers' operations, since its edges fall where rounding puts them.
    """
    exact = count // 2
    distances = np.arange(exact, max_distance + 1)
    ratio = np.log(distances.astype(np.float32) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    wide = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int64), count - 1)
    edges = list(range(1, exact + 1))
    for bucket in range(exact + 1, count):
        # A bucket that no distance falls into begins where the next one does.
        reached = distances[wide >= bucket]
        edges.append(int(reached[0]) if len(reached) else max_distance)
    return edges
