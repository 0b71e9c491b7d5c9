"""EuroBERT: Llama's blocks without a causal mask, with heads of a masked language model and of classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ROPE_KEYS,
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    Example,
    Head,
    SpecError,
    classification_head,
)
from archport_bidirectional.configs import of_model, tasks_of
from archport_bidirectional.scoring import pylate, pylate_inputs, stored_scores, tagging

ARCHS = ("eurobert",)
ARCHITECTURES = tasks_of("EuroBert")
MODELS = {f"EuroBERT/EuroBERT-{size}": f"EuroBERT/EuroBERT-{size}" for size in ("210m", "610m", "2.1B")}
KEYS = ConfigKeys(
    "eurobert",
    obeyed=(
        *("attention_bias", "classifier_pooling", "clf_pooling", "head_dim", "hidden_act", "hidden_size"),
        *("intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "rms_norm_eps", "vocab_size", *ROPE_KEYS),
    ),
    # Names of tokens next to their ids.
    inert=("bos_token", "eos_token", "mask_token", "pad_token"),
    refused={"partial_rotary_factor": (1.0,)},
)
POOLINGS = ("bos", "mean", "late")


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    KEYS.check(config)
    tasks = ARCHITECTURES[name]
    if "classify" in tasks and pooling(config) not in POOLINGS:
        raise SpecError(f"eurobert: classifier_pooling={pooling(config)!r}; expected one of {', '.join(POOLINGS)}")
    heads, kv_heads, head_dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    return ArchSpec(
        arch="eurobert",
        tasks=tasks,
        layers=(AttentionLayer("bidirectional", heads, kv_heads, head_dim),) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in tasks or bool(config.get("tie_word_embeddings", False)),
        qk_norm=False,
    )


def pooling(config: Mapping[str, Any]) -> str:
    """How a classifier pools, under the name of its first files too."""
    return config.get("clf_pooling") or config["classifier_pooling"]


build = of_model(__name__, "EuroBert")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if "tag" in spec.tasks:
        return tagging(checkpoint)
    if "classify" in spec.tasks:
        # Late: the mean of what every token is scored, which is the score of the mean.
        return classification_head(checkpoint, "cls" if pooling(checkpoint.config) == "bos" else "mean")
    late = pylate(checkpoint)
    return late if late is not None else stored_scores(checkpoint)


inputs = pylate_inputs


EXAMPLE = {
    "architectures": ["EuroBertModel"],
    "model_type": "eurobert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 250000,
    "vocab_size": 199,
    "max_position_embeddings": 320,
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    masked = {**EXAMPLE, "architectures": ["EuroBertForMaskedLM"], "tie_word_embeddings": False}
    late = {**EXAMPLE, "architectures": ["EuroBertForSequenceClassification"], "num_labels": 3, "clf_pooling": "late"}
    tagger = {**EXAMPLE, "architectures": ["EuroBertForTokenClassification"], "num_labels": 3}
    return [
        Example("eurobert, masked language model", masked, seed=37),
        Example("eurobert, classifier that pools late", late, seed=38),
        Example("eurobert, labels of tokens", tagger, seed=63),
    ]
