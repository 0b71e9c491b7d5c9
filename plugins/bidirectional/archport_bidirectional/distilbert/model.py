"""The DistilBERT trunk: BERT's blocks under names of their own, without token types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from archport.contract import ArchSpec, label_count
from archport.layers import activation
from archport_bidirectional.encoder import Embeddings, Encoder, Names, PostNormEncoder, token_classifier
from archport_bidirectional.heads import Dense, MaskedHead

NAMES = Names(
    "distilbert.",
    (
        ("attention.q_lin.", "attention.q_proj."),
        ("attention.k_lin.", "attention.k_proj."),
        ("attention.v_lin.", "attention.v_proj."),
        ("attention.out_lin.", "attention.o_proj."),
        ("sa_layer_norm.", "attention_norm."),
        ("ffn.lin1.", "mlp.up_proj."),
        ("ffn.lin2.", "mlp.down_proj."),
        ("output_layer_norm.", "output_norm."),
    ),
    trunk=(("transformer.layer.", "encoder.layer."),),
    heads=(
        ("vocab_transform.", "lm_head.dense."),
        ("vocab_layer_norm.", "lm_head.layer_norm."),
        ("vocab_projector.", "lm_head.decoder."),
        ("pre_classifier.", "pooler.dense."),
    ),
)
# Of every norm; no config states it.
EPSILON = 1e-12


def distilbert(spec: ArchSpec, config: Mapping[str, Any]) -> PostNormEncoder:
    """The module of a checkpoint, with an `lm_head` for `fill_mask`, a `pooler` and a `classifier` for `classify`."""
    D, act = spec.hidden_size, config.get("activation", "gelu")
    masked, labelled = "fill_mask" in spec.tasks, "classify" in spec.tasks
    return PostNormEncoder(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, D, spec.max_positions, 0, EPSILON),
        Encoder(spec, act, EPSILON),
        lm_head=MaskedHead(D, spec.vocab_size, activation(act), EPSILON) if masked else None,
        pooler=Dense(D, nn.relu) if labelled else None,
        classifier=nn.Linear(D, label_count(config)) if labelled else token_classifier(spec, config),
    )
