"""A bias by distance, asked for once per call and spread over the queries and keys of one tile at a time.

What a rule answers for all distances of a call is one line per head, so it grows with the tokens and not with their
square. Knows nothing of masks or backends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from archport.attention import masks
from archport.attention.visibility import Visibility
from archport.contract.attention import AttentionCall, DistanceBias
from archport.contract.errors import InputError

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Line:
    """A rule's numbers at every distance that occurs in a call.

    Args:
        values: (H, n).
        first: distance of the first column.
    """

    values: mx.array
    first: int

    def of_heads(self, heads: slice) -> Line:
        """The same for some query heads."""
        return replace(self, values=self.values[heads])

    def tile(self, seen: Visibility, a: int, b: int, lo: int, hi: int) -> mx.array:
        """The numbers (1 or B, H, b - a, hi - lo) of queries [a, b) and keys [lo, hi); a view where rows lie alike."""
        import mlx.core as mx

        heads, n = self.values.shape
        rows = [
            # One step down is one distance less.
            mx.as_strided(self.values, (1, heads, b - a, hi - lo), (0, n, -1, 1), lo - (offset + a) - self.first)
            for offset in seen.offsets
        ]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows)


def line_of(call: AttentionCall, seen: Visibility, rule: DistanceBias | None, dtype: mx.Dtype) -> Line | None:
    """What a rule says of a call, in `dtype`; shared by the layers of one step that are handed one rule.

    Raises:
        InputError: the rule's answer is not one number per head and distance.
    """
    if rule is None:
        return None
    import mlx.core as mx

    first = -(max(seen.offsets) + call.q_len - 1)
    last = call.kv_len - 1 - min(seen.offsets)

    def make() -> mx.array:
        values = rule(mx.arange(first, last + 1, dtype=mx.int32))
        wanted = (call.n_heads, last + 1 - first)
        if tuple(values.shape) != wanted:
            raise InputError(
                f"attention bias: {wanted[1]} distances gave numbers of shape {tuple(values.shape)}; expected one row "
                f"per query head, {wanted}"
            )
        # Contiguous, since a tile counts its strides; and no -inf, which a hidden key may have added to.
        return mx.contiguous(mx.maximum(values, masks.lowest(dtype)).astype(dtype))

    return Line(masks.known((_Same(rule), first, last, dtype), make), first)


def score_dtype(call: AttentionCall, dtype: mx.Dtype) -> mx.Dtype:
    """Element type in which a bias meets the scores of a call with queries in `dtype`."""
    import mlx.core as mx

    return dtype if call.softcap is None else mx.float32


class _Same:
    """One rule as a key: by identity, since rules need not be hashable, and held, so that no other takes its place."""

    def __init__(self, rule: DistanceBias) -> None:
        self._rule = rule

    def __hash__(self) -> int:
        return id(self._rule)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._rule is self._rule
