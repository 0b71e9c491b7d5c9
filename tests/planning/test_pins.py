"""What hooks fix is kept, said and refused where it is wrong; the planner asks each of them once."""

from __future__ import annotations

import pytest

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    ContextLengthExceeded,
    InputError,
    KVAllocation,
    MaskPolicy,
    MemoryBudgetExceeded,
    PluginError,
)
from archport.device.profiles import profile
from archport.planning import NoPins
from archport.testing.plans import plan_of

M2, H200 = profile("m2-ultra-128gb"), profile("h200")
GIB = 2**30


class Pinned(NoPins):
    def __init__(self, mask=None, kv=None, chunk=None, backend=None):
        self.asked: list[tuple] = []
        self.mask, self.kv, self.chunk, self.backend = mask, kv, chunk, backend

    def mask_policy(self, spec, layer, shape):
        self.asked.append(("mask", layer, shape))
        return self.mask

    def kv_allocation(self, spec, layer, shape, limits):
        self.asked.append(("kv", layer, shape))
        return self.kv

    def prefill_chunk(self, spec, shape, device):
        self.asked.append(("chunk", shape))
        return self.chunk

    def sdpa_backend(self, spec, layer, call, device):
        self.asked.append(("backend", layer, call.B, call.q_len))
        return self.backend


def test_a_plugins_chunk_is_an_upper_bound(qwen3_06b: ArchSpec, choose):
    plan = plan_of(qwen3_06b, [9000], device=M2, choose=choose, new_tokens=9, pins=Pinned(chunk=700))
    assert plan.chunk == 512
    tight = plan_of(
        qwen3_06b, [9000], device=M2, choose=choose, new_tokens=9, pins=Pinned(chunk=700), budget=plan.minimum + 2**20
    )
    assert tight.chunk < 512


def test_a_mask_that_hides_what_a_layer_must_see_is_an_error_that_names_the_plugin(bert: ArchSpec, choose):
    with pytest.raises(PluginError, match=r"acme \(acme 1.0\).*'causal'.*bidirectional"):
        plan_of(bert, [50], device=M2, choose=choose, pins=Pinned(mask=MaskPolicy("causal")), plugin="acme (acme 1.0)")


def test_a_mask_that_shows_what_a_layer_must_not_see_is_an_error(qwen3_06b: ArchSpec, choose):
    with pytest.raises(PluginError, match="pins 'none' for a causal layer"):
        plan_of(qwen3_06b, [50], device=M2, choose=choose, pins=Pinned(mask=MaskPolicy("none")))


def test_a_pinned_backend_is_taken_and_said(qwen3_06b: ArchSpec, choose):
    plan = plan_of(qwen3_06b, [50], device=M2, choose=choose, pins=Pinned(backend="tiles"), plugin="acme")
    path = plan.batches[0].steps[0].paths[0]
    assert path is not None
    assert path.backend.name == "tiles"
    assert plan.batches[0].kinds[0].pins == ("archport_sdpa_backend of acme: tiles",)


@pytest.mark.parametrize("backend", ["fused", "tiled"])
@pytest.mark.parametrize("name", ["m2-ultra-128gb", "h200"])
def test_a_pinned_backend_runs_padded_rows_though_it_takes_none_one_by_one(backend, name, bert: ArchSpec, real_choose):
    plan = plan_of(
        bert, [300, 200, 100], device=profile(name), choose=real_choose, pins=Pinned(backend=backend), dtype="bfloat16"
    )
    for batch in plan.batches:
        for kind, path in zip(batch.kinds, batch.steps[0].paths, strict=True):
            if batch.shape.ragged:
                assert path.backend.name == backend
                assert kind.mask is not None
                assert kind.mask.kind == "key_padding"


def test_a_pinned_backend_that_takes_no_way_says_why(bert: ArchSpec, real_choose):
    with pytest.raises(InputError, match="'host' refuses"):
        plan_of(bert, [300, 200], device=M2, choose=real_choose, pins=Pinned(backend="host"), dtype="bfloat16")


def test_a_pinned_backend_that_does_not_fit_is_named_as_what_binds(choose):
    layer = AttentionLayer("causal", 64, 8, 256)
    spec = ArchSpec(
        arch="wide",
        tasks=("embed",),
        layers=(layer,) * 2,
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1024,
        max_positions=2**20,
        dtype="bfloat16",
    )
    with pytest.raises(MemoryBudgetExceeded, match="the pin is what binds") as refused:
        plan_of(spec, [200_000], device=M2, choose=choose, pins=Pinned(backend="one"), plugin="acme", budget=2 * GIB)
    assert "acme" in refused.value.binding


def test_a_pinned_cache_that_can_not_hold_the_layer_is_an_error(qwen3_06b: ArchSpec, choose):
    with pytest.raises(PluginError, match="sees all of them"):
        plan_of(qwen3_06b, [50], device=M2, choose=choose, new_tokens=5, pins=Pinned(kv=KVAllocation("ring", 64, 64)))


def test_a_pinned_ceiling_below_the_request_is_a_refusal_that_says_so(qwen3_06b: ArchSpec, choose):
    pins = Pinned(kv=KVAllocation("planned", 64, 64))
    with pytest.raises(ContextLengthExceeded, match=r"105 tokens.*pins a ceiling of 64"):
        plan_of(qwen3_06b, [100], device=M2, choose=choose, new_tokens=5, pins=pins)


def test_a_pinned_cache_without_which_a_request_would_fit_is_named_as_what_binds(qwen3_06b: ArchSpec, choose):
    def refused(pin: KVAllocation, share: float) -> MemoryBudgetExceeded:
        with pytest.raises(MemoryBudgetExceeded) as caught:
            plan(pins=Pinned(kv=pin), plugin="acme", budget=int(share * plan().minimum))
        return caught.value

    def plan(**options):
        return plan_of(qwen3_06b, [100], device=M2, choose=choose, new_tokens=5, **options)

    large = refused(KVAllocation("planned", 32_768, 32_768), 2)
    assert "the pin is what binds (archport_kv_allocation of acme: planned, 32,768 tokens" in large.binding
    assert "the pin" not in refused(KVAllocation("planned", 32_768, 32_768), 0.5).binding
    assert "the pin" not in refused(KVAllocation("planned", 256, 256, bits=4), 0.5).binding


def test_quantised_caches_are_priced_with_both_widths_of_one_layer(qwen3_06b: ArchSpec, choose):
    pins = Pinned(kv=KVAllocation("planned", 8192, 8192, bits=4))
    plan = plan_of(qwen3_06b, [8000], device=M2, choose=choose, new_tokens=100, pins=pins)
    elements = 8192 * 8 * 256
    assert plan.bytes["kv"] == 28 * (elements // 2 + elements // 64 * 4)
    assert plan.bytes["kv_conversion"] >= elements * 2


@pytest.mark.parametrize(("new", "hooks"), [(0, {"mask", "chunk", "backend"}), (9, {"mask", "kv", "chunk", "backend"})])
def test_hooks_are_asked_once_per_kind_and_shape_and_not_per_layer(new, hooks, qwen3_06b: ArchSpec, choose):
    pins = Pinned()
    plan_of(qwen3_06b, [500] * 20, device=H200, choose=choose, pins=pins, new_tokens=new)
    assert {asked[0] for asked in pins.asked} == hooks
    assert len(pins.asked) == len(set(pins.asked)) < 28
