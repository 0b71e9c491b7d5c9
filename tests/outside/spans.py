"""Two decoders some of whose tokens see each other both ways: Gemma 3's pictures and the prefix of PaliGemma.

The outside plugin of each says which layers know spans, and by which ids of a row its spans are found.
"""

import numpy as np

from archport.contract import ArchSpec, AttentionLayer, Example, hookimpl

# Ids that a row's pictures consist of, and that ends a prefix.
IMAGE, BREAK = 7, 6
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "tie_word_embeddings": True,
    "image_token_id": IMAGE,
    "torch_dtype": "float32",
}
PREFIX = {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "prefix_end_id": BREAK,
    "torch_dtype": "float32",
}


@hookimpl
def archport_claim(config):
    names = config.get("architectures") or []
    if not config["causal"] or not {"Gemma3ForCausalLM", "GemmaForCausalLM"} & set(names):
        return None
    window = config.get("sliding_window")
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    return ArchSpec(
        arch="gemma3" if "Gemma3ForCausalLM" in names else "gemma",
        tasks=("embed", "generate"),
        layers=tuple(
            AttentionLayer(
                "causal",
                n_heads=config["num_attention_heads"],
                n_kv_heads=config["num_key_value_heads"],
                head_dim=config["head_dim"],
                reach=(window - 1, 0) if kind == "sliding_attention" else (None, 0),
                spans=True,
            )
            for kind in kinds
        ),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        qk_norm="Gemma3ForCausalLM" in names,
    )


def pictures(ids):
    """Runs of picture tokens: one picture each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.asarray(ids) == IMAGE, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def prefix(ids):
    """All of a row up to its first break."""
    ends = np.flatnonzero(np.asarray(ids) == BREAK)
    return [(0, int(ends[0]) + 1)] if len(ends) else []


@hookimpl
def archport_inputs(spec, checkpoint):
    from dataclasses import replace

    return replace(checkpoint.stored_inputs(), spans=pictures if spec.arch == "gemma3" else prefix)


@hookimpl
def archport_build(spec, config):
    from spans_model import Gemma

    return Gemma(spec, config)


@hookimpl
def archport_examples():
    return [Example("pictures in windows and in all", GEMMA3), Example("a prefix that sees itself", PREFIX, seed=1)]
