"""Measures against plain definitions of them, and what is said of differences."""

import math
from itertools import combinations

import numpy as np
import pytest

from archport.evaluation.measures import average_precision, chance, interval, mean, ndcg, ranks, spearman

DICE = np.random.default_rng(5)


def values(count, ties):
    made = DICE.standard_normal(count)
    return np.round(made, 1) if ties else made


@pytest.mark.parametrize("relevant", [[0], [3], [1, 4, 19], list(range(20))])
def test_ndcg_is_its_sum(relevant):
    scores = values(20, ties=False)
    order = sorted(range(20), key=lambda at: -scores[at])[:10]
    gain = sum(1 / math.log2(place + 2) for place, at in enumerate(order) if at in relevant)
    best = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), 10)))
    assert ndcg(scores, relevant) == pytest.approx(gain / best)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_count_the_smaller_values_and_half_of_the_equal_ones(ties):
    x = values(30, ties)
    expected = [sum(y < each for y in x) + (sum(y == each for y in x) + 1) / 2 for each in x]
    assert ranks(x).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_the_correlation_of_ranks(ties):
    x, y = values(30, ties), values(30, ties)
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])
    assert spearman(x, x**3) == pytest.approx(1)
    assert spearman(np.ones(30), y) == 0


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_its_sum_over_thresholds(ties):
    x, grades = values(40, ties), (DICE.random(40) < 0.4).astype(float)
    total, recall = 0.0, 0.0
    for threshold in sorted(set(x), reverse=True):
        picked = grades[x >= threshold]
        total += picked.mean() * (picked.sum() / grades.sum() - recall)
        recall = picked.sum() / grades.sum()
    assert average_precision(x, grades) == pytest.approx(total)
    assert average_precision(grades, grades) == 1


def test_the_chance_of_a_difference_is_that_of_all_swaps():
    first, second = DICE.random(8), DICE.random(8) + 0.1
    observed = abs(first.mean() - second.mean())
    exact = np.mean([
        abs(np.where(np.isin(range(8), rows), second - first, first - second).mean()) >= observed - 1e-12
        for count in range(9)
        for rows in combinations(range(8), count)
    ])  # fmt: skip
    assert chance(first, second, np.zeros(8), mean, draws=8000) == pytest.approx(exact, abs=0.03)


def test_equal_models_differ_by_chance_and_unequal_ones_do_not():
    grades = DICE.random(60)
    good, noise = grades + 0.1 * DICE.random(60), DICE.random(60)
    assert chance(good, good, grades, spearman, draws=300) == 1
    assert chance(good, noise, grades, spearman, draws=300) < 0.02


def test_an_interval_holds_the_score_and_narrows_with_more_items():
    small, large = DICE.random(20), DICE.random(2000)
    (low, high), (lower, higher) = (interval(each, each, mean, draws=300) for each in (small, large))
    assert low < small.mean() < high
    assert higher - lower < (high - low) / 4
