"""Mistral: dense decoders whose layers all see a window, or everything; with `layer_types`, each as it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Trunk

from archport_decoders.declaring import TINY, attention, declared, filled

ARCHITECTURES = ("MistralModel", "MistralForCausalLM")
# Of transformers' MistralConfig.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
KEYS = ConfigKeys(
    "mistral",
    obeyed={*DEFAULTS, *ROPE_KEYS, "num_key_value_heads", "head_dim", "sliding_window", "layer_types"},
)


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    # Null means that there is none; only a key that is left out means the class's.
    window = config.get("sliding_window", 4096)
    config = filled(config, DEFAULTS)
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types") or ["sliding_attention"] * layers
    return declared(
        config,
        "mistral",
        (attention(config, window=window if kind == "sliding_attention" else None) for kind in kinds),
        qk_norm=False,
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.mistral.model import Mistral

    return Mistral(spec, filled(config, DEFAULTS))


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **TINY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 24,
    }
    whole = {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 32, "rope_theta": 1000000.0}
    return [
        Example("mistral, every layer windowed", config),
        Example("mistral, no window, a stated head_dim, a tied head", {**config, **whole}, seed=1),
    ]
