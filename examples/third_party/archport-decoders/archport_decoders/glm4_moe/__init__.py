"""GLM-4 MoE (GLM-4.5, 4.6): dense layers, then experts chosen by sigmoid with a bias; half of each head is rotated.

Published files end in layers that draft tokens (`num_nextn_predict_layers`). They take no part in an answer, here as in
transformers, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ROPE_KEYS, ArchSpec, ConfigKeys, Example, Experts, Trunk

from archport_decoders.declaring import TINY, attention, declared, filled

ARCHITECTURES = ("Glm4MoeModel", "Glm4MoeForCausalLM")
# Of transformers' Glm4MoeConfig.
DEFAULTS = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "use_qk_norm": False,
}
KEYS = ConfigKeys(
    "glm4-moe",
    obeyed={*DEFAULTS, *ROPE_KEYS, "head_dim", "num_local_experts"},
    # The drafting layers; and what archport's reader of configs adds.
    inert={"num_nextn_predict_layers", "num_mtp_layers", "num_experts"},
    # Of other models that route alike.
    refused={"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
)


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what its class takes for keys that a file leaves out."""
    found = filled(config, DEFAULTS)
    # transformers' name for it, which wins.
    found["n_routed_experts"] = found.get("num_local_experts") or found["n_routed_experts"]
    # A file that says null has whole heads rotated.
    share = found.get("partial_rotary_factor", 0.5)
    found["partial_rotary_factor"] = 1.0 if share is None else share
    return found


def claim(config: Mapping[str, Any]) -> ArchSpec:
    KEYS.check(config)
    config = read(config)
    sparse = tuple(range(config["first_k_dense_replace"], config["num_hidden_layers"]))
    experts = Experts(
        count=config["n_routed_experts"],
        per_token=config["num_experts_per_tok"],
        intermediate_size=config["moe_intermediate_size"],
        shared_intermediate_size=config["moe_intermediate_size"] * config["n_shared_experts"],
        layers=sparse,
    )
    return declared(
        config,
        "glm4_moe",
        (attention(config),) * config["num_hidden_layers"],
        experts=experts if sparse else None,
        qk_norm=bool(config["use_qk_norm"]),
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_decoders.glm4_moe.model import Glm4Moe

    return Glm4Moe(spec, read(config))


def examples() -> Sequence[Example]:
    def apart(weights: Mapping[str, Any]) -> Mapping[str, Any]:
        from archport_decoders.glm4_moe.published import published

        return published(weights)

    def stacked(weights: Mapping[str, Any]) -> Mapping[str, Any]:
        from archport_decoders.glm4_moe.published import stacked

        return stacked(weights)

    # GLM-4.5-Air's file, shrunk.
    config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        **TINY,
        "num_hidden_layers": 3,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "first_k_dense_replace": 1,
        "initializer_range": 0.02,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_qk_norm": False,
    }
    # GLM-4.5 normalises q and k and scales its experts; groups and several shared experts nobody published yet.
    more = {
        "num_hidden_layers": 2,
        "attention_bias": False,
        "use_qk_norm": True,
        "routed_scaling_factor": 2.5,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
        "tie_word_embeddings": True,
    }
    return [
        Example("glm-4.5-air, shrunk", config, publish=apart),
        Example("glm-4 moe, normed heads, groups, a tied head", {**config, **more}, seed=1, publish=stacked),
    ]
