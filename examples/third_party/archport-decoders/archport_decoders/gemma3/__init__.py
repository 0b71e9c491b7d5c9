"""Gemma 3, the text model: five windowed layers to one that sees everything, each kind with positions of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Footprint, Trunk

from archport_decoders.declaring import GEMMA_DTYPES, TINY, attention, declared

# With `causal` false these are embedding models, which are not ours.
ARCHITECTURES = ("Gemma3TextModel", "Gemma3ForCausalLM")
# What a file leaves out archport fills in: it knows the class.
OBEYED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "hidden_activation", "rms_norm_eps", "attention_bias"),
    *("query_pre_attn_scalar", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "layer_types"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
KEYS = ConfigKeys("gemma3", obeyed={*OBEYED, *ROPE_KEYS}, inert={"cache_implementation", "hidden_act"})


def footprint(config: Mapping[str, Any]) -> Footprint:
    """What a block with a norm before and after each half makes: plans take blocks to have one before each."""
    D, width = config["hidden_size"], config["head_dim"]
    q, k = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    # Norm, output, its norm and the sum; q, k and v; q and k normalised, turned, and copied by either; the answer and a
    # copy. Then the same four around gate, up and their product.
    return Footprint(mixer=4 * D + q + 2 * k + 4 * (q + k) + 2 * q, mlp=4 * D + 3 * config["intermediate_size"])


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    window, cap = config["sliding_window"], config.get("attn_logit_softcapping")
    return declared(
        config,
        "gemma3",
        (
            attention(
                config, window=window if kind == "sliding_attention" else None, softcap=cap, footprint=footprint(config)
            )
            for kind in config["layer_types"]
        ),
        dtypes_refused=GEMMA_DTYPES,
        logit_softcap=config.get("final_logit_softcapping"),
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.gemma3.model import Gemma3

    return Gemma3(spec, config)


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **TINY,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 24,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 24,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    more = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 5.0, "head_dim": 32}
    return [
        Example("gemma 3, two windowed layers and one that sees everything", config),
        Example("gemma 3, stretched positions, capped logits", {**config, **more}, seed=1),
    ]
