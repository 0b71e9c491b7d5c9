"""ALBERT: post-norm blocks that several layers share, after embeddings of a width of their own."""

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

ARCHS = ("albert",)
ARCHITECTURES: Mapping[str, tuple[Task, ...]] = {
    **tasks_of("Albert"),
    "AlbertForPreTraining": ("embed", "fill_mask"),
}
KEYS = replace(
    BERT_KEYS,
    obeyed=(*BERT_KEYS.obeyed, "embedding_size", "inner_group_num", "num_hidden_groups"),
    # Of the first files: nothing reads them.
    inert=("classifier_dropout_prob", "down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"),
)
MODELS = {
    name: name
    for name in (
        "albert/albert-base-v2",
        "albert/albert-xxlarge-v2",
        "sentence-transformers/paraphrase-albert-small-v2",
    )
}


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    positions, repeats = config["max_position_embeddings"], config.get("inner_group_num", 1)
    return learned_positions("albert", config, positions, ARCHITECTURES[name], keys=KEYS, repeats=repeats)


build = of_model(__name__, "albert")
_published = of_model(__name__, "NAMES.published")
head = encoder_head
inputs = pylate_inputs


def examples() -> Sequence[Example]:
    config = {
        **BERT,
        "architectures": ["AlbertModel"],
        "model_type": "albert",
        "embedding_size": 32,
        "hidden_act": "gelu_new",
        "num_hidden_layers": 3,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    }
    groups = {**config, "num_hidden_layers": 4, "num_hidden_groups": 2}
    masked = {**config, "architectures": ["AlbertForMaskedLM"]}
    classifier = {**config, "architectures": ["AlbertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    tagger = {**config, "architectures": ["AlbertForTokenClassification"], "id2label": TAGS}
    return [
        Example("albert, one block for all layers", config, seed=41, publish=_published),
        Example("albert, two groups of layers", groups, seed=42, publish=_published),
        Example("albert, masked language model", masked, seed=43, publish=_published),
        Example("albert, classifier of two labels", classifier, seed=44, publish=_published),
        Example("albert, labels of tokens", tagger, seed=46, publish=_published),
    ]
