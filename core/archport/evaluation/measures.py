"""Numbers for answers: nDCG, Spearman's rank correlation, average precision; intervals, and what luck would make.

Knows arrays of scores; no model and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# A measure of some items' values, given what people say of these items.
Measure = Callable[[np.ndarray, np.ndarray], float]
_SEED = 0


def ndcg(scores: np.ndarray, relevant: Sequence[int], depth: int = 10) -> float:
    """nDCG of a ranking by scores (N,), higher ones first and equal ones in their order, down to a depth.

    Args:
        relevant: indices that count, each alike.
    """
    order = np.argsort(-scores, kind="stable")[:depth]
    gains = np.isin(order, relevant) / np.log2(np.arange(2, len(order) + 2))
    best = (1 / np.log2(np.arange(2, min(len(relevant), depth) + 2))).sum()
    return float(gains.sum() / best)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (N,) from 1, equal values sharing the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def mean(values: np.ndarray, grades: np.ndarray) -> float:
    """The mean of values that are measures themselves."""
    return float(values.mean())


def spearman(values: np.ndarray, grades: np.ndarray) -> float:
    """Spearman's rank correlation of values with grades; 0 where one of them is constant."""
    x, y = ranks(values) - (len(values) + 1) / 2, ranks(grades) - (len(values) + 1) / 2
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale else 0.0


def average_precision(values: np.ndarray, grades: np.ndarray) -> float:
    """Average precision of values for grades of 1 and 0, equal values taken together; 0 without a 1."""
    order = np.argsort(-values, kind="stable")
    hits, total = grades[order] > 0, (grades > 0).sum()
    if not total:
        return 0.0
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    right = np.cumsum(hits)[ends]
    return float((np.diff(right, prepend=0) * right / (ends + 1)).sum() / total)


def interval(values: np.ndarray, grades: np.ndarray, measure: Measure, draws: int = 2000) -> tuple[float, float]:
    """The middle 95 percent of a measure over items drawn with replacement, always the same ones."""
    dice, count = np.random.default_rng(_SEED), len(values)
    made = [measure(values[rows], grades[rows]) for rows in dice.integers(0, count, size=(draws, count))]
    low, high = np.quantile(made, [0.025, 0.975])
    return float(low), float(high)


def chance(first: np.ndarray, second: np.ndarray, grades: np.ndarray, measure: Measure, draws: int = 2000) -> float:
    """How often two models that were equally good would differ as much: their values swapped at random, item by item.

    Args:
        first, second: of the same items, on one scale.

    Returns:
        The share of draws, the observed one among them, so that it is never 0.
    """
    observed = abs(measure(first, grades) - measure(second, grades))
    dice, count = np.random.default_rng(_SEED), 1
    for swapped in dice.random((draws, len(first))) < 0.5:
        one, other = np.where(swapped, second, first), np.where(swapped, first, second)
        count += abs(measure(one, grades) - measure(other, grades)) >= observed - 1e-12
    return float(count / (draws + 1))
