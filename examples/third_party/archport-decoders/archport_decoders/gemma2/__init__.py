"""Gemma 2: capped scores, windows in every other layer, norms before and after each half of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Footprint, Trunk

from archport_decoders.declaring import GEMMA_DTYPES, TINY, attention, declared, filled

ARCHITECTURES = ("Gemma2Model", "Gemma2ForCausalLM")
# Of transformers' Gemma2Config.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
# Where null means that there is none, and only a key that is left out the class's.
ABSENT = {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
KEYS = ConfigKeys(
    "gemma2", obeyed={*DEFAULTS, *ABSENT, *ROPE_KEYS, "layer_types"}, inert={"cache_implementation", "hidden_act"}
)


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class takes for keys that a file leaves out."""
    found = {**ABSENT, **filled(config, DEFAULTS)}
    kinds = ("sliding_attention", "full_attention")
    if not found.get("layer_types"):
        found["layer_types"] = [kinds[index % 2] for index in range(found["num_hidden_layers"])]
    return found


def footprint(config: Mapping[str, Any]) -> Footprint:
    """What a block with a norm before and after each half makes: plans take blocks to have one before each."""
    D, width = config["hidden_size"], config["head_dim"]
    q, k = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    # Norm, output, its norm and the sum; q, k and v; q and k turned, and copied; the answer and a copy. Then the same
    # four around gate, up and their product.
    return Footprint(mixer=4 * D + q + 2 * k + 3 * (q + k) + 2 * q, mlp=4 * D + 3 * config["intermediate_size"])


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    config = read(config)
    window, shared = config["sliding_window"], {"footprint": footprint(config)}
    return declared(
        config,
        "gemma2",
        (
            attention(
                config,
                window=window if kind == "sliding_attention" else None,
                softcap=config["attn_logit_softcapping"],
                **shared,
            )
            for kind in config["layer_types"]
        ),
        dtypes_refused=GEMMA_DTYPES,
        qk_norm=False,
        logit_softcap=config["final_logit_softcapping"],
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.gemma2.model import Gemma2

    return Gemma2(spec, read(config))


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **TINY,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 24,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    plain = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 32}
    return [
        Example("gemma 2, capped scores, every other layer windowed", config),
        Example("gemma 2, no caps, a head_dim of its own", {**config, **plain}, seed=1),
    ]
