"""DeepSeek-V3 as an outside plugin would write it: a latent cache, groups of experts, positions stretched by yarn."""

from archport.contract import ArchSpec, AttentionLayer, Example, Experts, Footprint, hookimpl

# Every layer dense, plain positions.
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 80,
    "first_k_dense_replace": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "rope_interleave": True,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
# As it is published, shrunk; queries are not compressed, as in the small models of the family.
DEEPSEEK_V3 = {
    **DEEPSEEK,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}


@hookimpl
def archport_claim(config):
    if "DeepseekV3ForCausalLM" not in (config.get("architectures") or []) or not config["causal"]:
        return None
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    sparse = tuple(range(dense, layers))
    experts = Experts(
        count=config["n_routed_experts"],
        per_token=config["num_experts_per_tok"],
        intermediate_size=config["moe_intermediate_size"],
        shared_intermediate_size=config["moe_intermediate_size"] * config["n_shared_experts"],
        layers=sparse,
    ) if sparse else None  # fmt: skip
    return ArchSpec(
        arch="deepseek_v3",
        tasks=("embed", "generate"),
        layers=(latent_layer(config),) * layers,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head=False,
        qk_norm=False,
        experts=experts,
    )


def latent_layer(config):
    D, H, rank, compressed = (
        config[key] for key in ("hidden_size", "num_attention_heads", "kv_lora_rank", "q_lora_rank")
    )
    nope, rope, v = (config[f"{key}_head_dim"] for key in ("qk_nope", "qk_rope", "v"))
    # Keys are what is compressed and the rotated part; values are what is compressed.
    key = rank + rope
    queries = D * H * (nope + rope) if compressed is None else compressed * (D + H * (nope + rope))
    matrices = queries + D * key + rank * H * (nope + v) + H * v * D
    # Queries as projected, their rotated part, the plain part in the latent space, both joined; the key and its parts.
    made = (
        H * (nope + rope) + H * rope + H * nope + H * rank + H * key + 3 * key + (2 * compressed if compressed else 0)
    )
    # The answer in the latent space, out of it, by token; a norm, the output and the block's sum.
    made += H * rank + 2 * H * v + 3 * D
    return AttentionLayer(
        "causal", H, 1, key, v_head_dim=rank, kv="latent", footprint=Footprint(mixer=made, matrices=matrices)
    )


@hookimpl
def archport_build(spec, config):
    from deepseek_model import DeepSeek

    return DeepSeek(spec, config)


def publish(weights):
    from deepseek_model import published

    return published(weights)


@hookimpl
def archport_examples():
    return [
        Example("a latent cache, every layer dense", DEEPSEEK, seed=1, publish=publish),
        Example("a latent cache, groups of experts, yarn", DEEPSEEK_V3, seed=2, publish=publish),
    ]
