"""Golden tier: a model with real weights, named by the caller. Its vectors again, in other batches, and as stored."""

from __future__ import annotations

import numpy as np

from archport.testing.check import check, fail, skip
from archport.testing.subject import Golden

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Memory is planned before it is allocated.",
    "query",
    "A much longer text that shares its batch with short ones, so that rows are padded, sorted and put back in order. "
    * 4,
]
ALIKE = 0.9999


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@check("golden")
def golden_vectors_repeat(g: Golden) -> str:
    """Real weights give finite vectors, the same ones again.

    See what the tiny tier's `deterministic` says; then look at what only real weights reach: large activations.
    """
    first = g.model.embed(TEXTS)
    if not np.isfinite(first).all():
        fail("a vector holds NaN or infinity")
    difference = float(np.abs(g.model.embed(TEXTS) - first).max())
    if difference:
        fail(f"{len(TEXTS)} texts embedded again differ by {difference:.2g} (limit 0)")
    return f"{len(TEXTS)} texts of {first.shape[1]} dimensions: equal"


@check("golden")
def golden_batch_invariance(g: Golden) -> str:
    """With real weights a text has the same vector alone and among others, in any order.

    See what the tiny tier's `row_alone_equals_row_in_batch` says.
    """
    together = g.model.embed(TEXTS)
    alone = np.concatenate([g.model.embed(text) for text in TEXTS])
    reverse = g.model.embed(TEXTS[::-1])[::-1]
    worst = float(min(_cosines(together, alone).min(), _cosines(together, reverse).min()))
    if worst < ALIKE:
        fail(f"a vector alone has cosine {worst:.6f} (limit {ALIKE}) with its own in a batch of {len(TEXTS)}")
    return f"cosine {worst:.6f}"


@check("golden")
def golden_vectors_match(g: Golden) -> str:
    """Real weights give the vectors that were stored earlier, from this or from the reference implementation.

    Find the first stage that differs: token ids, hidden states, pooling, scaling.
    """
    if g.stored is None:
        skip("no stored vectors were given (`--vectors FILE.npz`)")
    texts, want = g.stored
    got = g.model.embed(texts)
    if got.shape != want.shape:
        fail(f"vectors are {got.shape}, stored are {want.shape}")
    cosines = _cosines(got, want)
    if cosines.min() < ALIKE:
        fail(f"text {int(cosines.argmin())} has cosine {cosines.min():.6f} with its stored vector (limit {ALIKE})")
    return f"{len(texts)} texts, cosine {cosines.min():.6f}"
