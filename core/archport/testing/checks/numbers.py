"""Tiny tier: element types. Values stay finite and close in 16 bits."""

from __future__ import annotations

from typing import get_args

import numpy as np

from archport.contract import DType, InputError
from archport.testing.check import check, fail
from archport.testing.checks.batches import padded
from archport.testing.measure import as_array
from archport.testing.subject import Tiny

# Cosine between a 16-bit vector and its float32 counterpart.
CLOSE = {"float16": 0.999, "bfloat16": 0.99}


@check("tiny", hook="archport_claim")
def half_precision_is_finite(t: Tiny) -> str:
    """In float16 and bfloat16 every hidden state and vector is finite and close to float32, padding included.

    Widen what overflows (norms, softmax, large products) or declare the type in `dtypes_refused` with the reason.
    """
    rows = [t.tokens(t.length(length), seed) for seed, length in enumerate((32, 9, 1))]
    told: list[str] = []
    wanted = {side: as_array(t.model.forward(*padded(rows, side))) for side in ("left", "right")}
    vectors = t.answers(["abc", "a longer text"])
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
        for side, want in wanted.items():
            got = as_array(model.forward(*padded(rows, side)))
            if not np.isfinite(got).all():
                bad = int((~np.isfinite(got)).any(axis=(1, 2)).argmax())
                fail(f"{dtype}: row {bad} of {len(rows[bad])} tokens, padded on the {side}, holds NaN or infinity")
            worst = _cosine(got, want)
            if worst < CLOSE[dtype]:
                fail(
                    f"{dtype}: a hidden state has cosine {worst:.5f} with float32 (limit {CLOSE[dtype]}), padded {side}"
                )
        worst = min(worst, _cosine(t.answers(["abc", "a longer text"], model), vectors))  # pyright: ignore[reportPossiblyUnboundVariable]
        if worst < CLOSE[dtype]:
            fail(f"{dtype}: a vector has cosine {worst:.5f} with float32 (limit {CLOSE[dtype]})")
        told.append(f"{dtype} cosine {worst:.5f}")
    return ", ".join(told)


def _cosine(got: np.ndarray, want: np.ndarray) -> float:
    """The smallest cosine of two stacks of rows; rows that are zero in both are padding."""
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1)
    real = np.linalg.norm(want, axis=-1) > 0
    return float(((got * want).sum(axis=-1)[real] / np.maximum(norms[real], 1e-30)).min())
