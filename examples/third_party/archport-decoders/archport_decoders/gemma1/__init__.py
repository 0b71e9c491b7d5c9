"""Gemma, the first: Llama's blocks with norms that store their distance from one, wide heads and scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Trunk

from archport_decoders.declaring import GEMMA_DTYPES, TINY, attention, declared, filled

ARCHITECTURES = ("GemmaModel", "GemmaForCausalLM")
# Of transformers' GemmaConfig.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
# Files of later versions repeat the activation under a name that the class does not read.
KEYS = ConfigKeys("gemma", obeyed={*DEFAULTS, *ROPE_KEYS}, inert={"hidden_activation"})


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class takes for keys that a file leaves out."""
    found = filled(config, DEFAULTS)
    # The first official files say gelu, and the class takes that for its approximation.
    if found["hidden_act"] == "gelu":
        found["hidden_act"] = "gelu_pytorch_tanh"
    return found


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    config = read(config)
    layers = (attention(config),) * config["num_hidden_layers"]
    return declared(config, "gemma", layers, dtypes_refused=GEMMA_DTYPES, qk_norm=False)


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.gemma1.model import Gemma1

    return Gemma1(spec, read(config))


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        **TINY,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "gelu",
    }
    more = {"head_dim": 32, "hidden_act": "gelu_pytorch_tanh", "attention_bias": True}
    return [
        Example("gemma, one key head, the first files' activation", config),
        Example("gemma, a head_dim of its own, biases", {**config, **more}, seed=1),
    ]
