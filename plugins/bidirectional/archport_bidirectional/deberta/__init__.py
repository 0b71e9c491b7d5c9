"""DeBERTa-v2 and v3: post-norm blocks whose scores add up what tokens and what distances have to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    ConfigKeys,
    Example,
    SpecError,
    head_width,
)
from archport_bidirectional.bert import TAGS
from archport_bidirectional.configs import of_model, tasks_of
from archport_bidirectional.scoring import encoder_head, pylate_inputs

ARCHS = ("deberta_v2",)
ARCHITECTURES = tasks_of("DebertaV2")
KEYS = ConfigKeys(
    "deberta_v2",
    obeyed=(
        *("attention_head_size", "embedding_size", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps"),
        *("legacy", "max_position_embeddings", "pooler_hidden_size"),
        *("max_relative_positions", "norm_rel_ebd", "num_attention_heads", "num_hidden_layers", "pooler_hidden_act"),
        *("pos_att_type", "position_biased_input", "position_buckets", "relative_attention", "share_att_key"),
        *("type_vocab_size", "vocab_size"),
    ),
    inert=("cls_dropout", "pooler_dropout", "summary_type", "summary_use_proj"),
    # A convolution next to the first layer of v2-xlarge and v2-xxlarge.
    refused={"conv_kernel_size": ()},
)
MODELS = {
    name: name
    for name in (
        *("microsoft/deberta-v3-small", "microsoft/deberta-v3-base", "microsoft/deberta-v3-large"),
        *("microsoft/mdeberta-v3-base", "MoritzLaurer/mDeBERTa-v3-base-xnli-multilingual-nli-2mil7"),
        *("MoritzLaurer/deberta-v3-large-zeroshot-v2.0", "cross-encoder/nli-deberta-v3-base"),
        *(f"mixedbread-ai/mxbai-rerank-{size}-v1" for size in ("xsmall", "base", "large")),
    )
}
OVERFLOWS = "the hidden states of mDeBERTa grow past float16's largest number"
# Content to position, position to content: which of a score's halves meet a distance.
TERMS = ("c2p", "p2c")


def claim(config: Mapping[str, Any], name: str) -> ArchSpec:
    KEYS.check(config)
    width, heads, positions = (config[key] for key in ("hidden_size", "num_attention_heads", "max_position_embeddings"))
    head_dim = head_width("deberta_v2", width, heads)
    for key, usual in (("embedding_size", width), ("attention_head_size", head_dim), ("pooler_hidden_size", width)):
        if config.get(key) not in (None, usual):
            raise SpecError(f"deberta_v2: {key}={config[key]!r}; expected {usual}, the width of its blocks")
    buckets, span = config.get("position_buckets", -1), relative_positions(config)
    if 0 < buckets and positions - 1 > buckets // 2 >= span - 1:
        raise SpecError(
            f"deberta_v2: position_buckets={buckets} leaves no distance between half of them and "
            f"max_relative_positions={span}; expected more positions than {buckets // 2 + 1}"
        )
    tasks = ARCHITECTURES[name]
    layer = AttentionLayer("bidirectional", heads, heads, head_dim, bias="content" if relative_terms(config) else False)
    return ArchSpec(
        arch="deberta_v2",
        tasks=tasks,
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=width,
        intermediate_size=config["intermediate_size"],
        max_positions=positions,
        dtype=config.get("dtype", "float32"),
        tied_head="fill_mask" not in tasks or config.get("tie_word_embeddings") is not False or not config["legacy"],
        gated_mlp=False,
        qk_norm=False,
        dtypes_refused={"float16": OVERFLOWS},
    )


def stated_terms(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The terms that a config names, which scale its scores whether distances count or not."""
    stated = config.get("pos_att_type") or ()
    words = [word.strip() for word in stated.lower().split("|")] if isinstance(stated, str) else list(stated)
    unknown = [word for word in words if word not in TERMS]
    if unknown and any(unknown):
        raise SpecError(f"deberta_v2: pos_att_type={stated!r}; expected {' and '.join(TERMS)}, or one of them")
    return tuple(word for word in TERMS if word in words)


def relative_terms(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The terms that are added to scores."""
    return stated_terms(config) if config["relative_attention"] else ()


def relative_positions(config: Mapping[str, Any]) -> int:
    """The distance from which on all count as the farthest."""
    stated = config["max_relative_positions"]
    return stated if stated >= 1 else config["max_position_embeddings"]


build = of_model(__name__, "deberta_v2")
_published = of_model(__name__, "NAMES.published")
head = encoder_head
inputs = pylate_inputs


# As deberta-v3 is published.
EXAMPLE = {
    "architectures": ["DebertaV2Model"],
    "model_type": "deberta-v2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 320,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 32,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
    "vocab_size": 199,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def examples() -> Sequence[Example]:
    labels = {"0": "contradiction", "1": "neutral", "2": "entailment"}
    classifier = {**EXAMPLE, "architectures": ["DebertaV2ForSequenceClassification"], "id2label": labels}
    masked = {**EXAMPLE, "architectures": ["DebertaV2ForMaskedLM"], "share_att_key": False, "pos_att_type": ["c2p"]}
    biased = {**EXAMPLE, "position_biased_input": True, "type_vocab_size": 2, "norm_rel_ebd": "none"}
    biased |= {"position_buckets": -1, "max_relative_positions": 40, "share_att_key": False}
    tagger = {**EXAMPLE, "architectures": ["DebertaV2ForTokenClassification"], "id2label": TAGS}
    return [
        Example("deberta v3, classifier of three labels", classifier, seed=71, publish=_published),
        Example("deberta v2, positions and types in its embeddings", biased, seed=72, publish=_published),
        Example("deberta v2, masked language model with one term", masked, seed=73, publish=_published),
        Example("deberta v3, labels of tokens", tagger, seed=74, publish=_published),
    ]
