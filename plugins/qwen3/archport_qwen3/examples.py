"""Tiny configs of every kind that the plugin claims, for the conformance kit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import Example


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trunk's tensors as embedding repositories name them: without the prefix."""
    return {name.removeprefix("model."): value for name, value in weights.items()}


def _split_experts(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same tensors as hub repositories store them: one per expert."""
    found: dict[str, Any] = {}
    for name, value in weights.items():
        layer, stacked, part = name.partition(".switch_mlp.")
        if not stacked:
            found[name] = value
            continue
        found |= {f"{layer}.experts.{index}.{part}": value[index] for index in range(value.shape[0])}
    return found


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "vocab_size": 199,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    generates = {**config, "architectures": ["Qwen3ForCausalLM"]}
    experts = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        # Twice its width is not the model's, so that a transposed expert can't pass for a right one.
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    }
    windows = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    qwen2 = {key: value for key, value in config.items() if key not in ("head_dim", "attention_bias")}
    qwen2 |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}
    labels = {"architectures": ["Qwen3ForSequenceClassification"], "pad_token_id": 7}
    reranker = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    return [
        Example("gqa 2:1, head_dim independent of width", config, publish=_published),
        Example("head_dim 256, attention bias", {**config, "head_dim": 256, "attention_bias": True}, seed=1),
        Example("generates, untied head", {**generates, "tie_word_embeddings": False}, seed=2),
        Example("generates, second layer in a window", {**generates, **windows, "head_dim": 64}, seed=3),
        Example("experts in the second layer", {**generates, **experts}, seed=4, publish=_split_experts),
        Example("three labels", {**config, **labels, "num_labels": 3}, seed=5),
        Example("qwen2, generates", qwen2, seed=6),
        Example("qwen2, reranks by a score, second layer in a window", {**qwen2, **reranker, **windows}, seed=7),
    ]
