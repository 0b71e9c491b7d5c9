"""The ELECTRA trunk: BERT's blocks after a projection of narrower embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from archport.contract import ArchSpec
from archport_bidirectional.encoder import BERT_BLOCK, Embeddings, Encoder, Names, PostNormEncoder, epsilon
from archport_bidirectional.heads import heads

NAMES = Names(
    "electra.",
    BERT_BLOCK,
    heads=(
        ("generator_predictions.dense.", "lm_head.dense."),
        ("generator_predictions.LayerNorm.", "lm_head.layer_norm."),
        ("generator_lm_head.", "lm_head.decoder."),
    ),
    others=("discriminator_predictions.",),
)


def electra(spec: ArchSpec, config: Mapping[str, Any]) -> PostNormEncoder:
    """The module of a checkpoint, with an `lm_head` for `fill_mask` and a `classifier` for `classify`."""
    D, eps = spec.hidden_size, epsilon(config)
    E = config.get("embedding_size", D)
    return PostNormEncoder(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, E, spec.max_positions, config.get("type_vocab_size", 2), eps),
        Encoder(spec, config.get("hidden_act", "gelu"), eps),
        heads(spec, config, words="gelu", eps=eps, width=E, labels="gelu", pooled=False),
        projection=nn.Linear(E, D) if E != D else None,
    )
