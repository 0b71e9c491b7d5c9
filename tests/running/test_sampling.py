"""How tokens are drawn: filters, penalties, keys of a row's own, and nothing that is compiled for a value."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import InputError
from archport.generating.sampling import Sampler, Sampling, kept_min_p, kept_top_k, kept_top_p

GOLDENS = Path(__file__).parents[1] / "goldens"
V = 40


def logits(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, V)).astype(np.float32) * 3


def prompts(rows: int = 3) -> list[np.ndarray]:
    return [np.arange(row, row + 4, dtype=np.int32) for row in range(rows)]


def drawn(sampling: Sampling, scores: np.ndarray, given: list[np.ndarray], steps: int = 1) -> np.ndarray:
    """Tokens (steps, B), every step from the same scores."""
    sampler = Sampler([sampling] * len(given), scores.shape[1], given)
    return np.stack([np.array(sampler(mx.array(scores))[0]) for _ in range(steps)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [1e-46, 1e-9, 0.2, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_hold_the_share(share, seed):
    given = logits(seed=seed)
    probabilities = np.exp(given.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for row, kept in zip(
        probabilities,
        np.isfinite(np.array(kept_top_p(mx.array(np.log(probabilities).astype(np.float32)), share))),
        strict=True,
    ):
        order = np.argsort(-row)
        least = 1 + int((np.cumsum(row[order])[:-1] < share).sum())
        assert kept.tolist() == np.isin(np.arange(V), order[:least]).tolist()


@pytest.mark.parametrize("share", [5e-324, 0.01, 0.5, 1.0])
def test_min_p_keeps_what_has_the_share_of_the_likeliest(share):
    given = logits()
    want = given >= given.max(axis=1, keepdims=True) + np.log(share)
    assert np.isfinite(np.array(kept_min_p(mx.array(given), np.log(share)))).tolist() == want.tolist()


@pytest.mark.parametrize("count", [1, 7, V - 1])
def test_top_k_keeps_so_many(count):
    given = logits()
    want = given >= -np.sort(-given, axis=1)[:, count - 1 : count]
    assert np.isfinite(np.array(kept_top_k(mx.array(given), [count] * 3))).tolist() == want.tolist()


def test_filters_come_one_after_the_other_and_draw_only_what_is_left():
    given = logits()
    likely = mx.array(given - np.log(np.exp(given).sum(1, keepdims=True)))
    kept = kept_top_k(kept_min_p(kept_top_p(likely, 0.9), np.log(0.05)), [3] * 3)
    allowed = [set(np.flatnonzero(row).tolist()) for row in np.isfinite(np.array(kept))]
    found = drawn(Sampling(5.0, 0.9, 3, 0.05, seed=1), given, prompts(), steps=200)
    assert [set(column.tolist()) for column in found.T] == allowed


def test_draws_are_as_often_as_they_are_likely():
    given = logits(1)
    tokens = drawn(Sampling(2.0, seed=3), given, prompts(1), steps=1000)[:, 0]
    want = np.exp(given[0] / 2) / np.exp(given[0] / 2).sum()
    assert np.abs(np.bincount(tokens, minlength=V) / 1000 - want).max() < 0.06


@pytest.mark.parametrize("temperature", [5e-324, 1e-39, 1.1e-38, 1e-37, 1e-30])
def test_a_temperature_next_to_nothing_takes_the_likeliest(temperature):
    given = logits()
    assert (drawn(Sampling(temperature, seed=3), given, prompts(), 20) == given.argmax(axis=1)).all()


def test_a_temperature_beyond_float32_draws_evenly():
    tokens = drawn(Sampling(1e300, top_k=4, seed=3), logits(1), prompts(1), 200)
    assert np.unique(tokens, return_counts=True)[1].min() > 30


@pytest.mark.parametrize("penalty", [1e-50, 0.5, 1.3, 1e6, 1e300])
def test_a_penalty_moves_what_was_seen_and_nothing_else(penalty):
    given, seen = logits(), prompts()
    sampler = Sampler([Sampling(repetition_penalty=penalty)] * 3, V, seen)
    for _ in range(2):
        want = given.astype(np.float64)
        kept = min(max(penalty, 1e-30), 1e30)
        for row, ids in enumerate(seen):
            want[row, ids] = np.where(want[row, ids] < 0, want[row, ids] * kept, want[row, ids] / kept)
        top = want.max(axis=1, keepdims=True)
        want -= top + np.log(np.exp(want - top).sum(axis=1, keepdims=True))
        tokens, found = sampler(mx.array(given), logprobs=True)
        np.testing.assert_allclose(np.array(found), want, rtol=1e-4, atol=1e-4)
        seen = [np.append(ids, token) for ids, token in zip(seen, np.array(tokens), strict=True)]


def test_a_row_draws_alike_alone_beside_others_and_when_they_have_left():
    given, rows, sampling = logits(), prompts(), Sampling(4.0, 0.95, 30, 0.001, 1.2, seed=2**64 - 1)
    alone = [drawn(sampling, given[row : row + 1], rows[row : row + 1], 12)[:, 0].tolist() for row in range(3)]
    assert drawn(sampling, given, rows, 12).T.tolist() == alone
    sampler, staying, found = Sampler([sampling] * 3, V, rows), [0, 1, 2], [[], [], []]
    for step in range(12):
        for row, token in zip(staying, np.array(sampler(mx.array(given[staying]))[0]), strict=True):
            found[row].append(int(token))
        if step in (3, 7):
            sampler.keep_rows([0, 2] if step == 3 else [1])
            staying = [0, 2] if step == 3 else [2]
    assert found == [alone[0][:8], alone[1][:4], alone[2]]


def test_equal_prompts_of_one_call_draw_differently_and_seeds_do_too():
    given = np.zeros((3, V), np.float32)
    same = [np.arange(5)] * 3
    first = drawn(Sampling(1.0, seed=1), given, same, 20).T.tolist()
    assert len({tuple(row) for row in first}) == 3
    assert drawn(Sampling(1.0, seed=1), given, same, 20).T.tolist() == first
    assert drawn(Sampling(1.0, seed=2), given, same, 20).T.tolist() != first
    assert drawn(Sampling(1.0), given, same, 20).T.tolist() != drawn(Sampling(1.0), given, same, 20).T.tolist()


def test_no_value_is_compiled(tmp_path):
    scores = mx.array(logits())
    mx.eval(scores)
    given = {"presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {3: 1.5}}
    rows = [Sampling(0.7, 0.51, 5, 0.03, 1.1, seed=1, **given), Sampling(0.8, top_k=7), Sampling()]
    sampler = Sampler(rows, V, prompts())
    with open(tmp_path / "graph.dot", "w") as file:
        mx.export_to_dot(file, sampler(scores)[0])
    names = set(re.findall(r'label ="(\w+)"', (tmp_path / "graph.dot").read_text()))
    assert {"Sort", "RandomBits"} <= names
    assert not [name for name in names if name.startswith("Compiled")]


@pytest.mark.parametrize("seed", [2**64, 10**30, -1, True, 1.0])
def test_a_seed_is_refused_with_what_is_expected(seed):
    with pytest.raises(InputError, match=r"seed=.*; expected an integer from 0 to 2\*\*64 - 1, or None"):
        Sampling(seed=seed)


def test_rows_of_a_model_draw_alike_alone_and_beside_rows_that_leave():
    model = engine.load(GOLDENS / "qwen3-moe", prefix_cache=0)
    rows = [list(range(first, first + count)) for first, count in ((5, 9), (40, 3), (90, 30))]
    options = {"max_tokens": 12, "temperature": 3.0, "top_p": 0.98, "seed": 11}
    alone = [model.generate(row, **options) for row in rows]
    stop = next(each.text[4:6] for each in alone if "�" not in each.text[4:6])
    for more in ({}, {"stop": stop}):
        together = model.generate(rows, **options, **more)
        assert [each.tokens for each in together] == [model.generate(row, **options, **more).tokens for row in rows]
