"""Tiny tier: element types. Values stay finite and close in 16 bits."""

from __future__ import annotations

from typing import get_args

import numpy as np

from archport.contract import DType, InputError
from archport.engine import Model
from archport.testing.check import check, fail
from archport.testing.checks.batches import padded
from archport.testing.measure import as_array
from archport.testing.routes import agreeing, noted
from archport.testing.subject import Tiny

# Cosine between a 16-bit vector and its float32 counterpart.
CLOSE = {"float16": 0.999, "bfloat16": 0.99}
TEXTS = ["abc", "a longer text"]
# Share of tokens that visit the same experts in 16 bits; experts of random weights are nearly tied for some.
AGREE = 0.75


@check("tiny", hook="archport_claim")
def half_precision_is_finite(t: Tiny) -> str:
    """In float16 and bfloat16 every hidden state and vector is finite and close to float32, padding included.

    Widen what overflows (norms, softmax, large products) or declare the type in `dtypes_refused` with the reason. With
    experts the tokens are compared that visit the same ones in both types: nearly tied ones may turn.
    """
    rows = [t.tokens(t.length(length), seed) for seed, length in enumerate((32, 9, 1))]
    told: list[str] = []
    for dtype in get_args(DType):
        if dtype == "float32":
            continue
        if dtype in t.spec.dtypes_refused:
            try:
                t.load(t.folder, dtype=dtype)
            except InputError:
                told.append(f"{dtype} refused as declared")
                continue
            fail(f"{dtype} is declared refused and loads all the same")
        model = t.load(t.folder, dtype=dtype)
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {
            f"a hidden state, padded {side},": (
                as_array(model.forward(*padded(rows, side))),
                as_array(t.model.forward(*padded(rows, side))),
            )
            for side in ("left", "right")
        }
        for name, (got, _) in found.items():
            if not np.isfinite(got).all():
                bad = int((~np.isfinite(got)).any(axis=(1, 2)).argmax())
                fail(f"{dtype}: row {bad} of {len(rows[bad])} tokens holds NaN or infinity ({name})")
        found["a vector"] = t.answers(TEXTS, model), t.answers(TEXTS)
        if not np.isfinite(found["a vector"][0]).all():
            fail(f"{dtype}: a vector holds NaN or infinity")
        routes = ""
        if t.spec.experts is not None:
            share, got, want = _of_one_route(t, model, [*rows, *(t.tokens(1, seed) for seed in range(3, 27))])
            routes = f" of the {share:.0%} that visit the same experts"
            if share < AGREE:
                fail(f"{dtype}: {share:.0%} of tokens visit the experts that they visit in float32 (limit {AGREE:.0%})")
            found = {"a hidden state": (got, want)}
        worst = {name: _cosine(got, want) for name, (got, want) in found.items()}
        for name, cosine in worst.items():
            if cosine < CLOSE[dtype]:
                fail(f"{dtype}: {name} has cosine {cosine:.5f} with float32 (limit {CLOSE[dtype]}){routes}")
        told.append(f"{dtype} cosine {min(worst.values()):.5f}{routes}")
    return ", ".join(told)


def _of_one_route(t: Tiny, model: Model, rows: list[np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
    """(share of tokens that visit the same experts in both, states in 16 bits, in float32) of rows run alone.

    The states are of tokens that, like all that they see, visit the same experts in both.
    """
    shares: list[np.ndarray] = []
    states: list[tuple[np.ndarray, np.ndarray]] = []
    for row in rows:
        with noted() as first:
            want = as_array(t.model.forward(row[None]))[0]
        with noted() as second:
            got = as_array(model.forward(row[None]))[0]
        same = agreeing(first, second, len(row), t.spec.experts.per_token if t.spec.experts else 1)
        shares.append(same)
        undisturbed = np.logical_and.accumulate(same)
        if t.spec.semantics != "causal":
            undisturbed &= same.all()
        states.append((got[undisturbed], want[undisturbed]))
    got, want = (np.concatenate(each) for each in zip(*states, strict=True))
    return float(np.concatenate(shares).mean()), got, want


def _cosine(got: np.ndarray, want: np.ndarray) -> float:
    """The smallest cosine of two stacks of rows; rows that are zero in both are padding."""
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1)
    real = np.linalg.norm(want, axis=-1) > 0
    if not real.any():
        return 1.0
    return float(((got * want).sum(axis=-1)[real] / np.maximum(norms[real], 1e-30)).min())
