"""DistilBERT: BERT without token types and pooler, under names of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ArchSpec, CheckpointView, ConfigKeys, Example, Head
from archport_bidirectional.bert import TAGS, learned_positions
from archport_bidirectional.configs import of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("distilbert",)
ARCHITECTURES = tasks_of("DistilBert")
KEYS = ConfigKeys(
    "distilbert",
    obeyed=(
        *("activation", "dim", "hidden_dim", "hidden_size", "intermediate_size", "max_position_embeddings"),
        *("n_heads", "n_layers", "num_attention_heads", "num_hidden_layers", "vocab_size"),
    ),
    # The first says how the table of positions was filled before training; checkpoints store it either way.
    inert=("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_"),
)
MODELS = {
    name: name
    for name in (
        "sentence-transformers/msmarco-distilbert-base-v4",
        "sentence-transformers/multi-qa-distilbert-cos-v1",
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    )
}


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    sizes = {**config, "intermediate_size": config["hidden_dim"]}
    return learned_positions("distilbert", sizes, config["max_position_embeddings"], ARCHITECTURES[name], keys=KEYS)


build = of_model(__name__, "distilbert")
_published = of_model(__name__, "NAMES.published")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    return encoder_head(spec, checkpoint, typed=False)


inputs = pylate_inputs


def examples() -> Sequence[Example]:
    config = {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 96,
        "activation": "gelu",
        "vocab_size": 199,
        "max_position_embeddings": 320,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }
    masked = {**config, "architectures": ["DistilBertForMaskedLM"]}
    classifier = {**config, "architectures": ["DistilBertForSequenceClassification"]}
    classifier["id2label"] = {"0": "NEGATIVE", "1": "POSITIVE"}
    tagger = {**config, "architectures": ["DistilBertForTokenClassification"], "id2label": TAGS}
    return [
        Example("distilbert", config, seed=34, publish=_published),
        Example("distilbert, masked language model", masked, seed=35, publish=_published),
        Example("distilbert, classifier of two labels", classifier, seed=36, publish=_published),
        Example("distilbert, labels of tokens", tagger, seed=410, publish=_published),
    ]
