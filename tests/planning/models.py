"""Specs of the models that plans are tested with, from published configs where there are any."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from archport.checkpoint import normalise_config, read_quantization
from archport.contract import ArchSpec, AttentionLayer
from archport.contract.plugins import claim, discover

HERE = Path(__file__).parent


def models() -> dict[str, ArchSpec]:
    return {
        "qwen3_06b": qwen3_06b(),
        "hybrid_27b": published("qwen35_27b_4bit"),
        # The shape of the 122B model with 64 query heads.
        "hybrid_122b": published("qwen35_122b_a10b_4bit"),
        "windowed": windowed(),
        "bert": bert(),
    }


def qwen3_06b() -> ArchSpec:
    """Qwen3-Embedding-0.6B, from its published config."""
    config = json.loads((HERE / "data" / "qwen3_embedding_06b.json").read_text())
    layer = AttentionLayer(
        semantics="causal",
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
    )
    return ArchSpec(
        arch="qwen3",
        tasks=("embed", "generate"),
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config["torch_dtype"],
        tied_head=config["tie_word_embeddings"],
    )


def published(name: str) -> ArchSpec:
    """What the plugin of a stored config declares, packed as the config says."""
    config = normalise_config(json.loads((HERE / "data" / f"{name}.json").read_text()))
    _, spec = claim(config, discover())
    return replace(spec, quantization=read_quantization(config))


def windowed() -> ArchSpec:
    """Five windowed layers to one full one, causal."""
    near = AttentionLayer(semantics="causal", n_heads=8, n_kv_heads=4, head_dim=128, reach=(511, 0))
    far = AttentionLayer(semantics="causal", n_heads=8, n_kv_heads=4, head_dim=128)
    return ArchSpec(
        arch="windowed",
        tasks=("generate",),
        layers=((near,) * 5 + (far,)) * 4,
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        max_positions=131_072,
        dtype="bfloat16",
    )


def bert() -> ArchSpec:
    """A base BERT with a long position table."""
    layer = AttentionLayer(semantics="bidirectional", n_heads=12, n_kv_heads=12, head_dim=64)
    return ArchSpec(
        arch="bert",
        tasks=("embed",),
        layers=(layer,) * 12,
        vocab_size=30_522,
        hidden_size=768,
        intermediate_size=3072,
        max_positions=8192,
        gated_mlp=False,
    )
