"""BERT and RoBERTa as post-norm encoders: learned positions, and the heads of classifiers and masked LMs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from archport.contract import ArchSpec
from archport_bidirectional.encoder import BERT_BLOCK, Embeddings, Encoder, Names, PostNormEncoder, epsilon
from archport_bidirectional.heads import heads

NAMES = Names(
    "bert.",
    BERT_BLOCK,
    heads=(
        ("cls.predictions.transform.dense.", "lm_head.dense."),
        ("cls.predictions.transform.LayerNorm.", "lm_head.layer_norm."),
        ("cls.predictions.bias", "lm_head.bias"),
        ("cls.predictions.decoder.", "lm_head.decoder."),
    ),
    # A head for pairs of sentences, and ColBERT's projection, which the checkpoint's head reads.
    others=("cls.seq_relationship.", "linear."),
)
ROBERTA = replace(NAMES, prefix="roberta.", heads=())


def bert(spec: ArchSpec, config: Mapping[str, Any], padding: int | None = None) -> PostNormEncoder:
    """The module of a checkpoint.

    For the task `fill_mask` it has an `lm_head`; for `classify` and `tag` a `classifier`, after a `pooler` in BERT.

    Args:
        padding: RoBERTa's padding index; None for BERT.
    """
    eps, act = epsilon(config), config.get("hidden_act", "gelu")
    unused = 0 if padding is None else padding + 1
    return PostNormEncoder(
        spec,
        NAMES if padding is None else ROBERTA,
        Embeddings(
            spec.vocab_size, spec.hidden_size, spec.max_positions + unused, config.get("type_vocab_size", 2), eps
        ),
        Encoder(spec, act, eps),
        heads(spec, config, words=act if padding is None else "gelu", eps=eps, pooled=padding is None),
        padding=padding,
    )
