"""The DistilBERT trunk: BERT's blocks under names of their own, without token types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract import ArchSpec
from archport_bidirectional.encoder import Embeddings, Encoder, Names, PostNormEncoder
from archport_bidirectional.heads import heads

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
    act = config.get("activation", "gelu")
    return PostNormEncoder(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, spec.hidden_size, spec.max_positions, 0, EPSILON),
        Encoder(spec, act, EPSILON),
        heads(spec, config, words=act, eps=EPSILON, labels="relu", pooled=True),
    )
