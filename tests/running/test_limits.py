"""How many tokens a row is given: what was asked for, or the rest of its own context, whatever is beside it."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from archport import engine
from archport.contract import AttentionLayer, ContextLengthExceeded, KVAllocation
from archport.memory import Caches

GOLDENS = Path(__file__).parents[1] / "goldens"
CONTEXT = 32


def endless(name, **options):
    model = engine.load(GOLDENS / name, prefix_cache=0, **options)
    model._runtime = dataclasses.replace(model._runtime, stops=frozenset())
    return model


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("qwen3-moe", (31, 30, 1, 1)),
        ("qwen3-windowed", (9, 28, 17)),
        ("qwen35-text", (22, 28)),
        ("qwen3-next", (28, 20)),
    ],
)
def test_without_a_limit_every_row_goes_on_to_the_end_of_its_own_context(name, lengths):
    model, dice = endless(name, max_context=CONTEXT), np.random.default_rng(1)
    rows = [dice.integers(0, 250, count).astype(np.int32) for count in lengths]
    together = model.generate(rows, max_tokens=None)
    assert [len(each.tokens) for each in together] == [CONTEXT - count for count in lengths]
    assert [each.finish_reason for each in together] == ["length"] * len(rows)
    assert [each.tokens for each in together] == [model.generate(row, max_tokens=None).tokens for row in rows]


def test_rows_without_a_limit_are_remembered_and_gone_on_with():
    model = endless("qwen3-moe", max_context=CONTEXT)
    model._runtime.prefixes.limit = 2**26
    rows = [list(range(28)), [7, 8, 9]]
    made = model.generate(rows, max_tokens=None)
    again = model.generate([*rows[1], *made[1].tokens[:20]], max_tokens=None)
    assert again.usage.cached_tokens >= 20
    assert again.tokens == made[1].tokens[20:]


@pytest.mark.parametrize(("prompt", "asked"), [(32, 1), (32, None), (33, 0), (40, 9)])
def test_a_prompt_that_leaves_no_room_is_refused_with_advice_that_fits(prompt, asked):
    model = endless("qwen3-moe", max_context=CONTEXT)
    said = rf"prompt 0 has {prompt} tokens and the context 32, .* shorten the prompt, or load the model with a larger"
    with pytest.raises(ContextLengthExceeded, match=said) as refused:
        model.generate([5] * prompt, max_tokens=asked)
    model.generate([5] * refused.value.max_tokens_that_fit, max_tokens=asked)


def test_a_model_with_all_its_positions_is_not_to_be_loaded_with_more():
    model = endless("qwen3-moe")
    with pytest.raises(ContextLengthExceeded) as refused:
        model.generate([5] * model.spec.max_positions)
    assert "max_context" not in str(refused.value)


@pytest.mark.parametrize("storage", ["planned", "growing", "ring"])
@pytest.mark.parametrize("dropping", [1, 4])
def test_columns_that_all_rows_pad_are_dropped_and_the_rest_stays(storage, dropping):
    reach, size = ((5, 0), 21) if storage == "ring" else ((None, 0), 64)
    layer, dice = AttentionLayer("causal", 4, 2, 8, reach=reach), np.random.default_rng(0)
    caches = Caches([layer], [KVAllocation(storage, size, size)], 2, "float32")
    k, v, *more = (mx_array(dice, count) for count in (9, 9, 1, 1, 1, 1))
    state = caches.layers[0]
    state.append(k, v)
    caches.align([5, 4])
    before = [[np.array(each) for each in state.held(row)] for row in range(2)]
    caches.drop_front(dropping)
    assert state.lengths == (5 - dropping,) * 2
    for row in range(2):
        for was, now in zip(before[row], state.held(row), strict=True):
            assert np.array_equal(was[:, :, dropping:], np.array(now))
    keys, _ = state.advance(*more[:2])
    assert np.array_equal(np.array(keys)[:, :, -1], np.array(more[0])[:, :, 0])


def mx_array(dice, tokens):
    return mx.array(dice.normal(size=(2, 2, tokens, 8)).astype(np.float32))
