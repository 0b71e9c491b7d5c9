"""What is done to logits before a token is taken: against numpy in float64, and whatever other rows ask for."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import mlx.core as mx
import numpy as np
import pytest

from archport.generating.adjusting import Adjusting, Adjustment
from archport.generating.sampling import Sampler, Sampling

V = 60


def drawn_row(rng: np.random.Generator) -> Adjustment:
    """An adjustment of random kinds and values, which may be none."""
    some = rng.random(5) < 0.6
    tokens = rng.choice(V, rng.integers(1, 9), replace=False)
    bias = tuple((int(token), float(rng.uniform(-100, 100))) for token in tokens)
    ends = frozenset(rng.choice(V, rng.integers(0, 5), replace=False).tolist())
    return Adjustment(
        float(rng.uniform(0.3, 3)) if some[0] else 1.0,
        float(rng.uniform(-2, 2)) if some[1] else 0.0,
        float(rng.uniform(-2, 2)) if some[2] else 0.0,
        bias if some[3] else (),
        ends,
        int(rng.integers(0, 6)) if some[4] else 0,
    )


def wanted(row: Adjustment, logits: np.ndarray, prompt: list[int], text: list[int]) -> np.ndarray:
    """The definition, token by token, in float64."""
    out = logits.astype(np.float64)
    for token, bias in row.bias:
        out[token] += bias
    if len(text) < row.least:
        out[list(row.ends)] = -np.inf
    for token in set(prompt) | set(text):
        out[token] *= row.repetition if out[token] < 0 else 1 / row.repetition
    for token in text:
        out[token] -= row.frequency
    for token in set(text):
        out[token] -= row.presence
    return out


def check(seed: int) -> None:
    """Six rows that ask for different things, some of which leave on the way."""
    rng = np.random.default_rng(seed)
    rows = [drawn_row(rng) for _ in range(6)]
    prompts = [rng.integers(0, V, rng.integers(1, 12)).tolist() for _ in rows]
    texts: list[list[int]] = [[] for _ in rows]
    adjusting, staying = Adjusting(rows, V, [np.array(prompt) for prompt in prompts]), list(range(6))
    for step in range(10):
        logits = (rng.normal(size=(len(staying), V)) * 5).astype(np.float32)
        found = np.array(adjusting(mx.array(logits)))
        for place, row in enumerate(staying):
            want = wanted(rows[row], logits[place], prompts[row], texts[row])
            np.testing.assert_allclose(found[place], want, rtol=1e-6, atol=2e-5)
        tokens = rng.integers(0, 9, len(staying))
        adjusting.add(mx.array(tokens))
        for row, token in zip(staying, tokens.tolist(), strict=True):
            texts[row].append(token)
        if step in (3, 6):
            kept = sorted(rng.choice(len(staying), len(staying) - 2, replace=False).tolist())
            adjusting.keep_rows(kept)
            staying = [staying[place] for place in kept]


@pytest.mark.parametrize("seed", range(6))
def test_every_row_is_adjusted_as_it_is_defined(seed):
    check(seed)


@pytest.mark.truth
def test_hundreds_of_batches_are_adjusted_as_they_are_defined():
    for seed in range(6, 606):
        check(seed)


def test_the_numbers_are_those_of_mlx_lm_over_what_was_generated():
    sample_utils = pytest.importorskip("mlx_lm.sample_utils")
    rng = np.random.default_rng(3)
    logits, text = mx.array(rng.normal(size=(1, V)).astype(np.float32) * 4), [5, 9, 5, 5, 30]
    bias = {5: 3.5, 40: -100.0}
    for options in ({"presence_penalty": 1.25}, {"frequency_penalty": 0.7}, {"repetition_penalty": 1.4}):
        contexts = {name.replace("penalty", "context_size"): 50 for name in options}
        processors = sample_utils.make_logits_processors(logit_bias=bias, **options, **contexts)
        want = logits
        for process in processors:
            want = process(mx.array(text), want)
        adjusting = Adjusting([Sampling(logit_bias=bias, **options).adjustment()], V, [np.array([5])])
        for token in text:
            adjusting.add(mx.array([token]))
        np.testing.assert_allclose(np.array(adjusting(logits)), np.array(want), rtol=1e-6, atol=1e-6)


def test_a_row_that_asks_for_nothing_keeps_every_bit_beside_others_that_ask():
    rng = np.random.default_rng(0)
    logits = mx.array((rng.normal(size=(3, V)) * 9).astype(np.float32))
    full = Adjustment(1.7, 1.5, 0.3, ((3, 50.0), (8, -3.0)), frozenset({0, 4}), 4)
    adjusting = Adjusting([full, Adjustment(), full], V, [np.arange(9)] * 3)
    for _ in range(6):
        assert np.array_equal(np.array(adjusting(logits))[1], np.array(logits)[1])
        adjusting.add(mx.array([3, 3, 3]))


KINDS = (
    {"temperature": 0.0},
    {"temperature": 2.5},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 3.0, "top_k": 5},
    {"temperature": 3.0, "top_k": 11, "min_p": 0.05},
    {"temperature": 2.0, "presence_penalty": 1.5, "frequency_penalty": -0.4},
    {"temperature": 0.0, "repetition_penalty": 1.6, "logit_bias": {7: 4.0}},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 20, "repetition_penalty": 0.8},
)


def test_rows_of_every_kind_draw_alike_alone_and_together_and_when_others_have_left():
    rng = np.random.default_rng(5)
    steps = [(rng.normal(size=(len(KINDS), V)) * 3).astype(np.float32) for _ in range(12)]
    rows = [Sampling(seed=row % 3, **kind) for row, kind in enumerate(KINDS)]
    prompts = [np.arange(row, row + 5) for row in range(len(rows))]
    alone: list[list[int]] = []
    for row, sampling in enumerate(rows):
        sampler = Sampler([sampling], V, [prompts[row]])
        alone.append([int(sampler(mx.array(step[row : row + 1]))[0].item()) for step in steps])
    sampler, staying = Sampler(rows, V, prompts), list(range(len(rows)))
    for count, step in enumerate(steps):
        tokens = np.array(sampler(mx.array(step[staying]))[0]).tolist()
        assert tokens == [alone[row][count] for row in staying]
        if count in (4, 8):
            kept = [place for place in range(len(staying)) if place % 3 != count // 4]
            sampler.keep_rows(kept)
            staying = [staying[place] for place in kept]


def test_the_likeliest_token_is_told_apart_where_probabilities_round_alike():
    logits = np.full((2, V), -1.0, np.float32)
    logits[:, 3], logits[:, 9] = 40.0, np.nextafter(np.float32(40.0), np.float32(41.0))
    assert np.array(Sampler([Sampling(), Sampling(2.0)], V, [np.arange(3)] * 2)(mx.array(logits))[0])[0] == 9
    assert np.array(Sampler([Sampling()], V, [np.arange(3)])(mx.array(logits[:1]), logprobs=True)[0])[0] == 9
