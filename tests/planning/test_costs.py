"""Weights and temporaries from a spec alone, against published and counted numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archport.contract import ArchSpec, AttentionLayer, Experts, Quantization
from archport.device.profiles import profile
from archport.planning import activations, estimate_weights
from archport.planning.activations import token_bytes
from archport.planning.in_flight import in_flight_cap

# Published checkpoints agree with `estimate_weights` to this share: position tables, biases and poolers are not in a
# spec, and a recurrent layer's matrices are read back from its state.
WEIGHT_TOLERANCE = 0.05


def close(guess: int, truth: int) -> bool:
    return abs(guess - truth) <= WEIGHT_TOLERANCE * truth


def test_qwen3_embedding_weighs_what_its_file_holds(qwen3_06b: ArchSpec):
    assert close(estimate_weights(qwen3_06b, "bfloat16").total, 1_191_586_416)


def test_a_bert_of_384_weighs_what_its_file_holds():
    layer = AttentionLayer("bidirectional", 12, 12, 32)
    spec = ArchSpec(
        arch="bert",
        tasks=("embed",),
        layers=(layer,) * 6,
        vocab_size=30_522,
        hidden_size=384,
        intermediate_size=1536,
        max_positions=512,
        gated_mlp=False,
    )
    assert close(estimate_weights(spec, "float32").total, 90_868_376)


def test_the_packed_hybrid_counts_scales_and_biases(hybrid_27b: ArchSpec):
    # 26.9 billion elements at 4.5 bits each.
    assert close(estimate_weights(hybrid_27b, "bfloat16").total, int(26.9e9 * 4.5 / 8))


def test_a_cpu_holds_quantised_weights_unpacked(hybrid_27b: ArchSpec):
    packed = estimate_weights(hybrid_27b, "bfloat16").total
    assert estimate_weights(hybrid_27b, "float32", packed=False).total > 7 * packed


@pytest.mark.parametrize(
    ("mode", "bits", "group", "per_element"),
    [("affine", 4, 64, 0.5625), ("affine", 8, 64, 1.0625), ("mxfp4", 4, 32, 0.53125), ("nvfp4", 4, 16, 0.5625)],
)
def test_each_packing_counts_its_scales(mode, bits, group, per_element, qwen3_06b: ArchSpec):
    plain = estimate_weights(qwen3_06b, "bfloat16").total
    packed = estimate_weights(replace(qwen3_06b, quantization=Quantization(bits, group, mode)), "bfloat16").total
    assert packed == pytest.approx(plain * per_element / 2, rel=0.001)


def test_all_experts_are_weighed_but_few_are_computed(qwen3_06b: ArchSpec):
    experts = Experts(count=128, per_token=8, intermediate_size=768, layers=tuple(range(28)))
    spec = replace(qwen3_06b, experts=experts)
    extra = estimate_weights(spec, "bfloat16").total - estimate_weights(qwen3_06b, "bfloat16").total
    assert extra == 28 * 2 * 1024 * (3 * (128 * 768 - 3072) + 128)


def test_an_evaluating_attention_holds_half_a_layer_only(qwen3_06b: ArchSpec):
    token = token_bytes(qwen3_06b, qwen3_06b.layers[0], False, "float32", "cpu")
    assert token.held < token.split < token.documents < token.lazy == token.unfused


# Floats per token that MLX's peak counter showed on a CPU, 64 x 32 tokens, heads of 64: (D, MLP, heads, KV heads,
# gated, attention evaluates by itself, floats). Blocks without a gate are BERT's, which rotate nothing.
MEASURED = [
    (256, 256, 4, 2, True, True, 3976),
    (512, 256, 4, 2, True, True, 5768),
    (256, 2048, 4, 2, True, True, 9352),
    (256, 256, 8, 2, True, True, 5004),
    (256, 256, 4, 4, True, True, 4362),
    (256, 256, 4, 4, False, True, 3844),
    (256, 2048, 4, 4, False, True, 5636),
    (256, 256, 8, 8, False, True, 5124),
    (256, 256, 4, 2, True, False, 5508 - 386),
    (256, 2048, 4, 2, True, False, 10_884 - 386),
    (256, 256, 8, 2, True, False, 7684 - 770),
    (256, 256, 4, 4, True, False, 7042 - 386),
    (256, 1024, 4, 4, False, False, 6276 - 386),
]


@pytest.mark.parametrize(("D", "inner", "heads", "kv", "gated", "evaluates", "floats"), MEASURED)
def test_temporaries_are_never_below_the_measurement_nor_a_quarter_above(D, inner, heads, kv, gated, evaluates, floats):
    layer = AttentionLayer("causal", heads, kv, 64)
    spec = ArchSpec(
        arch="x",
        tasks=("embed",),
        layers=(layer,),
        vocab_size=16,
        hidden_size=D,
        intermediate_size=inner,
        max_positions=512,
        gated_mlp=gated,
        rotary=gated,
    )
    token = token_bytes(spec, layer, False, "float32", "cpu")
    priced = 1.05 * (token.split if evaluates else token.lazy) / 4
    assert floats <= priced <= 1.27 * floats


def test_what_mlx_queues_is_bounded_on_every_kind_of_device():
    widest = 100 * 2**20
    for name, most in (("h200", 12e9), ("m2-ultra-128gb", 3e9), ("cpu", 11e9)):
        assert widest <= in_flight_cap(profile(name), widest, "bfloat16") <= most


def test_a_model_without_norms_on_q_and_k_is_priced_without_their_copies(qwen3_06b):
    layer = qwen3_06b.layers[0]
    with_norms = token_bytes(qwen3_06b, layer, False, "float32", "cpu", host=True)
    without = token_bytes(replace(qwen3_06b, qk_norm=False), layer, False, "float32", "cpu", host=True)
    assert without.held < with_norms.held
    assert without.lazy <= with_norms.lazy


def test_a_block_takes_the_rows_of_a_plainer_one_but_for_its_own(tmp_path, monkeypatch, qwen3_06b: ArchSpec):
    layer, table = qwen3_06b.layers[0], tmp_path / "temporaries.csv"
    before = token_bytes(qwen3_06b, layer, False, "bfloat16", "cuda")
    rows = activations.TABLE.read_text(encoding="utf-8")
    columns = rows.splitlines()[0].split(",")
    own = {"device": "cuda", "bytes": "any", "block": "pre-norm + normed heads", "quantity": "held", "D": "1", "q": "2"}
    table.write_text(rows + ",".join(own.get(name, "") for name in columns) + "\n", encoding="utf-8")
    monkeypatch.setattr(activations, "TABLE", table)
    for cached in (activations._table, activations._sums):
        cached.cache_clear()
    try:
        after = token_bytes(qwen3_06b, layer, False, "bfloat16", "cuda")
        assert after == replace(before, held=2 * (1024 + 2 * 2048))
    finally:
        for cached in (activations._table, activations._sums):
            cached.cache_clear()


def test_every_quantity_has_a_row_on_every_kind_of_device():
    known = {(row[0], row[2], row[3]) for row in activations._table()}
    for device in ("cpu", "cpu+host", "metal", "cuda"):
        for block in ("post-norm", "pre-norm", "delta net", "recurrence"):
            assert {(device, block, name) for name in ("lazy", "held", "mixer")} <= known
        assert {(device, f"{mlp} MLP", "inside") for mlp in ("gated", "plain", "experts")} <= known
