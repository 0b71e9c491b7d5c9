"""Gemma 2 as an outside plugin would write it: capped scores, windows in every other layer, norms on both sides."""

from archport.contract import ArchSpec, AttentionLayer, Example, hookimpl

CONFIG = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 24,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


@hookimpl
def archport_claim(config):
    if not config["causal"] or "Gemma2ForCausalLM" not in (config.get("architectures") or []):
        return None
    window = config["sliding_window"]
    return ArchSpec(
        arch="gemma2",
        tasks=("embed", "generate"),
        layers=tuple(
            AttentionLayer(
                "causal",
                n_heads=config["num_attention_heads"],
                n_kv_heads=config["num_key_value_heads"],
                head_dim=config["head_dim"],
                reach=(window - 1, 0) if kind == "sliding_attention" else (None, 0),
                softcap=config["attn_logit_softcapping"],
            )
            for kind in config["layer_types"]
        ),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        qk_norm=False,
        logit_softcap=config["final_logit_softcapping"],
    )


@hookimpl
def archport_build(spec, config):
    from gemma2_model import Gemma2

    return Gemma2(spec, config)


@hookimpl
def archport_examples():
    return [Example("capped scores, every other layer windowed", CONFIG)]
