"""gpt-oss: experts in every layer, sinks in every softmax, every other layer windowed, positions stretched by yarn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Experts, Footprint, Trunk

from archport_decoders.declaring import TINY, attention, declared, filled

ARCHITECTURES = ("GptOssModel", "GptOssForCausalLM")
# Of transformers' GptOssConfig.
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
DEFAULTS = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "rope_theta": 150000.0,
    "tie_word_embeddings": False,
}
KEYS = ConfigKeys(
    "gpt-oss",
    obeyed={*DEFAULTS, *ROPE_KEYS, "num_local_experts", "sliding_window", "layer_types"},
    # Experts have an activation of their own, whatever `hidden_act` says.
    inert={"hidden_act", "initial_context_length", "experts_per_token"},
)


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class takes for keys that a file leaves out."""
    found = filled(config, DEFAULTS)
    found.setdefault("rope_scaling", YARN)
    kinds = ("sliding_attention", "full_attention")
    if not found.get("layer_types"):
        found["layer_types"] = [kinds[index % 2] for index in range(found["num_hidden_layers"])]
    return found


def footprint(config: Mapping[str, Any]) -> Footprint:
    """Yarn's gain and biases make archport's attention copy q and k more often than plans take it to."""
    D, width = config["hidden_size"], config["head_dim"]
    q, k = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    # Norm, output and sum; q and k projected, stretched, turned and handed over; v; attention's answer and its copy.
    return Footprint(mixer=3 * D + 4 * (q + k) + k + 2 * q)


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    window, config = config.get("sliding_window", 128), read(config)
    return declared(
        config,
        "gpt_oss",
        (
            attention(
                config, window=window if kind == "sliding_attention" else None, sinks=True, footprint=footprint(config)
            )
            for kind in config["layer_types"]
        ),
        experts=Experts(
            count=config["num_experts"],
            per_token=config["num_experts_per_tok"],
            intermediate_size=config["intermediate_size"],
            layers=tuple(range(config["num_hidden_layers"])),
            biases=True,
        ),
        qk_norm=False,
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.gpt_oss.model import GptOss

    return GptOss(spec, read(config))


def examples() -> Sequence[Example]:
    def publish(weights: Mapping[str, Any]) -> Mapping[str, Any]:
        from archport_decoders.gpt_oss.published import published

        return published(weights)

    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **TINY,
        "intermediate_size": 48,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "swiglu_limit": 1.0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {**YARN, "factor": 8.0, "original_max_position_embeddings": 64},
        "sliding_window": 24,
        "attention_bias": True,
    }
    return [Example("gpt-oss, sinks, stretched positions", config, publish=publish)]
