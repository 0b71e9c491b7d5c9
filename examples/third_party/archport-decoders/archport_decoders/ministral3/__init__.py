"""Ministral 3: Mistral's blocks, positions stretched by yarn, and queries that grow with their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Footprint, SpecError, Trunk

from archport_decoders.declaring import TINY, attention, declared, filled

ARCHITECTURES = ("Ministral3Model", "Ministral3ForCausalLM")
# Of transformers' Ministral3Config.
DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
# Every layer sees the same, whatever a file says of kinds.
KEYS = ConfigKeys("ministral3", obeyed={*DEFAULTS, *ROPE_KEYS, "sliding_window"}, inert={"layer_types"})


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class takes for keys that a file leaves out.

    Raises:
        SpecError: a rope that does not say how queries grow, without which the reference fails too.
    """
    found = filled(config, DEFAULTS)
    if not found.get("rope_scaling"):
        if found.get("rope_theta") is not None:
            raise SpecError("ministral3: the rope of config.json has no llama_4_scaling_beta; expected a number")
        found |= {"rope_theta": 1000000.0, "rope_scaling": YARN}
    missing = [key for key in GROWTH if not isinstance(found["rope_scaling"].get(key), int | float)]
    if missing:
        raise SpecError(f"ministral3: the rope of config.json has no {' and no '.join(missing)}; expected a number")
    return found


# How much queries grow, and each time by how many tokens.
GROWTH = ("llama_4_scaling_beta", "original_max_position_embeddings")


def footprint(config: Mapping[str, Any]) -> Footprint:
    """Queries are copied once more than in archport's attention, and both copies stand beside what yarn scales."""
    D, width = config["hidden_size"], config["head_dim"]
    q, k = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    # Norm, output and sum; q and k projected, stretched, turned and handed over; q grown; v; the answer and its copy.
    return Footprint(mixer=3 * D + 4 * (q + k) + q + k + 2 * q)


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    config = read(config)
    layer = attention(config, window=config.get("sliding_window"), footprint=footprint(config))
    return declared(config, "ministral3", (layer,) * config["num_hidden_layers"], qk_norm=False)


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.ministral3.model import Ministral3

    return Ministral3(spec, read(config))


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        **TINY,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            **YARN,
            "rope_theta": 1000000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.4,
        },
    }
    return [
        Example("ministral 3, queries that grow", config),
        Example(
            "ministral 3, windows, a tied head", {**config, "sliding_window": 24, "tie_word_embeddings": True}, seed=1
        ),
    ]
