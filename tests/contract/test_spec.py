"""ArchSpec and LayerSpec refuse what contradicts itself, with the values in the message."""

import dataclasses
from dataclasses import replace

import pytest

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    Experts,
    Footprint,
    KVAllocation,
    MaskPolicy,
    RecurrentLayer,
    SpecError,
)
from archport.contract.spec import kv_sources

KEEPS = AttentionLayer("causal", 4, 2, 32, kv_group="a")
READS = AttentionLayer("causal", 4, 2, 32, kv="shared", kv_group="a")


def spec(**changes):
    facts = dict(
        arch="toy",
        tasks=("embed",),
        layers=(AttentionLayer("causal", 4, 2, 32),),
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        max_positions=512,
    )
    return ArchSpec(**{**facts, **changes})


def test_a_spec_can_not_be_changed_after_construction():
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().vocab_size = 3


def test_equal_layers_are_equal_values_so_a_plan_decides_once():
    assert len({AttentionLayer("causal", 4, 2, 32), AttentionLayer("causal", 4, 2, 32)}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(semantics="cusal"), "semantics='cusal'; expected 'causal' or 'bidirectional'"),
        (dict(n_heads=5), "n_heads=5 is not a multiple of n_kv_heads=2"),
        (dict(n_heads=True), "n_heads=True is not a positive integer"),
        (dict(head_dim=0), "head_dim=0 is not a positive integer"),
        (dict(head_dim=32.0), "head_dim=32.0 is not a positive integer"),
        (dict(v_head_dim=-1), "v_head_dim=-1 is not a positive integer"),
        (dict(reach=(-1, 0)), "reach left=-1"),
        (dict(reach=(3, 3)), "sees nothing to its right"),
        (dict(semantics="bidirectional", kv="own"), "bidirectional layer with kv='own' is impossible"),
        (dict(semantics="bidirectional", kv="shared", kv_group="a"), "is impossible"),
        (dict(kv="shared"), "kv='shared' without a kv_group"),
        (dict(kv="none", kv_group="a"), "kv_group='a' with kv='none'"),
        (dict(kv_group=3), "kv_group=3"),
        (dict(semantics="bidirectional", spans=True), "spans=True in a bidirectional layer"),
        (dict(kv="latent", v_head_dim=64), "v_head_dim=64 above head_dim=32"),
        (dict(softcap=0), "softcap=0"),
        (dict(softcap=float("inf")), "softcap=inf"),
        (dict(chunk=0), "chunk=0"),
        (dict(chunk=16, reach=(7, 0)), "a chunk is a reach of its own"),
        (dict(kv="paged"), "kv='paged'; expected one of own, shared, latent, none"),
    ],
)
def test_an_impossible_attention_layer_is_refused_with_its_values(arguments, message):
    with pytest.raises(SpecError) as refused:
        AttentionLayer(**{**dict(semantics="causal", n_heads=4, n_kv_heads=2, head_dim=32), **arguments})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch=""), "arch is empty"),
        (dict(tasks=()), "tasks=()"),
        (dict(tasks=("embed", "dance")), "dance"),
        (dict(layers=(), tasks=("embed", "rerank")), "layers is empty"),
        (dict(layers=("causal",)), "layer 0 is a str"),
        (dict(vocab_size=0), "vocab_size=0"),
        (dict(dtype="int4"), "dtype='int4'"),
        (dict(tasks=("generate",), layers=(AttentionLayer("causal", 4, 2, 32, kv="none"),)), "layer 0 keeps no cache"),
        (dict(layers=(READS,)), "no layer before it keeps any"),
        (dict(layers=(AttentionLayer("causal", 4, 2, 32, kv_group="b"), READS)), "no layer before it keeps any"),
        (
            dict(layers=(AttentionLayer("causal", 4, 4, 32, kv_group="a"), READS)),
            "layer 1 has n_kv_heads=2 and reads the keys of layer 0, which has 4",
        ),
        (dict(layers=(KEEPS, READS, replace(KEEPS, n_heads=8), READS)), "kv_group='a' for others differ"),
    ],
)
def test_an_impossible_spec_is_refused_with_its_values(changes, message):
    with pytest.raises(SpecError) as refused:
        spec(**changes)
    assert message in str(refused.value)


def test_a_causal_layer_keeps_a_cache_and_a_bidirectional_one_does_not():
    assert AttentionLayer("causal", 4, 2, 32).kv == "own"
    assert AttentionLayer("bidirectional", 4, 2, 32).kv == "none"


def test_a_causal_layer_reaches_nothing_to_its_right_however_it_is_written():
    assert AttentionLayer("causal", 4, 4, 8, reach=(511, None)).reach == (511, 0)
    assert not AttentionLayer("causal", 4, 4, 8).is_windowed
    assert AttentionLayer("bidirectional", 4, 4, 8, reach=(64, 64)).is_windowed


def test_semantics_of_a_spec_are_those_its_layers_agree_on():
    causal, both = AttentionLayer("causal", 4, 2, 32), AttentionLayer("bidirectional", 4, 2, 32)
    assert spec(layers=(causal,)).semantics == "causal"
    assert spec(layers=(both,)).semantics == "bidirectional"
    assert spec(layers=(causal, both)).semantics == "mixed"
    assert spec(layers=(RecurrentLayer(1024), causal)).semantics == "causal"


def test_head_dims_are_per_layer_and_listed_once():
    layers = (
        AttentionLayer("causal", 4, 2, 512),
        AttentionLayer("causal", 4, 2, 256),
        AttentionLayer("causal", 2, 2, 256),
    )
    assert spec(layers=layers).head_dims == (256, 512)


def test_experts_per_token_can_not_exceed_the_experts():
    with pytest.raises(SpecError, match="per_token=9 exceeds count=8"):
        Experts(count=8, per_token=9, intermediate_size=4, layers=(0,))


def test_a_kv_allocation_can_not_start_above_its_ceiling():
    with pytest.raises(SpecError, match="initial=5000, ceiling=4096"):
        KVAllocation("growing", 5000, 4096)


def test_a_causal_mask_contradicts_a_bidirectional_layer_and_nothing_else():
    assert MaskPolicy("causal").contradicts("bidirectional")
    assert not MaskPolicy("causal").contradicts("causal")
    assert not MaskPolicy("none").contradicts("bidirectional")


@pytest.mark.parametrize("value", [0, -3, True, 2.5, "many"])
@pytest.mark.parametrize("name", ["mixer", "mlp", "matrices"])
def test_a_footprint_counts_in_whole_numbers(name, value):
    with pytest.raises(SpecError, match=f"footprint: {name}={value!r}; expected an integer > 0, or None"):
        Footprint(**{name: value})


def test_a_layer_s_footprint_is_a_footprint():
    with pytest.raises(SpecError, match="attention layer: footprint=300; expected a Footprint, or None"):
        AttentionLayer("causal", 4, 2, 32, footprint=300)
    with pytest.raises(SpecError, match="recurrent layer: footprint=300; expected a Footprint, or None"):
        RecurrentLayer(state_bytes=8, footprint=300)


def test_a_layer_reads_the_last_one_of_its_group_before_it():
    other = AttentionLayer("causal", 4, 2, 32)
    layers = (KEEPS, other, READS, RecurrentLayer(8), KEEPS, READS, READS)
    assert kv_sources(layers) == (0, 1, 0, None, 4, 4, 4)
    assert kv_sources((READS,)) == (None,)
