"""Late interaction: how well the vectors of a query's tokens find their like among a document's. Pure numpy.

Documents lie one behind another and are reduced by their own lengths, so no padding exists that could count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archport.contract import InputError
from archport.contract.arguments import as_array

# Scores held at a time.
_MOST = 1 << 24


def maxsim(query: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """MaxSim (N,) float32 of a query (n, D) with documents (m_i, D): for each of its rows the best dot product, summed.

    Raises:
        InputError: for arrays of other shapes or widths, or without rows.
    """
    query = _rows(query, "the query")
    checked = [_rows(each, f"document {index}") for index, each in enumerate(documents)]
    for index, each in enumerate(checked):
        if each.shape[1] != query.shape[1]:
            raise InputError(
                f"document {index} has vectors of width {each.shape[1]}; the query's have {query.shape[1]}"
            )
    found = np.zeros(len(checked), np.float32)
    first = 0
    while first < len(checked):
        last, width = first + 1, len(checked[first])
        while last < len(checked) and (width + len(checked[last])) * len(query) <= _MOST:
            width, last = width + len(checked[last]), last + 1
        scores = query @ np.concatenate(checked[first:last]).T
        starts = np.cumsum([0, *(len(each) for each in checked[first : last - 1])])
        found[first:last] = np.maximum.reduceat(scores, starts, axis=1).sum(axis=0)
        first = last
    return found


def _rows(value: object, what: str) -> np.ndarray:
    array = as_array(value, what)
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{what} has shape {array.shape} and type {array.dtype}; expected floats (tokens, D), both at least 1"
        )
    return array.astype(np.float32, copy=False)
