"""MPNet: a post-norm encoder whose layers share one table of what distances add to their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ArchSpec, CheckpointView, ConfigKeys, Example, Head, SpecError
from archport_bidirectional.bert import EXAMPLE as BERT
from archport_bidirectional.bert import TAGS, learned_positions
from archport_bidirectional.configs import of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("mpnet",)
ARCHITECTURES = tasks_of("MPNet")
KEYS = ConfigKeys(
    "mpnet",
    obeyed=(
        *("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "relative_attention_num_buckets", "vocab_size"),
    ),
)
MODELS = {
    "all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/multi-qa-mpnet-base-dot-v1": "sentence-transformers/multi-qa-mpnet-base-dot-v1",
    "sentence-transformers/paraphrase-mpnet-base-v2": "sentence-transformers/paraphrase-mpnet-base-v2",
}
# transformers numbers positions by this index and distances by this many buckets, whatever a config says.
PADDING, BUCKETS = 1, 32


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    rows, buckets = config["max_position_embeddings"], config.get("relative_attention_num_buckets", BUCKETS)
    if buckets < BUCKETS:
        raise SpecError(
            f"mpnet: relative_attention_num_buckets={buckets}; expected {BUCKETS} or more, which transformers reads"
        )
    if rows <= PADDING + 1:
        raise SpecError(
            f"mpnet: max_position_embeddings={rows} leaves no position after the padding index {PADDING}; "
            "expected a larger table"
        )
    return learned_positions("mpnet", config, rows - PADDING - 1, ARCHITECTURES[name], keys=KEYS, bias=True)


build = of_model(__name__, "mpnet")
_published = of_model(__name__, "NAMES.published")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    return encoder_head(spec, checkpoint, typed=False)


inputs = pylate_inputs


def examples() -> Sequence[Example]:
    config = {
        **{key: value for key, value in BERT.items() if key != "type_vocab_size"},
        "architectures": ["MPNetModel"],
        "model_type": "mpnet",
        "pad_token_id": PADDING,
        "relative_attention_num_buckets": BUCKETS,
        "max_position_embeddings": 322,
    }
    masked = {**config, "architectures": ["MPNetForMaskedLM"]}
    classifier = {**config, "architectures": ["MPNetForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    tagger = {**config, "architectures": ["MPNetForTokenClassification"], "id2label": TAGS}
    return [
        Example("mpnet, distances in shared buckets", config, seed=31, publish=_published),
        Example("mpnet, masked language model", masked, seed=32, publish=_published),
        Example("mpnet, classifier of two labels", classifier, seed=33, publish=_published),
        Example("mpnet, labels of tokens", tagger, seed=45, publish=_published),
    ]
