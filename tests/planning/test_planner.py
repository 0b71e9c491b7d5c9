"""Plans keep their promises: every row once, within the budget, monotone, and refused with numbers."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    AttentionPath,
    ContextLengthExceeded,
    InputError,
    KVAllocation,
    MemoryBudgetExceeded,
    WorkBoundExceeded,
)
from archport.device.profiles import profile
from archport.planning import estimate_weights
from archport.testing.plans import plan_of

SAMPLED = ("m1-16gb", "m2-ultra-128gb", "m3-ultra-256gb", "m4-pro-24gb", "m5-max-128gb", "h200", "cpu")

M2, H200, CPU, M4 = (profile(name) for name in ("m2-ultra-128gb", "h200", "cpu", "m4-pro-24gb"))
GIB = 2**30


def requests(seed: int, count: int) -> list[tuple[list[int], int, int]]:
    """Random (lengths, cached, new tokens)."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        cached, new = rng.choice(((0, 0), (0, 0), (0, 100), (2000, 0), (999, 50)))
        # Rows that decode are resident together; the smallest machine must hold them.
        rows = rng.choice((1, 1, 2, 7) if new else (1, 2, 7, 40))
        made.append(([int(2 ** rng.uniform(0, 11 if new else 13)) for _ in range(rows)], cached, new))
    return made


@pytest.mark.parametrize("name", SAMPLED)
def test_every_row_runs_once_and_in_full(name: str, qwen3_06b: ArchSpec, bert: ArchSpec, choose):
    for spec in (qwen3_06b, bert):
        for lengths, cached, new in requests(1, 30):
            if spec is bert:
                cached, new = 0, 0
            plan = plan_of(spec, lengths, device=profile(name), choose=choose, cached=cached, new_tokens=new)
            assert sorted(row for batch in plan.batches for row in batch.rows) == list(range(len(lengths)))
            for batch in plan.batches:
                assert batch.lengths == tuple(lengths[row] for row in batch.rows)
                assert sum(step.tokens for step in batch.steps) == batch.shape.L >= max(batch.lengths)
                assert len(batch.rows) == batch.shape.B


@pytest.mark.parametrize("name", SAMPLED)
def test_no_plan_exceeds_its_budget_buffer_or_work_bound(name: str, qwen3_06b: ArchSpec, bert: ArchSpec, choose):
    device = profile(name)
    for spec in (qwen3_06b, bert):
        for lengths, cached, new in requests(2, 30):
            if spec is bert:
                cached, new = 0, 0
            plan = plan_of(spec, lengths, device=device, choose=choose, cached=cached, new_tokens=new)
            assert plan.peak <= plan.budget
            assert device.max_buffer is None or plan.largest_buffer.bytes <= device.max_buffer
            assert plan.work.limit is None or plan.work.seconds <= plan.work.limit


@pytest.mark.parametrize("name", ["m2-ultra-128gb", "m4-pro-24gb", "h200", "cpu"])
@pytest.mark.parametrize(
    ("tokens", "cached", "new"), [(30_000, 0, 0), (20_000, 0, 64), (5000, 20_000, 64), (700, 0, 0)]
)
def test_more_budget_never_gives_a_smaller_chunk(name, tokens, cached, new, qwen3_06b: ArchSpec, choose):
    device, last, fitted = profile(name), 0, 0
    for step in range(60):
        budget = int(0.8 * GIB * 1.06**step)
        try:
            plan = plan_of(
                qwen3_06b, [tokens], device=device, choose=choose, cached=cached, new_tokens=new, budget=budget
            )
        except MemoryBudgetExceeded:
            assert last == 0, f"refused at {budget:,} after a smaller budget was enough"
            continue
        assert plan.chunk >= last, f"chunk {plan.chunk} after {last} at {budget:,}"
        last, fitted = plan.chunk, fitted + 1
    assert fitted > 20


def test_more_budget_never_gives_a_smaller_chunk_with_the_real_backends(hybrid_27b: ArchSpec, real_choose):
    last = 0
    for step in range(16):
        budget = int(22 * GIB * 1.1**step)
        try:
            plan = plan_of(hybrid_27b, [100_000], device=M2, choose=real_choose, new_tokens=100, budget=budget)
        except MemoryBudgetExceeded:
            assert last == 0
            continue
        assert plan.chunk >= last
        last = plan.chunk
    assert last == 2048


def test_a_budget_of_the_stated_minimum_is_enough(qwen3_06b: ArchSpec, bert: ArchSpec, choose):
    for spec in (qwen3_06b, bert):
        for device in (M2, H200, CPU):
            roomy = plan_of(spec, [6000, 100, 3000], device=device, choose=choose)
            tight = plan_of(spec, [6000, 100, 3000], device=device, choose=choose, budget=roomy.minimum)
            assert tight.peak <= roomy.minimum


@pytest.mark.parametrize("name", ["m2-ultra-128gb", "h200"])
@pytest.mark.parametrize("lengths", [[32_768], [512] * 32, [128] * 32, [2048] * 8, [64, 700, 9000]])
def test_evaluating_costs_under_three_percent_at_twice_the_minimum(name, lengths, qwen3_06b: ArchSpec, choose):
    device = profile(name)
    minimum = plan_of(qwen3_06b, lengths, device=device, choose=choose).minimum
    plan = plan_of(qwen3_06b, lengths, device=device, choose=choose, budget=2 * minimum)
    assert plan.overhead < 0.03
    assert plan.cost == ""


def test_below_twice_the_minimum_the_plan_states_its_cost_in_time(qwen3_06b: ArchSpec, choose):
    minimum = plan_of(qwen3_06b, [9000], device=H200, choose=choose, new_tokens=8).minimum
    plan = plan_of(qwen3_06b, [9000], device=H200, choose=choose, new_tokens=8, budget=int(1.02 * minimum))
    assert "more time" in plan.cost
    assert f"{minimum:,}" in plan.cost


def test_a_generating_request_that_does_not_fit_says_what_would(qwen3_06b: ArchSpec, choose):
    budget = 4 * GIB
    with pytest.raises(MemoryBudgetExceeded) as refused:
        plan_of(qwen3_06b, [12_000] * 8, device=M4, choose=choose, new_tokens=100, budget=budget)
    error = refused.value
    assert error.code == "prefill_memory_exceeded"
    assert error.limit_bytes == budget
    assert error.required_bytes is not None
    assert error.required_bytes > budget
    assert sum(error.breakdown.values()) == error.required_bytes
    assert error.largest_buffer is not None
    assert error.requested == 12_000
    assert "budget" in error.binding
    assert f"{error.required_bytes:,}" in str(error)
    assert f"{budget:,}" in str(error)
    # Both ways out that it names are true, and no larger ones are.
    tokens, rows = error.max_tokens_that_fit, error.max_rows_that_fit
    assert tokens
    assert rows
    for lengths in ([tokens] * 8, [12_000] * rows):
        plan_of(qwen3_06b, lengths, device=M4, choose=choose, new_tokens=100, budget=budget)
    with pytest.raises(MemoryBudgetExceeded):
        plan_of(qwen3_06b, [12_000] * (rows + 1), device=M4, choose=choose, new_tokens=100, budget=budget)
    with pytest.raises(MemoryBudgetExceeded):
        plan_of(qwen3_06b, [tokens + 300] * 8, device=M4, choose=choose, new_tokens=100, budget=budget)


def test_weights_that_exceed_the_budget_are_what_binds(qwen3_06b: ArchSpec, choose):
    with pytest.raises(MemoryBudgetExceeded, match="weights alone exceed the budget") as refused:
        plan_of(qwen3_06b, [10], device=M2, choose=choose, budget=GIB)
    assert refused.value.max_tokens_that_fit == 0


def test_a_row_beyond_the_context_is_refused_with_both_numbers(qwen3_06b: ArchSpec, choose):
    with pytest.raises(ContextLengthExceeded, match=r"row 1.*4,913.*4,000") as refused:
        plan_of(qwen3_06b, [10, 4913], device=M2, choose=choose, max_context=4000)
    assert (refused.value.requested, refused.value.ceiling, refused.value.max_tokens_that_fit) == (4913, 4000, 4000)


def test_cached_and_new_tokens_count_against_the_context(qwen3_06b: ArchSpec, choose):
    with pytest.raises(ContextLengthExceeded) as refused:
        plan_of(qwen3_06b, [1000], device=M2, choose=choose, cached=2500, new_tokens=501, max_context=4000)
    assert refused.value.requested == 4001
    assert refused.value.max_tokens_that_fit == 999


def test_a_context_beyond_the_models_positions_is_refused_not_clamped(qwen3_06b: ArchSpec, choose):
    with pytest.raises(ContextLengthExceeded, match=r"40,000.*32,768"):
        plan_of(qwen3_06b, [10], device=M2, choose=choose, max_context=40_000)


def test_a_dispatch_that_no_chunk_makes_short_enough_is_refused(bert: ArchSpec, choose):
    slow = replace(M4, flops={"float32": 1e9, "float16": 1e9, "bfloat16": 1e9})
    with pytest.raises(WorkBoundExceeded, match="work bound") as refused:
        plan_of(bert, [512], device=slow, choose=choose)
    assert refused.value.code == "work_bound_exceeded"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lengths": []}, "at least one length"),
        ({"lengths": [0]}, "lengths=0"),
        ({"lengths": [True]}, "True"),
        ({"lengths": [5, 6], "cached": [1]}, "2 lengths and 1 cached"),
        ({"lengths": [5], "cached": -1}, "cached=-1"),
        ({"lengths": [5], "new_tokens": -1}, "new_tokens=-1"),
        ({"lengths": [5], "budget": 0}, "budget"),
        ({"lengths": [5], "chunk": 0}, "chunk"),
    ],
)
def test_arguments_that_are_no_counts_are_named(arguments, words: str, qwen3_06b: ArchSpec, choose):
    with pytest.raises(InputError, match=words):
        plan_of(qwen3_06b, device=M2, choose=choose, **arguments)


def test_bidirectional_rows_are_never_split_and_never_cached(bert: ArchSpec, choose):
    plan = plan_of(bert, [3000, 200, 3000], device=M2, choose=choose, chunk=128)
    for batch in plan.batches:
        assert len(batch.steps) == 1
        assert all(kind.kv is None for kind in batch.kinds)
    assert plan.bytes["kv"] == 0
    assert any("chunk is ignored" in note for note in plan.notes)


def test_embedding_needs_no_cache_unless_a_row_is_split(qwen3_06b: ArchSpec, choose):
    whole = plan_of(qwen3_06b, [8000] * 3, device=M2, choose=choose)
    split = plan_of(qwen3_06b, [8000] * 3, device=M2, choose=choose, chunk=1024)
    assert whole.bytes["kv"] == 0
    assert split.chunk == 1024
    group = split.largest.shape.B
    assert split.bytes["kv"] == group * 28 * 8192 * 8 * (128 + 128) * 2


def test_rows_of_one_causal_batch_need_no_mask_array(qwen3_06b: ArchSpec, choose):
    plan = plan_of(qwen3_06b, [500, 480, 470], device=M2, choose=choose)
    (batch,) = plan.batches
    assert batch.shape.ragged
    assert batch.kinds[0].mask is not None
    assert batch.kinds[0].mask.kind == "causal"


def test_rows_with_caches_of_different_length_carry_their_own_lengths(qwen3_06b: ArchSpec, choose):
    plan = plan_of(qwen3_06b, [20, 20], device=M2, choose=choose, cached=[100, 300], new_tokens=5)
    path = plan.batches[0].steps[0].paths[0]
    assert path is not None
    assert path.call.lengths == (120, 320)
    assert path.call.q_lengths == (20, 20)
    assert plan.batches[0].decode is not None
    decode = plan.batches[0].decode.paths[0]
    assert decode is not None
    # Decoding hides what stands in front of the shorter row.
    assert (decode.call.kv_len, decode.call.mask_shape) == (325, (2, 1, 1, 325))


def test_windowed_layers_keep_a_ring_and_see_no_more(windowed: ArchSpec, choose):
    plan = plan_of(windowed, [60_000], device=M2, choose=choose, new_tokens=100)
    near, far = plan.batches[0].kinds
    assert near.kv == KVAllocation("ring", 511 + 2048, 511 + 2048)
    assert far.kv is not None
    assert far.kv.storage == "planned"
    last = plan.batches[0].steps[-1]
    assert [path.call.kv_len for path in last.paths if isinstance(path, AttentionPath)] == [511 + last.tokens, 60_000]
    assert plan.bytes["kv"] == 4 * (4 * (128 + 128) * 2) * (5 * 2560 + 60_160)


def test_an_unknown_number_of_new_tokens_gets_caches_that_grow(qwen3_06b: ArchSpec, choose):
    plan = plan_of(qwen3_06b, [6776], device=M2, choose=choose, new_tokens=None)
    assert plan.mode == "generate"
    assert plan.batches[0].kinds[0].kv == KVAllocation("growing", 4096, 32_768)
    per_token = 28 * 8 * 256 * 2
    assert plan.bytes["kv"] == 8192 * per_token
    assert plan.bytes["kv_growth"] == 4096 * per_token // 28


def test_shared_layers_pay_nothing(choose):
    own = AttentionLayer("causal", 8, 4, 64, kv_group="pair")
    layers = (own, replace(own, kv="shared")) * 6
    spec = ArchSpec(
        arch="shared",
        tasks=("generate",),
        layers=layers,
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1024,
        max_positions=4096,
        dtype="bfloat16",
    )
    plan = plan_of(spec, [1000], device=M2, choose=choose, new_tokens=24)
    assert plan.bytes["kv"] == 6 * 1024 * 4 * 128 * 2
    # All that read are equal values, whichever layer each of them reads, so a plan decides once for them.
    assert [(kind.count, kind.layer.kv) for kind in plan.batches[0].kinds] == [(6, "own"), (6, "shared")]


def test_images_are_priced_with_their_tower(choose):
    from archport.contract import VisionTower

    text = AttentionLayer("causal", 16, 8, 128)
    eye = AttentionLayer("bidirectional", 16, 16, 64)
    tower = VisionTower((eye,) * 24, 1024, 4096, 16, merge_size=2)
    spec = ArchSpec(
        arch="vl",
        tasks=("embed",),
        layers=(text,) * 28,
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        max_positions=262_144,
        dtype="bfloat16",
        vision=tower,
    )
    without = plan_of(spec, [6500], device=M2, choose=choose)
    small = plan_of(spec, [6500], device=M2, choose=choose, images=[[1024]])
    large = plan_of(spec, [6500], device=M2, choose=choose, images=[[24_000]])
    assert without.bytes["vision"] == 0
    assert small.bytes["vision"] >= 1024 // 4 * 2048 * 2
    assert large.bytes["vision"] > 24_000 * 1024 * 2


def test_the_same_request_gives_the_same_plan(qwen3_06b: ArchSpec, choose):
    plans = [plan_of(qwen3_06b, [700, 900], device=H200, choose=choose).to_dict() for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(("layers", "tokens"), [(28, 73_700), (1000, 500)])
def test_a_plan_of_a_thousand_layer_calls_takes_under_20_milliseconds(layers, tokens, qwen3_06b, real_choose):
    spec = replace(qwen3_06b, layers=qwen3_06b.layers[:1] * layers, max_positions=131_072)
    budget = 2**42
    best = 1.0
    for attempt in range(7):
        begin = time.thread_time()
        # Another length each time: a remembered path would be no plan.
        plan = plan_of(spec, [tokens + attempt], device=M2, choose=real_choose, new_tokens=9, budget=budget)
        best = min(best, time.thread_time() - begin)
    assert layers * len(plan.batches[0].steps) >= 1000
    assert best < 0.02


def test_weights_given_replace_the_estimate_and_its_note(qwen3_06b: ArchSpec, choose):
    guessed = plan_of(qwen3_06b, [10], device=M2, choose=choose)
    given = plan_of(qwen3_06b, [10], device=M2, choose=choose, weight_bytes=1_191_586_416)
    assert given.bytes["weights"] == 1_191_586_416
    assert guessed.bytes["weights"] == estimate_weights(qwen3_06b, "bfloat16").total
    assert len(given.notes) == len(guessed.notes) - 1


def test_a_device_without_rates_is_planned_conservatively_and_said(qwen3_06b: ArchSpec, choose):
    unknown = replace(M2, flops={"bfloat16": 0.0}, watchdog_seconds=None)
    plan = plan_of(qwen3_06b, [10], device=replace(unknown, flops={"float32": 5e12}), choose=_any(choose))
    assert any("states no rate for bfloat16" in note for note in plan.notes)


def _any(choose):
    def chooser(call, device, pin=None):
        return choose(call, replace(device, flops={call.dtype: 1e12}), pin)

    return chooser


def test_explain_names_paths_reasons_and_bytes(qwen3_06b: ArchSpec, choose):
    text = plan_of(qwen3_06b, [700, 900], device=M2, choose=choose, new_tokens=8).explain(verbose=True)
    for word in ("m2-ultra-128gb", "weights", "kv", "causal", "one, fused", "not tiles: slower", "planned", "decode"):
        assert word in text


def test_a_plan_is_json(qwen3_06b: ArchSpec, choose):
    plan = plan_of(qwen3_06b, [700, 900], device=M2, choose=choose, new_tokens=8)
    read = json.loads(json.dumps(plan.to_dict()))
    assert read["peak"] == sum(read["bytes"].values()) == plan.peak
