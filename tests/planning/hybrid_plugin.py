"""A plugin of the tests that claims the hybrid shape: gated delta nets with full attention in every fourth layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract import ArchSpec, AttentionLayer, LayerSpec, Quantization, RecurrentLayer, hookimpl


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    if config.get("architectures") != ["Qwen3_5ForConditionalGeneration"]:
        return None
    text = config["text_config"]
    full = AttentionLayer(
        semantics="causal",
        n_heads=text["num_attention_heads"],
        n_kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
    )
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
    taps = text["linear_conv_kernel_dim"]
    gdn = RecurrentLayer(
        state_bytes=values * text["linear_key_head_dim"] * 4,
        conv_taps=taps,
        conv_bytes=(taps - 1) * (2 * keys + values) * 2,
    )
    layers: dict[str, LayerSpec] = {"full_attention": full, "linear_attention": gdn}
    packed = config.get("quantization")
    return ArchSpec(
        arch="hybrid",
        tasks=("generate",),
        layers=tuple(layers[kind] for kind in text["layer_types"]),
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        max_positions=text["max_position_embeddings"],
        dtype=text["torch_dtype"],
        tied_head=text["tie_word_embeddings"],
        quantization=Quantization(**packed) if packed else None,
    )
