"""Group rows of different length into padded batches. Knows nothing of arrays, models or devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together.

    Args:
        rows: indices of the rows.
        lengths: their lengths in tokens, in the same order; the longest is the padded length L.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def L(self) -> int:
        return max(self.lengths)

    @property
    def padded_tokens(self) -> int:
        return self.L * len(self.rows)


def group_rows(lengths: Sequence[int], *, token_budget: int, max_rows: int) -> tuple[Batch, ...]:
    """Batches of rows sorted by length, longest first, so that a batch holds little padding.

    Args:
        lengths: tokens of each row, all >= 1.
        token_budget: padded tokens per batch; a row longer than this is a batch by itself.
        max_rows: rows per batch.

    Returns:
        Every row exactly once. The longest come first: memory peaks at the start, where a failure costs least.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        L = lengths[order[start]]
        count = max(1, min(max_rows, token_budget // L))
        rows = order[start : start + count]
        batches.append(Batch(tuple(rows), tuple(lengths[row] for row in rows)))
        start += count
    return tuple(batches)
