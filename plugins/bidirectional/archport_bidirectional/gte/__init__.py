"""GTE and mGTE: BERT blocks with rotated heads and a gated MLP, by their own code ("new") and by transformers 5.

gte-multilingual-base and its reranker, gte-base-en-v1.5, snowflake-arctic-embed-m-v2.0.
"""

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
    head_width,
)
from archport_bidirectional.configs import has_pipeline, of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("gte",)
ARCHITECTURES = tasks_of("Gte", "New")
MODELS = {
    name: name
    for name in (
        "Alibaba-NLP/gte-multilingual-base",
        "Alibaba-NLP/gte-multilingual-reranker-base",
        "Alibaba-NLP/gte-base-en-v1.5",
        "Alibaba-NLP/gte-large-en-v1.5",
        "Snowflake/snowflake-arctic-embed-m-v2.0",
    )
}
KEYS = ConfigKeys(
    "gte",
    obeyed=(
        *("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size", "pack_qkv", *ROPE_KEYS),
    ),
    # How its own code runs.
    inert=("unpad_inputs", "use_memory_efficient_attention"),
    refused={
        "position_embedding_type": ("rope",),
        "layer_norm_type": ("layer_norm",),
        "logn_attention_scale": (),
        "logn_attention_clip1": (),
        "head_dim": (),
    },
)


def claim(config: Mapping[str, Any], name: str) -> ArchSpec | None:
    if config.get("model_type") not in ("gte", "new"):
        return None
    KEYS.check(config)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    layer = AttentionLayer("bidirectional", heads, heads, head_width("gte", width, heads))
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") == "ntk":
        factor, mixed = scaling.get("factor"), scaling.get("mixed_b")
        if not isinstance(factor, int | float) or isinstance(factor, bool) or factor < 1 or mixed is not None:
            raise SpecError(
                f"gte: rope_scaling of type 'ntk' has factor={factor!r}, mixed_b={mixed!r}; expected a factor of at "
                "least 1 and no mixed_b"
            )
    tasks = ARCHITECTURES[name]
    return ArchSpec(
        arch="gte",
        tasks=tasks,
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=width,
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in tasks or config.get("tie_word_embeddings") is not False,
        qk_norm=False,
    )


build = of_model(__name__, "gte")
_hub = of_model(__name__, "HUB.published")
_saved = of_model(__name__, "SAVED.published")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if has_pipeline(checkpoint) or "embed" not in spec.tasks:
        return encoder_head(spec, checkpoint)
    if checkpoint.label.startswith(("gte-", "snowflake-arctic-embed")):
        return EmbeddingHead(("cls",), normalize=True, source="the model card, as modules.json is missing")
    return None


inputs = pylate_inputs


EXAMPLE = {
    "architectures": ["GteModel"],
    "model_type": "gte",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 199,
    "max_position_embeddings": 320,
    "type_vocab_size": 1,
    "rope_theta": 20000,
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    stretched = {"rope_scaling": {"type": "ntk", "factor": 8.0}, "position_embedding_type": "rope", "pack_qkv": True}
    hub = {**EXAMPLE, **stretched, "model_type": "new", "architectures": ["NewModel"], "type_vocab_size": 0}
    masked = {**EXAMPLE, "architectures": ["GteForMaskedLM"]}
    reranker = {**hub, "architectures": ["NewForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    tagger = {**EXAMPLE, "architectures": ["GteForTokenClassification"], "num_labels": 3}
    return [
        Example("gte, as its repository says it, stretched rope", hub, seed=34, publish=_hub),
        Example("gte, masked language model", masked, seed=35, publish=_saved),
        Example("gte, cross-encoder of its repository", {**reranker, "type_vocab_size": 1}, seed=36, publish=_hub),
        Example("gte, labels of tokens", tagger, seed=62, publish=_saved),
    ]
