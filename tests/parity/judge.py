"""Whether an answer is the reference's: rounding is judged by the reference's own response to noise of one ulp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .answers import Answer
from .quantised import SAVES

Verdict = Literal["equal", "refused", "wrong", "skipped", "undecided"]
# How many times the reference's own response may be reached: it adds in other orders everywhere, the noise is one step.
FACTOR = 8.0
# Of an array's largest number; what two correct float32 programs differ by where noise hardly shows.
FLOOR = 4e-6
# A response of this size, of an array's largest number, decides nothing: a router or an order of tokens is a coin toss.
CHAOS = 1e-3


@dataclass(frozen=True, slots=True)
class Judgement:
    """Args: verdict; why: the worst difference and where, or the refusal."""

    verdict: Verdict
    why: str = ""


def judge(expected: Mapping[str, np.ndarray], answer: Answer) -> Judgement:
    """The verdict on what archport answered to one draw."""
    if answer.refusal is not None:
        return Judgement("wrong" if answer.bare else "refused", answer.refusal)
    worst, where, limit_there = 0.0, "", 0.0
    for (how, name), found in answer.arrays.items():
        if name == "tokens" or name not in expected:
            continue
        want = answer.quantised[name] if how.startswith(tuple(SAVES)) else expected[name]
        scale = float(np.abs(want).max()) or 1.0
        noise = float(expected[f"noise_{name}"]) / scale
        if noise > CHAOS:
            return Judgement("undecided", f"{name}: one ulp moves the reference by {noise:.1e}")
        limit = max(FLOOR, FACTOR * noise)
        if found.shape != want.shape:
            return Judgement("wrong", f"{how}, {name}: shape {found.shape}, expected {want.shape}")
        off = float(np.abs(found - want).max()) / scale
        off = off if np.isfinite(off) else np.inf
        if off / limit > worst:
            worst, where, limit_there = off / limit, f"{how}, {name}: off by {off:.1e} of its largest", limit
    if worst > 1:
        return Judgement("wrong", f"{where}; allowed {limit_there:.1e}")
    for (how, name), found in answer.arrays.items():
        if name == "tokens" and (why := _tokens(expected, found)):
            return Judgement("wrong", f"{how}: {why}")
    return Judgement("equal", f"{worst:.2f} of what rounding may be")


def _tokens(expected: Mapping[str, np.ndarray], found: np.ndarray) -> str:
    """Where greedy tokens part from the reference's although it was sure; "" where they do not."""
    want, gaps = expected["tokens"], expected["gaps"]
    scale = max(float(np.abs(expected[name]).max()) for name in expected if name.startswith("logits_"))
    noise = max(float(expected[name]) for name in expected if name.startswith("noise_logits_"))
    unsure = np.flatnonzero(gaps < 2 * max(FACTOR * noise, FLOOR * scale))
    sure = int(unsure[0]) if len(unsure) else len(want)
    if len(found) < sure or (found[:sure] != want[:sure]).any():
        return f"tokens {found[:sure].tolist()}, expected {want[:sure].tolist()}"
    return ""
