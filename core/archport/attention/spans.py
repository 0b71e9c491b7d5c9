"""Which span each query and key of a tile is in, as numbers to compare. Knows nothing of masks or of a device."""

from __future__ import annotations

import numpy as np

from archport.attention.visibility import Visibility

# Of queries and of keys outside of all spans; they differ, so that none of them equal each other.
NO_QUERY, NO_KEY = -1, -2


def numbered(seen: Visibility, a: int, b: int, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, b - a) and (R, hi - lo) int32: the number of each query's and key's span in its row.

    R is 1 where all rows lie alike, else their number. A query and a key of one row are in one span where both have
    the same number.
    """
    rows = max(len(seen.offsets), len(seen.spans))
    queries = np.full((rows, b - a), NO_QUERY, np.int32)
    keys = np.full((rows, hi - lo), NO_KEY, np.int32)
    for row in range(rows):
        first = seen.offsets[row if len(seen.offsets) > 1 else 0] + a
        for number, (start, stop) in enumerate(seen.spans[row if len(seen.spans) > 1 else 0]):
            if stop <= first or start >= first + b - a:
                continue
            queries[row, max(0, start - first) : max(0, stop - first)] = number
            keys[row, max(0, start - lo) : max(0, stop - lo)] = number
    return queries, keys
