"""What the pool of freed buffers comes to on Metal, by a replay of its rule over random requests, and in plans."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from archport.contract import ArchSpec, AttentionLayer, PathChooser
from archport.device.pool import Pool
from archport.device.profiles import profile
from archport.planning import Plan, Planner, Request
from archport.testing.plans import plan_of


def requests(count: int, seed: int) -> list[list[int]]:
    """As many requests of 1 to 32 texts of 5 to 1,500 tokens."""
    generator = random.Random(seed)
    return [[generator.randint(5, 1500) for _ in range(generator.randint(1, 32))] for _ in range(count)]


def corpus(longest: int = 512) -> list[int]:
    """The benchmarks' corpus: 4,096 texts of mixed length."""
    generator = random.Random(0)
    return [min(longest, max(8, int(generator.lognormvariate(5.0, 0.9)))) for _ in range(4096)]


def run(pool: Any, spec: ArchSpec, plan: Plan) -> None:
    """Take and give the buffers of a plan's batches, layer after layer."""
    for batch in plan.batches:
        for step in batch.steps:
            tokens = batch.shape.B * step.tokens
            hidden = pool.take(tokens * spec.hidden_size * 2)
            for layer in spec.layers[:4]:
                assert isinstance(layer, AttentionLayer)
                hidden = run_layer(pool, spec, layer, tokens, hidden)
            pool.give(hidden)


def run_layer(pool: Any, spec: ArchSpec, layer: AttentionLayer, tokens: int, hidden: Any) -> Any:
    """A pre-norm block with a gated MLP in 16 bits; every array is freed after its last use."""

    def new(width: int, *done: Any) -> Any:
        made = pool.take(tokens * width * 2)
        for each in done:
            pool.give(each)
        return made

    D, wide, narrow = spec.hidden_size, layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    normed = new(D)
    q, k, v = new(wide), new(narrow), new(narrow, normed)
    q, k = new(wide, q), new(narrow, k)
    attended = new(D, new(wide, q, k, v))
    hidden = new(D, attended, hidden)
    normed = new(D)
    gate, up = new(spec.intermediate_size), new(spec.intermediate_size, normed)
    down = new(D, new(spec.intermediate_size, gate, up))
    return new(D, down, hidden)


class Limits:
    """MLX's cache limit, handed on to the replay."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def set_cache_limit(self, limit: int) -> int:
        previous, self._pool.limit = self._pool.limit, limit
        return previous


def check_replay(count: int, device: str, spec: ArchSpec, choose: PathChooser, metal_pool: ModuleType) -> None:
    """The pool's limit, set as before every request, keeps it within 1.25 times the largest transient so far."""
    metal, largest = metal_pool.MetalPool(limit=2**62), 0
    planner = Planner.of(spec, profile(device), choose)
    limit = Pool(Limits(metal))
    for lengths in requests(count, seed=1):
        plan = planner(Request(lengths=lengths))
        largest = max(largest, plan.moving)
        limit.hold(plan.pool, plan.room)
        run(metal, spec, plan)
        assert plan.peak + plan.pool <= plan.budget
        assert metal.most_pooled <= 1.25 * largest


@pytest.mark.parametrize("device", ["m1-16gb", "m2-ultra-128gb"])
def test_the_pool_stays_within_the_largest_transient(device, qwen3_06b: ArchSpec, real_choose, metal_pool):
    check_replay(40, device, qwen3_06b, real_choose, metal_pool)


@pytest.mark.truth
@pytest.mark.parametrize("device", ["m1-16gb", "m2-ultra-128gb"])
def test_the_pool_stays_within_the_largest_transient_of_300_requests(
    device, qwen3_06b: ArchSpec, real_choose, metal_pool
):
    check_replay(300, device, qwen3_06b, real_choose, metal_pool)


def test_without_a_limit_the_same_requests_fill_many_times_as_much(qwen3_06b: ArchSpec, real_choose, metal_pool):
    free, largest = metal_pool.MetalPool(limit=2**62), 0
    planner = Planner.of(qwen3_06b, profile("m1-16gb"), real_choose)
    for lengths in requests(40, seed=1):
        plan = planner(Request(lengths=lengths))
        largest = max(largest, plan.moving)
        run(free, qwen3_06b, plan)
    assert free.pooled > 4 * largest


def test_what_a_corpus_frees_is_used_again(qwen3_06b: ArchSpec, real_choose, metal_pool):
    plan = plan_of(qwen3_06b, corpus(), device=profile("m2-ultra-128gb"), choose=real_choose)
    metal = metal_pool.MetalPool(limit=plan.pool)
    run(metal, qwen3_06b, plan)
    # Of 28 layers, four are replayed, so that what a batch takes anew counts seven times as much as it does.
    assert metal.reused > 4 * metal.allocated


@pytest.mark.parametrize("device", ["m2-ultra-128gb", "cpu"])
def test_padding_costs_a_corpus_less_than_3_percent(device, qwen3_06b: ArchSpec, bert: ArchSpec, real_choose):
    for spec in (qwen3_06b, bert):
        plan = plan_of(spec, corpus(), device=profile(device), choose=real_choose)
        computed = sum(batch.shape.B * batch.shape.L for batch in plan.batches)
        assert computed < 1.03 * sum(corpus())


def test_packed_rows_are_padded_by_less_than_3_percent(bert: ArchSpec, real_choose):
    plan = plan_of(bert, corpus(), device=profile("h200"), choose=real_choose, dtype="bfloat16", pack=True)
    assert all(batch.packed for batch in plan.batches)
    assert sum(batch.shape.L for batch in plan.batches) < 1.03 * sum(corpus())


def test_a_tight_budget_leaves_the_pool_less_on_metal(qwen3_06b: ArchSpec, real_choose):
    device = profile("m2-ultra-128gb")
    roomy = plan_of(qwen3_06b, [4000] * 8, device=device, choose=real_choose)
    assert roomy.pool == roomy.moving
    tight = plan_of(qwen3_06b, [4000] * 8, device=device, choose=real_choose, budget=roomy.minimum)
    assert 0 <= tight.pool == tight.budget - tight.peak < roomy.pool


@pytest.mark.parametrize("device", ["h200", "m2-ultra-128gb", "cpu"])
def test_live_arrays_and_pool_keep_the_budget_together(device, qwen3_06b: ArchSpec, real_choose):
    least = plan_of(qwen3_06b, [4000] * 8, device=profile(device), choose=real_choose).minimum
    for budget in (least, least + least // 50, 2 * least, 8 * least):
        plan = plan_of(qwen3_06b, [4000] * 8, device=profile(device), choose=real_choose, budget=budget)
        assert plan.peak <= plan.together <= budget
        assert plan.peak - plan.moving + plan.pool <= budget
