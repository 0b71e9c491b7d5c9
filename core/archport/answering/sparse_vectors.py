"""Sparse vectors: how they are held, handed out, cut to their largest weights and compared. Runs no model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archport.contract import InputError
from archport.contract.arguments import as_array
from archport.contract.heads import Similarity

# A row: ascending ids int32, and their weights float32.
SparseRow = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """Weights of a few of many words, a row after another (CSR), where scipy is not installed.

    Args:
        indices, values: ids of the vocabulary int32, ascending in a row, and their weights float32.
        indptr: (N + 1,) int64, where each row begins and the last one ends.
        width: entries of the vocabulary.
    """

    indices: np.ndarray
    values: np.ndarray
    indptr: np.ndarray
    width: int

    @classmethod
    def of(cls, rows: Sequence[SparseRow], width: int) -> SparseVectors:
        """Rows put together."""
        ends = np.cumsum([0, *(len(ids) for ids, _ in rows)], dtype=np.int64)
        indices = np.concatenate([ids for ids, _ in rows]) if rows else np.zeros(0)
        values = np.concatenate([weights for _, weights in rows]) if rows else np.zeros(0)
        return cls(indices.astype(np.int32, copy=False), values.astype(np.float32, copy=False), ends, width)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.width

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def row(self, index: int) -> SparseRow:
        """(ids, weights) of a row."""
        first, last = self.indptr[index : index + 2]
        return self.indices[first:last], self.values[first:last]


def handed_out(rows: Sequence[SparseRow], width: int) -> Any:
    """Rows as a caller gets them: `scipy.sparse.csr_array` (N, width) float32 with scipy, else SparseVectors."""
    found = SparseVectors.of(rows, width)
    if importlib.util.find_spec("scipy") is None:
        return found
    sparse: Any = importlib.import_module("scipy.sparse")
    return sparse.csr_array((found.values, found.indices, found.indptr), shape=found.shape)


def is_sparse(vectors: object) -> bool:
    """Whether these are sparse vectors, ours or scipy's; imports no scipy."""
    return isinstance(vectors, SparseVectors) or type(vectors).__module__.startswith("scipy.sparse")


def taken_in(vectors: Any, what: str) -> SparseVectors:
    """Vectors that a caller hands over: what `embed` gave, any sparse array of scipy, or floats (N, V) or (V,).

    Raises:
        InputError: for anything else.
    """
    if isinstance(vectors, SparseVectors):
        return vectors
    if is_sparse(vectors):
        rows = vectors.tocsr().sorted_indices()
        return SparseVectors(rows.indices, rows.data, rows.indptr.astype(np.int64), int(rows.shape[-1]))
    array = np.atleast_2d(as_array(vectors, what))
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{what} has shape {array.shape} and type {array.dtype}; expected sparse vectors of embed, a sparse array "
            "of scipy, or floats (N, V)"
        )
    # A table's weights may be below zero.
    rows = [(np.flatnonzero(row), row[np.flatnonzero(row)]) for row in array]
    return SparseVectors.of(rows, array.shape[1])


def nonzero(row: np.ndarray) -> SparseRow:
    """What is above zero in weights (V,), and what is no number, for whoever looks for that."""
    (ids,) = np.nonzero(~(row <= 0))
    return ids.astype(np.int32), row[ids].astype(np.float32, copy=False)


def largest(row: SparseRow, top_k: int | None) -> SparseRow:
    """The weights of a row that are furthest from zero, still by ascending id; of equal ones those of lower ids."""
    ids, weights = row
    if top_k is None or len(ids) <= top_k:
        return row
    kept = np.sort(np.argsort(-np.abs(weights), kind="stable")[:top_k])
    return ids[kept], weights[kept]


def sparse_similarity(a: Any, b: Any, kind: Similarity) -> np.ndarray:
    """Similarity (N, M) float32 of sparse vectors a (N, V) and b (M, V), in the memory of one dense row at a time.

    Raises:
        InputError: for widths that differ.
    """
    x, y = taken_in(a, "a"), taken_in(b, "b")
    if x.width != y.width:
        raise InputError(f"vectors of widths {x.width} and {y.width}; expected those of one vocabulary")
    found = np.zeros((len(x), len(y)), np.float32)
    owners = np.repeat(np.arange(len(y)), np.diff(y.indptr))
    squares = np.bincount(owners, y.values.astype(np.float64) ** 2, len(y))
    dense = np.zeros(x.width, np.float64)
    for at in range(len(x)):
        ids, weights = x.row(at)
        dense[ids] = weights
        if kind == "manhattan":
            # What is nowhere in the other row counts whole.
            differences = np.abs(dense[y.indices] - y.values) - np.abs(dense[y.indices])
            found[at] = -(np.bincount(owners, differences, len(y)) + np.abs(weights).sum(dtype=np.float64))
        else:
            products = np.bincount(owners, dense[y.indices] * y.values, len(y))
            own = float(np.square(weights, dtype=np.float64).sum())
            if kind == "cosine":
                products = products / np.maximum(np.sqrt(squares * own), 1e-12)
            elif kind == "euclidean":
                products = -np.sqrt(np.maximum(squares + own - 2 * products, 0))
            found[at] = products
        dense[ids] = 0
    return found


def words(vectors: Any, name: Any, top_k: int | None) -> list[list[tuple[str, float]]]:
    """Per row (token, weight), the largest weight first and of equal ones the lower id.

    Args:
        name: an id to its token.
    """
    if top_k is not None and top_k < 1:
        raise InputError(f"{top_k=}; expected a number >= 1, or None for all")
    given = taken_in(vectors, "vectors")
    found: list[list[tuple[str, float]]] = []
    for at in range(len(given)):
        ids, weights = given.row(at)
        order = np.argsort(-weights, kind="stable")[:top_k]
        found.append([(name(int(ids[i])), float(weights[i])) for i in order])
    return found
