"""Llama 2 and 3: dense decoders that see everything; Llama 3 stretches slow positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Trunk

from archport_decoders.declaring import TINY, attention, declared

# With `causal` false these are embedding models, which are not ours.
ARCHITECTURES = ("LlamaModel", "LlamaForCausalLM")
# What a file leaves out archport fills in: it knows the class.
KEYS = ConfigKeys(
    "llama",
    obeyed={
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
        *("num_key_value_heads", "max_position_embeddings", "hidden_act", "rms_norm_eps"),
        *("attention_bias", "mlp_bias", *ROPE_KEYS),
    },
)


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    return declared(config, "llama", (attention(config),) * config["num_hidden_layers"], qk_norm=False)


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.llama.model import Llama

    return Llama(spec, config)


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **TINY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    stretched = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    biases = {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "tie_word_embeddings": True}
    return [
        Example("llama 3, stretched positions", {**config, "rope_scaling": stretched}),
        Example("llama, biases, a stated head_dim, a tied head", {**config, **biases}, seed=1),
    ]
