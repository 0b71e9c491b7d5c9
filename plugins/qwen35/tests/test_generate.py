"""Generation of tiny hybrids: the tokens of transformers, alone, in ragged batches, in chunks, and from a cache."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract.hookspecs import hookimpl

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
NAMES = ("qwen35-text", "qwen35-wrapper", "qwen35-moe", "qwen35-moe-wrapper", "qwen3-next")
# Rows of which 64 greedy tokens were recorded.
RECORDED = (3, 6)


def load(name, **options):
    """The model without final tokens, as the goldens were recorded."""
    model = engine.load(GOLDENS / name, dtype="float32", **options)
    model._runtime = dataclasses.replace(model._runtime, stops=frozenset())
    return model


@pytest.fixture(scope="module")
def golden():
    return {name: np.load(GOLDENS / name / "golden.npz") for name in NAMES}


@pytest.fixture(scope="module")
def models():
    return {name: load(name, prefix_cache=0) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_sixty_four_greedy_tokens_equal_transformers(models, golden, name):
    for index in RECORDED:
        found = models[name].generate(golden[name][f"ids_{index}"].tolist(), max_tokens=64).tokens
        assert list(found) == golden[name][f"greedy_{index}"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_ragged_prompts_in_one_batch_equal_single_runs(models, golden, name):
    rows = [golden[name][f"ids_{index}"].tolist() for index in (3, 6, 0, 4)]
    together = [list(each.tokens) for each in models[name].generate(rows, max_tokens=24)]
    assert together[:2] == [golden[name][f"greedy_{index}"][:24].tolist() for index in RECORDED]
    assert together[2:] == [list(models[name].generate(row, max_tokens=24).tokens) for row in rows[2:]]


@pytest.mark.parametrize("chunk", [1, 7, 32, 64])
def test_a_prompt_read_in_chunks_goes_on_alike(golden, chunk):
    pins = types.ModuleType("pins")

    def archport_prefill_chunk(spec):
        return chunk

    pins.archport_prefill_chunk = hookimpl(archport_prefill_chunk)
    model, stored = load("qwen35-text", prefix_cache=0, overrides=[pins]), golden["qwen35-text"]
    rows = [stored[f"ids_{index}"].tolist() for index in (6, 3, 4)]
    assert list(model.generate(rows[0], max_tokens=64).tokens) == stored["greedy_6"].tolist()
    ragged = [list(each.tokens) for each in model.generate(rows, max_tokens=12)]
    assert ragged[:2] == [stored["greedy_6"][:12].tolist(), stored["greedy_3"][:12].tolist()]


def test_rows_that_leave_do_not_move_the_state_of_those_that_stay(golden):
    stored = golden["qwen35-text"]
    expected = stored["greedy_6"].tolist()
    model = engine.load(GOLDENS / "qwen35-text", dtype="float32", prefix_cache=0)
    # The first token that the short row makes ends it.
    first = int(stored["greedy_3"][0])
    assert first not in expected[:20]
    model._runtime = dataclasses.replace(model._runtime, stops=frozenset({first}))
    short, long = model.generate([stored["ids_3"].tolist(), stored["ids_6"].tolist()], max_tokens=20)
    assert short.finish_reason == "stop"
    assert list(long.tokens) == expected[:20]


@pytest.mark.parametrize("name", ["qwen35-text", "qwen3-next"])
def test_answers_of_a_prompt_copy_its_state_and_go_on_alike(models, golden, name):
    rows = [golden[name][f"ids_{index}"].tolist() for index in (3, 0)]
    options = {"max_tokens": 10, "temperature": 2.0, "seed": 5, "presence_penalty": 0.7}
    answers = models[name].generate(rows, n=3, **options)
    apart = [models[name].generate([row] * 3, **options) for row in rows]
    assert [[each.tokens for each in row] for row in answers] == [[each.tokens for each in row] for row in apart]
    assert len({each.tokens for each in answers[0]}) == 3


def test_a_remembered_conversation_is_gone_on_with_where_it_ended_and_nowhere_else(golden):
    stored = golden["qwen35-text"]
    model = load("qwen35-text", prefix_cache="64MB")
    prompt = stored["ids_6"].tolist()
    first = model.generate(prompt, max_tokens=16)
    # All but the last token were read; the state at the end of the answer serves a prompt that begins with it.
    longer = [*prompt, *first.tokens, 11, 12, 13]
    again, fresh = model.generate(longer, max_tokens=16), load("qwen35-text", prefix_cache=0)
    assert again.usage.cached_tokens in (len(prompt) + 15, len(prompt) + 16)
    assert again.tokens == fresh.generate(longer, max_tokens=16).tokens
    # A state can't be cut: a prompt that parts from it inside starts from the last end it shares, or anew.
    parting = [*prompt[:50], 7, 8, 9]
    other = model.generate(parting, max_tokens=8)
    assert other.usage.cached_tokens == 0
    assert other.tokens == fresh.generate(parting, max_tokens=8).tokens
    # The end of the prompt itself was remembered, too.
    retold = model.generate([*prompt, 5], max_tokens=8)
    assert retold.usage.cached_tokens == len(prompt)
    assert retold.tokens == fresh.generate([*prompt, 5], max_tokens=8).tokens


def test_a_planned_generation_holds_what_its_plan_says(golden):
    model = load("qwen35-text", prefix_cache=0)
    plan = model.plan([100], new_tokens=16)
    layers = model.spec.layers
    state = sum(each.state_bytes + each.conv_bytes for each in layers if hasattr(each, "state_bytes"))
    keys = sum(hasattr(each, "head_dim") for each in layers) * 256 * 2 * (32 + 32) * 4
    assert plan.bytes["kv"] == state + keys
