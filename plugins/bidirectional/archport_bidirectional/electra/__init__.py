"""ELECTRA: BERT blocks after embeddings of a width of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archport.contract import ArchSpec, Example, Task
from archport_bidirectional.bert import EXAMPLE as BERT
from archport_bidirectional.bert import KEYS as BERT_KEYS
from archport_bidirectional.bert import TAGS, learned_positions
from archport_bidirectional.configs import of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("electra",)
ARCHITECTURES: Mapping[str, tuple[Task, ...]] = {
    **tasks_of("Electra"),
    # The published discriminators.
    "ElectraForPreTraining": ("embed", "rerank"),
}
KEYS = replace(
    BERT_KEYS,
    obeyed=(*BERT_KEYS.obeyed, "embedding_size"),
    # Of heads for multiple choice; the classifier reads none of them.
    inert=("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout", "generator_size"),
)
MODELS = {
    name: name
    for name in (
        "google/electra-small-discriminator",
        "google/electra-base-discriminator",
        "cross-encoder/ms-marco-electra-base",
    )
}


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    return learned_positions("electra", config, config["max_position_embeddings"], ARCHITECTURES[name], keys=KEYS)


build = of_model(__name__, "electra")
_published = of_model(__name__, "NAMES.published")
head = encoder_head
inputs = pylate_inputs


def examples() -> Sequence[Example]:
    config = {**BERT, "architectures": ["ElectraModel"], "model_type": "electra", "embedding_size": 32}
    base = {**config, "architectures": ["ElectraForPreTraining"], "embedding_size": 64}
    masked = {**config, "architectures": ["ElectraForMaskedLM"]}
    reranker = {**config, "architectures": ["ElectraForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    tagger = {**config, "architectures": ["ElectraForTokenClassification"], "id2label": TAGS}
    return [
        Example("electra, embeddings half as wide", config, seed=37, publish=_published),
        Example("electra, discriminator with embeddings as wide as its blocks", base, seed=38, publish=_published),
        Example("electra, masked language model", masked, seed=39, publish=_published),
        Example("electra, cross-encoder", reranker, seed=40, publish=_published),
        Example("electra, labels of tokens", tagger, seed=47, publish=_published),
    ]
