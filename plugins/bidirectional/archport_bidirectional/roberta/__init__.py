"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT blocks whose learned positions start after the padding index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ArchSpec,
    CheckpointView,
    EmbeddingHead,
    Example,
    Head,
    SpecError,
    Task,
    TextInputs,
    Trunk,
)
from archport_bidirectional.bert import EXAMPLE, learned_positions
from archport_bidirectional.configs import has_pipeline, of_model, prompted, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs, three_heads

ARCHS = ("xlm_roberta", "roberta", "camembert")
ARCHITECTURES: Mapping[str, tuple[str, tuple[Task, ...]]] = {
    name: (arch, tasks)
    for prefix, arch in {"XLMRoberta": "xlm_roberta", "Roberta": "roberta", "Camembert": "camembert"}.items()
    for name, tasks in tasks_of(prefix).items()
}
MODELS = {
    name: name
    for name in (
        "BAAI/bge-m3",
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "intfloat/multilingual-e5-small",
        "intfloat/multilingual-e5-base",
        "intfloat/multilingual-e5-large",
        "sentence-transformers/all-roberta-large-v1",
        "BAAI/bge-reranker-base",
        "BAAI/bge-reranker-large",
        "BAAI/bge-reranker-v2-m3",
        "almanach/camembert-base",
        "dangvantuan/sentence-camembert-base",
    )
}


def claim(config: Mapping[str, Any], name: str) -> ArchSpec | None:
    # jina-embeddings-v3's repository says XLM-RoBERTa too.
    if name == "XLMRobertaModel" and config.get("position_embedding_type") == "rotary":
        return None
    # The rows of the table up to the padding index belong to no token.
    arch, tasks = ARCHITECTURES[name]
    first = padding_index(config) + 1
    positions = config["max_position_embeddings"] - first
    if positions < 1:
        raise SpecError(
            f"{arch}: max_position_embeddings={config['max_position_embeddings']} leaves no position "
            f"behind pad_token_id={first - 1}; expected a larger table"
        )
    return learned_positions(arch, config, positions, tasks)


def padding_index(config: Mapping[str, Any]) -> int:
    """The id of the padding token, which is also the position that padding gets."""
    stated = config.get("pad_token_id")
    return 1 if stated is None else stated


def build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from archport_bidirectional.bert.model import bert

    return bert(spec, config, padding=padding_index(config))


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if has_pipeline(checkpoint) or "embed" not in spec.tasks:
        return encoder_head(spec, checkpoint) or three_heads(spec, checkpoint, None)
    if checkpoint.label.startswith(("bge-m3", "snowflake-arctic-embed")):
        dense = EmbeddingHead(("cls",), normalize=True, source="the model card, as modules.json is missing")
        return three_heads(spec, checkpoint, dense) or dense
    return None


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    # The card asks for these words; the repository has no file for prompts.
    if checkpoint.label.startswith("multilingual-e5") and "instruct" not in checkpoint.label:
        known = {"query": "query: ", "passage": "passage: "}
        return prompted(checkpoint, known, query="query", document="passage")
    return pylate_inputs(spec, checkpoint)


_published = of_model("archport_bidirectional.bert", "ROBERTA.published")


def examples() -> Sequence[Example]:
    config = {
        **EXAMPLE,
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "max_position_embeddings": 322,
    }
    reranker = {**config, "architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    roberta = {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}
    camembert = {"architectures": ["CamembertForMaskedLM"], "model_type": "camembert"}
    return [
        Example("xlm-roberta, positions behind the padding index", config, seed=2, publish=_published),
        Example("xlm-roberta, cross-encoder", reranker, seed=13, publish=_published),
        Example("roberta, masked language model", {**config, **roberta}, seed=65, publish=_published),
        Example("camembert, masked language model", {**config, **camembert}, seed=66, publish=_published),
    ]
