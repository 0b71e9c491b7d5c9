"""Two decoders as an outside plugin would write them: Llama 4's chunks, and keys of earlier layers."""

from dataclasses import replace

from archport.contract import ArchSpec, AttentionLayer, Example, hookimpl

BASE = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LLAMA4 = {
    **BASE,
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "intermediate_size": 80,
    "intermediate_size_mlp": 80,
    "moe_layers": [],
    "no_rope_layers": [1, 1, 1, 0],
    "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    "attention_chunk_size": 32,
    "attn_temperature_tuning": True,
    "floor_scale": 16,
    "attn_scale": 0.1,
    "use_qk_norm": True,
}
SHARED = {
    **BASE,
    "architectures": ["SharedKVForCausalLM"],
    "model_type": "shared-kv",
    "intermediate_size": 80,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 12,
    "num_kv_shared_layers": 2,
}
# Every second layer reads the one before it.
PAIRS = {
    **SHARED,
    "architectures": ["PairedKVForCausalLM"],
    "layer_types": ["sliding_attention", "sliding_attention"] * 2,
}


@hookimpl
def archport_claim(config):
    (name,) = config.get("architectures") or [""]
    kinds = {"Llama4ForCausalLM": llama4, "SharedKVForCausalLM": shared, "PairedKVForCausalLM": pairs}
    if name not in kinds or not config["causal"]:
        return None
    return ArchSpec(
        arch=config["model_type"],
        tasks=("embed", "generate"),
        layers=tuple(kinds[name](config)),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config.get("intermediate_size_mlp") or config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head=False,
        qk_norm=name == "Llama4ForCausalLM",
    )


def llama4(config):
    for kind in config["layer_types"]:
        chunk = config["attention_chunk_size"] if kind == "chunked_attention" else None
        yield AttentionLayer(
            "causal", config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"], chunk=chunk
        )


def shared(config):
    kinds = config["layer_types"]
    own = len(kinds) - config["num_kv_shared_layers"]
    for index, kind in enumerate(kinds):
        left = config["sliding_window"] - 1 if kind == "sliding_attention" else None
        yield AttentionLayer(
            "causal", config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"],
            # Those that read take what the last layer of their kind that has keys of its own has left.
            reach=(left, 0), kv="own" if index < own else "shared", kv_group=kind,
        )  # fmt: skip


def pairs(config):
    keeps = AttentionLayer(
        "causal", config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"],
        reach=(config["sliding_window"] - 1, 0), kv_group="pair",
    )  # fmt: skip
    return (keeps, replace(keeps, kv="shared")) * (config["num_hidden_layers"] // 2)


@hookimpl
def archport_build(spec, config):
    from decoders_model import Decoder

    return Decoder(spec, config)


@hookimpl
def archport_examples():
    return [
        Example("attention within chunks", LLAMA4),
        Example("keys of earlier layers", SHARED, seed=2),
        Example("keys of the layer before", PAIRS, seed=3),
    ]
