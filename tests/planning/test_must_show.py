"""The requests that made other implementations fail, planned for machines they failed on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archport.attention import Chooser
from archport.contract import (
    ArchSpec,
    AttentionCall,
    AttentionLayer,
    AttentionLimits,
    AttentionPath,
    BufferTooLarge,
    MaskPolicy,
    RecurrentLayer,
)
from archport.device.profiles import profile
from archport.testing.plans import plan_of

SAMPLED = ("m1-16gb", "m2-ultra-128gb", "m3-ultra-256gb", "m4-pro-24gb", "m5-max-128gb", "h200", "cpu")

M2 = profile("m2-ultra-128gb")


def test_32_rows_of_32768_tokens_fit_an_m2_ultra(qwen3_06b: ArchSpec, real_choose: Chooser):
    plan = plan_of(qwen3_06b, [32_768] * 32, device=M2, choose=real_choose)
    assert plan.peak <= plan.budget
    assert sorted(row for batch in plan.batches for row in batch.rows) == list(range(32))
    assert plan.bytes["mask"] == 0
    assert plan.work.seconds <= 0.5


def test_the_same_with_a_dense_mask_is_refused_with_its_137_gigabytes(qwen3_06b: ArchSpec, real_choose: Chooser):
    with pytest.raises(BufferTooLarge, match=r"137,438,953,472.*86,586,540,032") as refused:
        plan_of(qwen3_06b, [32_768] * 32, device=M2, choose=real_choose, dense=True)
    assert refused.value.required_bytes == 137_438_953_472
    assert refused.value.limit_bytes == 86_586_540_032
    assert refused.value.code == "buffer_too_large"
    assert refused.value.max_rows_that_fit == 20


def test_the_27b_hybrid_takes_327000_tokens_on_an_m2_ultra(hybrid_27b: ArchSpec, real_choose: Chooser):
    plan = plan_of(hybrid_27b, [327_000], device=M2, choose=real_choose, new_tokens=500)
    scratch = [
        path.price.transient for step in plan.batches[0].steps for path in step.paths if isinstance(path, AttentionPath)
    ]
    assert plan.peak <= plan.budget
    # 24 query heads x 2,048 x 327,000 scores in 16 bits would be 32 GB.
    assert max(scratch) <= AttentionLimits().transient_on(M2) < 4e9
    assert max(scratch) <= plan.bytes["attention"]
    assert plan.work.seconds <= 0.5


def test_only_a_quarter_of_the_hybrids_layers_pays_for_its_context(hybrid_27b: ArchSpec, real_choose: Chooser):
    plan = plan_of(hybrid_27b, [327_000], device=M2, choose=real_choose, new_tokens=0, mode="generate")
    state = 48 * (48 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 48 * 128) * 4)
    assert plan.bytes["kv"] == 16 * 327_168 * 4 * (256 + 256) * 2 + state


def test_1000_tokens_behind_99000_cached_grow_the_cache_by_1000_and_see_100000(
    hybrid_27b: ArchSpec, real_choose: Chooser
):
    plan = plan_of(hybrid_27b, [1000], device=M2, choose=real_choose, cached=99_000)
    per_token = 16 * 4 * (256 + 256) * 2
    rounded = 100_096 - 99_072
    assert plan.bytes["kv"] == rounded * per_token
    assert rounded <= 1000 + 256
    assert plan.bytes["kv_cached"] >= 99_000 * per_token
    calls = [path.call for step in plan.batches[0].steps for path in step.paths if isinstance(path, AttentionPath)]
    # Padded to a width that recurs.
    assert (calls[-1].q_len, calls[-1].kv_len) == (1008, 100_008)


CASES = [(2048, 16_384), (2048, 65_536), (2048, 131_072), (1, 131_072)]


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("head_dim", [192, 256])
@pytest.mark.parametrize(("q_len", "kv_len"), CASES)
def test_wide_heads_never_materialise_their_scores_nor_outlast_the_watchdog(
    name: str, head_dim: int, q_len: int, kv_len: int, real_choose: Chooser
):
    device = profile(name)
    dtype = "float32" if device.kind == "cpu" else "bfloat16"
    layer = AttentionLayer("causal", 24, 4, head_dim)
    call = AttentionCall.of(
        layer, MaskPolicy("causal" if q_len > 1 else "none"), device, B=1, q_len=q_len, kv_len=kv_len, dtype=dtype
    )
    path = real_choose(call, device)
    limit = call.limits.transient_on(device)
    assert path.excess == ""
    assert path.price.transient <= limit
    if call.score_bytes > limit:
        assert path.price.transient < call.score_bytes
    bound = call.limits.seconds_on(device)
    assert bound is None or path.price.dispatch_seconds <= bound


@pytest.mark.parametrize("name", SAMPLED)
def test_a_long_prompt_of_wide_heads_is_planned_within_every_limit_of_every_machine(name: str, real_choose: Chooser):
    layer = AttentionLayer("causal", 24, 4, 256)
    spec = ArchSpec(
        arch="wide",
        tasks=("generate",),
        layers=(layer,) * 4,
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=6144,
        max_positions=262_144,
        dtype="bfloat16",
    )
    device = profile(name)
    plan = plan_of(spec, [131_072], device=device, choose=real_choose, new_tokens=16, budget=10 * 2**30)
    assert plan.peak <= plan.budget
    assert plan.largest_buffer.cap is None or plan.largest_buffer.bytes <= plan.largest_buffer.cap
    assert plan.work.limit is None or plan.work.seconds <= plan.work.limit


@pytest.mark.parametrize("device", ["m2-ultra-128gb", "m5-max-128gb"])
@pytest.mark.parametrize("tokens", [131_072, 262_144])
@pytest.mark.parametrize(("name", "layers", "kv_heads"), [("hybrid_27b", 64, 4), ("hybrid_122b", 48, 2)])
def test_four_bit_hybrids_run_to_the_end_of_their_context_beside_their_weights(
    name: str, layers: int, kv_heads: int, tokens: int, device: str, models: dict[str, ArchSpec], real_choose: Chooser
):
    plan = plan_of(models[name], [tokens - 512], device=profile(device), choose=real_choose, new_tokens=512)
    state = sum(each.state_bytes + each.conv_bytes for each in models[name].layers if isinstance(each, RecurrentLayer))
    assert plan.peak <= plan.budget
    # Keys and values on every fourth layer; the others keep their state, whatever the length.
    assert plan.bytes["kv"] == layers // 4 * tokens * kv_heads * (256 + 256) * 2 + state
    # Scores of 2,048 queries by all keys would be 13 to 69 GB.
    assert plan.bytes["attention"] < 4e9
    assert plan.work.seconds <= 0.5


@pytest.mark.parametrize("name", [name for name in SAMPLED if profile(name).kind == "metal"])
def test_131072_tokens_of_four_hybrid_layers_keep_every_metal_watchdog(
    name: str, models: dict[str, ArchSpec], real_choose: Chooser
):
    spec = replace(models["hybrid_27b"], layers=models["hybrid_27b"].layers[:4], hidden_size=2560)
    plan = plan_of(spec, [131_072], device=profile(name), choose=real_choose, new_tokens=16)
    assert plan.peak <= plan.budget
    assert plan.work.limit is not None
    assert plan.work.seconds <= plan.work.limit
