"""ModernBERT: pre-norm encoders whose layers see a window, every third one everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    EmbeddingHead,
    Example,
    Head,
    SpecError,
    TextInputs,
    classification_head,
    head_width,
)
from archport_bidirectional.configs import NOMIC_PROMPTS, has_pipeline, of_model, prompted, tasks_of
from archport_bidirectional.scoring import pylate, pylate_inputs, tagging

ARCHS = ("modernbert",)
ARCHITECTURES = tasks_of("ModernBert")
MODELS = {
    name: name
    for name in (
        "answerdotai/ModernBERT-base",
        "answerdotai/ModernBERT-large",
        "nomic-ai/modernbert-embed-base",
        "Alibaba-NLP/gte-modernbert-base",
        "ibm-granite/granite-embedding-english-r2",
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "lightonai/GTE-ModernColBERT-v1",
    )
}
KEYS = ConfigKeys(
    "modernbert",
    obeyed=(
        *("attention_bias", "classifier_activation", "classifier_bias", "classifier_pooling", "decoder_bias"),
        *("global_attn_every_n_layers", "hidden_activation", "hidden_size", "intermediate_size", "layer_types"),
        *("local_attention", "max_position_embeddings", "mlp_bias", "norm_bias", "norm_eps", "num_attention_heads"),
        *("num_hidden_layers", "vocab_size", *ROPE_KEYS),
    ),
    # How rows are packed and compiled, what training predicts, and names that the classes do not read.
    inert=(
        *("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction"),
        *("sparse_pred_ignore_index", "layer_norm_eps"),
    ),
    refused={"position_embedding_type": ("absolute",), "head_dim": ()},
)
OVERFLOWS = "its residual stream grows past float16's largest number, and padded batches have come out as NaN"
# What transformers takes where a config leaves it out.
GLOBAL_EVERY, LOCAL_ATTENTION, GLOBAL_THETA, LOCAL_THETA = 3, 128, 160_000.0, 10_000.0


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    KEYS.check(config)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = head_width("modernbert", width, heads)
    # `local_attention` counts both sides; the token that stands half of it away is still seen.
    reach = config.get("local_attention", LOCAL_ATTENTION) // 2
    local = AttentionLayer("bidirectional", heads, heads, head_dim, reach=(reach, reach))
    everything = AttentionLayer("bidirectional", heads, heads, head_dim)
    return ArchSpec(
        arch="modernbert",
        tasks=ARCHITECTURES[name],
        layers=tuple(local if kind == "sliding_attention" else everything for kind in layer_types(config)),
        vocab_size=config["vocab_size"],
        hidden_size=width,
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in ARCHITECTURES[name] or config.get("tie_word_embeddings") is not False,
        qk_norm=False,
        dtypes_refused={"float16": OVERFLOWS},
    )


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """`sliding_attention` or `full_attention` per layer."""
    every = config.get("global_attn_every_n_layers") or GLOBAL_EVERY
    derived = ["sliding_attention" if i % every else "full_attention" for i in range(config["num_hidden_layers"])]
    found = config.get("layer_types") or derived
    unknown = sorted({str(kind) for kind in found} - {"full_attention", "sliding_attention"})
    if unknown:
        raise SpecError(
            f"modernbert: layer_types holds {', '.join(unknown)}; expected full_attention and sliding_attention"
        )
    return found


build = of_model(__name__, "ModernBert")
_published = of_model(__name__, "published")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if "tag" in spec.tasks:
        return tagging(checkpoint)
    if "classify" in spec.tasks:
        stated = checkpoint.config.get("classifier_pooling", "cls")
        if stated not in ("cls", "mean"):
            raise SpecError(f"modernbert: classifier_pooling={stated!r}; expected 'cls' or 'mean'")
        return classification_head(checkpoint, stated)
    if has_pipeline(checkpoint):
        return pylate(checkpoint)
    if checkpoint.label.startswith(("gte-modernbert", "granite-embedding")):
        return EmbeddingHead(("cls",), normalize=True, source="the model card, as modules.json is missing")
    return None


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    if checkpoint.label.startswith("modernbert-embed"):
        return prompted(checkpoint, NOMIC_PROMPTS, query="query", document="document")
    return pylate_inputs(spec, checkpoint)


EXAMPLE = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 16,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    masked = {**EXAMPLE, "architectures": ["ModernBertForMaskedLM"], "decoder_bias": True}
    reranker = {**EXAMPLE, "architectures": ["ModernBertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    return [
        Example("modernbert, windows of 8 tokens each side", EXAMPLE, seed=3, publish=_published),
        Example("modernbert, masked language model", masked, seed=14, publish=_published),
        Example("modernbert, cross-encoder", {**reranker, "classifier_pooling": "mean"}, seed=15, publish=_published),
    ]
