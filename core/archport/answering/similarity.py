"""Compare vectors. Larger is always more similar. Knows nothing of how vectors were made."""

from __future__ import annotations

import numpy as np

from archport.contract import InputError
from archport.contract.arguments import as_array
from archport.contract.heads import Similarity


def similarity(a: np.ndarray, b: np.ndarray, kind: Similarity) -> np.ndarray:
    """Similarity (N, M) of rows a (N, D) and b (M, D); distances are negated.

    Raises:
        InputError: for shapes that do not match, or vectors that are not floats.
    """
    x, y = np.atleast_2d(as_array(a, "a")), np.atleast_2d(as_array(b, "b"))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"vectors of shapes {x.shape} and {y.shape}; expected (N, D) and (M, D) of one width")
    for array in (x, y):
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"vectors of {array.dtype}; expected float vectors, before quantisation")
    if kind == "dot":
        return x @ y.T
    if kind == "cosine":
        return _unit(x) @ _unit(y).T
    if kind == "manhattan":
        return -np.stack([np.abs(row - y).sum(axis=1) for row in x]) if len(x) else np.zeros((0, len(y)), x.dtype)
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * (x @ y.T)
    return -np.sqrt(np.maximum(squared, 0))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def similarity_pairwise(a: np.ndarray, b: np.ndarray, kind: Similarity) -> np.ndarray:
    """Similarity (N,) of each row of a (N, D) with that row of b (N, D); raises as `similarity` does."""
    x, y = np.atleast_2d(as_array(a, "a")), np.atleast_2d(as_array(b, "b"))
    if x.shape != y.shape:
        raise InputError(f"vectors of shapes {x.shape} and {y.shape}; expected two of one shape (N, D)")
    return np.array([similarity(x[at], y[at], kind)[0, 0] for at in range(len(x))], x.dtype)
