"""Llama 2 and 3: dense causal decoders. Claims `LlamaModel` and `LlamaForCausalLM` that are not bidirectional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ArchSpec, AttentionLayer, Example, Trunk, hookimpl

ARCHITECTURES = ("LlamaModel", "LlamaForCausalLM")
# Where archport-decoders, whose Llama generates too, is installed, it is the one that loads a Llama.
ARCHPORT_STEPS_BACK = True


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    if not config.get("causal", True) or not any(name in ARCHITECTURES for name in config.get("architectures") or []):
        return None
    heads = config["num_attention_heads"]
    layer = AttentionLayer(
        "causal",
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    )
    return ArchSpec(
        arch="llama",
        tasks=("embed",),
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config.get("max_position_embeddings", 2048),
        dtype=config.get("dtype", "float32"),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        qk_norm=False,
    )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_llama.model import Llama

    return Llama(spec, config)


@hookimpl
def archport_examples() -> Sequence[Example]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 176,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 199,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    llama3 = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    return [
        Example("llama 2, one key head per query head", {**config, "num_key_value_heads": 4}),
        Example("llama 3, grouped heads, stretched positions", {**config, "rope_scaling": llama3}, seed=1),
        Example("biases and a stated head_dim", {**config, "head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    ]
