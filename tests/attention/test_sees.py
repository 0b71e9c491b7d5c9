"""What a query sees has one definition, by predicates that combine; every mask policy is held against it.

A predicate says of (row, query position, key position) whether the key is seen, in the manner of transformers' mask
functions. A case states its predicate once, and each policy that is right for the case has to compute just that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from archport.attention import Chooser, attend
from archport.attention.backends.builtin import builtin_backends
from archport.contract import AttentionLayer, MaskPolicy
from archport.contract.attention import AttentionCall
from archport.contract.masks import mask_policies
from archport.device.facts import host_device

SCALE = 0.3


@dataclass(frozen=True)
class Sees:
    """A predicate on arrays of (row, query position, key position); `&` and `|` combine two."""

    of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def __and__(self, other: Sees) -> Sees:
        return Sees(lambda row, q, k: self.of(row, q, k) & other.of(row, q, k))

    def __or__(self, other: Sees) -> Sees:
        return Sees(lambda row, q, k: self.of(row, q, k) | other.of(row, q, k))

    def array(self, B: int, q_len: int, kv_len: int) -> np.ndarray:
        """Bool (B, 1, q_len, kv_len); the last query stands at the last key."""
        row, q, k = np.ogrid[:B, kv_len - q_len : kv_len, :kv_len]
        return np.broadcast_to(self.of(row, q, k), (B, q_len, kv_len))[:, None]


everything = Sees(lambda row, q, k: np.array(True))
causal = Sees(lambda row, q, k: k <= q)


def window(left: int | None, right: int | None) -> Sees:
    """So many keys on either side; None: all of that side."""
    return Sees(
        lambda row, q, k: ((left is None) | (k >= q - (left or 0))) & ((right is None) | (k <= q + (right or 0)))
    )


def chunks(size: int) -> Sees:
    """Keys of the query's own chunk."""
    return Sees(lambda row, q, k: q // size == k // size)


def lengths(real: Sequence[int]) -> Sees:
    """Keys before the end of their row."""
    return Sees(lambda row, q, k: k < np.array(real)[row])


def documents(sizes: Sequence[int]) -> Sees:
    """Keys of the query's own document, where documents follow one another in a row."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return Sees(lambda row, q, k: owner[q] == owner[k])


def spans(stretches: Sequence[tuple[int, int]]) -> Sees:
    """Keys of the query's own stretch, whichever comes first."""
    return Sees(lambda row, q, k: np.any([(a <= q) & (q < b) & (a <= k) & (k < b) for a, b in stretches], axis=0))


@dataclass(frozen=True)
class Case:
    """A layer in a step, and what it sees there.

    Args:
        lengths: real tokens per row, or per document of a packed row.
    """

    layer: AttentionLayer
    sees: Sees
    q_len: int
    kv_len: int
    B: int = 1
    lengths: tuple[int, ...] = ()
    packed: bool = False
    spans: tuple[tuple[int, int], ...] = ()

    def policies(self) -> tuple[MaskPolicy, ...]:
        ragged = bool(self.lengths) and not self.packed
        numbers = {"ragged": ragged, "packed": self.packed, "spans": bool(self.spans)}
        right = mask_policies(self.layer, q_len=self.q_len, kv_len=self.kv_len, **numbers)
        # A dense mask carries everything but where documents begin.
        return right if self.packed else (*right, MaskPolicy("dense", "asked for"))


def layer(semantics: str, *, reach: tuple[int | None, int | None] = (None, None), **more: object) -> AttentionLayer:
    fields = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "reach": reach, **more}
    return AttentionLayer(semantics, **fields)


def drawn(rng: np.random.Generator) -> Iterator[tuple[str, Case]]:
    """One case of every kind, by its name."""
    S = int(rng.integers(9, 60))
    L, left, right = int(rng.integers(2, S)), int(rng.integers(0, S)), int(rng.integers(0, S))
    real = (S, int(rng.integers(1, S)), int(rng.integers(1, S)))
    yield "causal", Case(layer("causal"), causal, L, S, B=2)
    yield "one query", Case(layer("causal"), causal, 1, S, B=2)
    yield "causal window", Case(layer("causal", reach=(left, 0)), causal & window(left, 0), L, S, B=2)
    yield "causal chunks", Case(layer("causal", chunk=left + 1), causal & chunks(left + 1), L, S)
    yield "both sides", Case(layer("bidirectional"), everything, S, S, B=2)
    two = layer("bidirectional", reach=(left, right))
    yield "a window on both sides", Case(two, window(left, right), S, S)
    yield "ragged", Case(layer("bidirectional"), lengths(real), S, S, B=3, lengths=real)
    yield "ragged in a window", Case(two, window(left, right) & lengths(real), S, S, B=3, lengths=real)
    sizes = (5, S - 8, 3)
    yield "packed", Case(layer("bidirectional"), documents(sizes), S, S, lengths=sizes, packed=True)
    yield "packed in a window", Case(two, documents(sizes) & window(left, right), S, S, lengths=sizes, packed=True)
    yield "packed, causal", Case(layer("causal"), documents(sizes) & causal, S, S, lengths=sizes, packed=True)
    some = ((1, 4), (5, S - 2))
    seen = causal | spans(some)
    yield "spans", Case(layer("causal", spans=True), seen, S, S, spans=some)
    near = layer("causal", reach=(left, 0), spans=True)
    yield "spans in a window", Case(near, seen & window(left, None), S, S, spans=some)


def excess(case: Case, policy: MaskPolicy, seed: int) -> float:
    """How far a policy's output lies from float64 attention under the case's predicate, over real rows."""
    rng = np.random.default_rng(seed)
    shapes = [(case.B, 2, case.q_len, 16), *[(case.B, 1, case.kv_len, 16)] * 2]
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    device = host_device()
    call = AttentionCall.of(
        case.layer, policy, device, B=case.B, q_len=case.q_len, kv_len=case.kv_len, dtype="float32",
        lengths=case.lengths, spans=(case.spans,) if case.spans else (),
    )  # fmt: skip
    path = Chooser(tuple(builtin_backends()))(call, device)
    out = np.array(attend(path, *map(mx.array, (q, k, v)), scale=SCALE))
    shown = case.sees.array(case.B, case.q_len, case.kv_len)
    scores = np.where(shown, q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3) * SCALE, -1e30)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True) @ v
    real = case.lengths if case.lengths and not case.packed else (case.q_len,) * case.B
    return max(float(np.abs(out - expected)[row, :, :tokens].max()) for row, tokens in enumerate(real))


def wrong(seed: int) -> list[str]:
    """Policies that compute something else than their case's predicate, over one case of every kind."""
    return [
        f"{name}: {policy.kind}"
        for name, case in drawn(np.random.default_rng(seed))
        for policy in case.policies()
        if excess(case, policy, seed) > 1e-4
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("error")
def test_every_policy_of_a_case_sees_what_its_predicate_says(seed: int):
    assert wrong(seed) == []


@pytest.mark.truth
def test_every_policy_of_many_cases_sees_what_its_predicate_says():
    assert {seed: found for seed in range(4, 300) if (found := wrong(seed))} == {}


def test_a_policy_that_shows_a_key_too_many_is_told():
    case = Case(layer("causal", reach=(3, 0)), causal & window(2, 0), 20, 20)
    assert all(excess(case, policy, 0) > 1e-3 for policy in case.policies())


def test_every_kind_of_policy_is_among_the_cases():
    kinds = {policy.kind for _, case in drawn(np.random.default_rng(0)) for policy in case.policies()}
    assert kinds == {"none", "causal", "window", "documents", "key_padding", "dense"}
