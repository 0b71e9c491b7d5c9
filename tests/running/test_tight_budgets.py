"""What a model answers in the tightest budget that admits a request is what it answers with room."""

from __future__ import annotations

import copy
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import get_args

import mlx.core as mx
import numpy as np
import pytest

from archport.contract import EmbeddingHead
from archport.contract.heads import PoolingMode
from archport.contract.plugins import discover
from archport.engine import Model
from archport.generating.decode import decode_paths
from archport.running.encode import Encoder
from archport.running.pool import VectorHead
from archport.testing.plans import planned
from archport.testing.subject import Subject, Tiny

# Of the largest entry: float32 is summed in another order where tiles and chunks differ.
RELATIVE = 1e-5


@cache
def tinies() -> tuple[Tiny, ...]:
    """Every plugin's examples that read text."""
    plugins = [plugin for plugin in discover() if "archport_examples" in plugin.hook_names]
    found = [tiny for plugin in plugins for tiny in Subject(plugin).tinies]
    return tuple(tiny for tiny in found if not tiny.broken)


def tightened(encoder: Encoder, budget: int) -> Encoder:
    return replace(encoder, plan=replace(encoder.plan, budget=budget))


def rows_of(rng: random.Random, tiny: Tiny, longest: int) -> list[np.ndarray]:
    lengths = [tiny.length(rng.randint(1, longest)) for _ in range(rng.choice((1, 1, 2, 4)))]
    return [tiny.tokens(length, seed=index) for index, length in enumerate(lengths)]


def differ(here: np.ndarray, there: np.ndarray) -> float:
    return float(np.abs(here - there).max() / np.abs(there).max())


def vectors(encoder: Encoder, rows: list[np.ndarray], mode: PoolingMode) -> np.ndarray:
    """The rows' pooled vectors (N, D), as `embed` runs them."""
    plan = planned(encoder.plan, [len(row) for row in rows])
    found = np.zeros((len(rows), encoder.spec.hidden_size), np.float32)
    head = VectorHead(EmbeddingHead(pooling=(mode,), normalize=False), ())
    for batch in plan.batches:
        made = encoder.pooled(plan, batch, [rows[row] for row in batch.rows], head, 0)
        found[list(batch.rows)] = np.array(made)
    return found


def run(rng: random.Random, tiny: Tiny, way: str) -> tuple[int, str]:
    """One request with room and without; (steps of its longest batch in the tight budget, what differs)."""
    encoder, rows = tiny.model._runtime.encoder, rows_of(rng, tiny, 400)
    lengths = [len(row) for row in rows]
    if way == "generate":
        new = rng.randint(1, 8)
        rows = [row[: tiny.spec.max_positions - new] for row in rows]
        options = {"new_tokens": new, "mode": "generate"}
        tight = tightened(encoder, planned(encoder.plan, [len(row) for row in rows], **options).minimum)
        plan = planned(tight.plan, [len(row) for row in rows], **options)
        asked = {"max_tokens": new, "temperature": 0.0}
        texts = [[int(token) for token in row] for row in rows]
        here = with_encoder(tiny.model, tight).generate(texts, **asked)
        there = tiny.model.generate(texts, **asked)
        wrong = "" if [each.tokens for each in here] == [each.tokens for each in there] else f"{here} {there}"
        return max(len(batch.steps) for batch in plan.batches), wrong
    tight = tightened(encoder, planned(encoder.plan, lengths).minimum)
    plan = planned(tight.plan, lengths)
    if way == "forward":
        ids = np.zeros((len(rows), max(lengths)), np.int32)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        here, there = (np.array(each.forward(ids, mask).astype(mx.float32)) for each in (tight, encoder))
    else:
        here, there = (vectors(each, rows, way) for each in (tight, encoder))
    far = differ(here, there)
    steps = max(len(batch.steps) for batch in plan.batches)
    return steps, "" if far <= RELATIVE else f"{far:.1e} of {lengths} in {steps} steps"


def with_encoder(model: Model, encoder: Encoder) -> Model:
    found = copy.copy(model)
    found._runtime = replace(model._runtime, encoder=encoder)
    return found


WAYS = ("forward", *get_args(PoolingMode))


def compare(count: int, seed: int) -> Counter[str]:
    """So many requests in turn over models and ways; counts those that took several steps."""
    rng, stepped = random.Random(seed), Counter[str]()
    for index in range(count):
        generates = index % 2
        # Drawn, for any stride meets a way with few families once their number divides it; rows of bidirectional ones
        # take one step, and would be most.
        some = [each for each in tinies() if "generate" in each.spec.tasks]
        tiny = rng.choice(some if generates or rng.random() < 0.5 else tinies())
        way = "generate" if generates else WAYS[index // 2 % len(WAYS)]
        steps, wrong = run(rng, tiny, way)
        assert not wrong, f"{tiny.subject.plugin.label}, {tiny.example.name}, {way}: {wrong}"
        stepped[way] += steps > 1
    return stepped


def test_the_tightest_budget_gives_the_same_answers():
    stepped = compare(12, 0)
    assert stepped["generate"]
    assert stepped.total() >= 3


@pytest.mark.truth
def test_the_tightest_budget_gives_the_same_answers_200_times():
    stepped = compare(240, 1)
    assert all(stepped[way] >= 2 for way in ("generate", *WAYS)), stepped


@pytest.mark.parametrize("cached", [0, 20])
@pytest.mark.parametrize("lengths", [[30, 30], [50, 7, 31], [9]])
def test_decoding_runs_the_very_paths_that_the_plan_shows(lengths: list[int], cached: int):
    for tiny in tinies():
        if "generate" not in tiny.spec.tasks:
            continue
        planner = tiny.planner
        plan = planned(planner, lengths, cached=cached, new_tokens=5, mode="generate")
        (batch,) = plan.batches
        assert batch.decode is not None
        paths = decode_paths(tiny.spec, planner, plan, batch, len(lengths), padded=len(set(lengths)) > 1)
        assert paths == batch.decode.paths
