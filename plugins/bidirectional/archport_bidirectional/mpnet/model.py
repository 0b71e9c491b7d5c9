"""The MPNet trunk: BERT's blocks with a bucketed table of distances that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from archport.contract import ArchSpec, label_count
from archport.layers import RelativeBuckets, activation
from archport_bidirectional.encoder import Embeddings, Encoder, Names, PostNormEncoder, epsilon, token_classifier
from archport_bidirectional.heads import DenseOut, MaskedHead
from archport_bidirectional.mpnet import BUCKETS, PADDING

NAMES = Names(
    "mpnet.",
    (
        *((f"attention.attn.{name}.", f"attention.{name}_proj.") for name in "qkvo"),
        ("attention.LayerNorm.", "attention_norm."),
        ("intermediate.dense.", "mlp.up_proj."),
        ("output.dense.", "mlp.down_proj."),
        ("output.LayerNorm.", "output_norm."),
    ),
)
_TABLE = "encoder.relative_attention_bias.weight"


class BiasedEncoder(Encoder):
    """Blocks that share `relative_attention_bias`."""

    def __init__(self, spec: ArchSpec, act: str, eps: float) -> None:
        table = RelativeBuckets(spec.attention_layers[0].n_heads, BUCKETS)
        super().__init__(spec, act, eps, table)
        self.relative_attention_bias = table


class MPNet(PostNormEncoder):
    """A post-norm encoder whose checkpoints may hold a larger table than anything reads."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept = super().sanitize(weights)
        if _TABLE in kept:
            kept[_TABLE] = kept[_TABLE][:BUCKETS]
        return kept


def mpnet(spec: ArchSpec, config: Mapping[str, Any]) -> MPNet:
    """The module of a checkpoint, with an `lm_head` for `fill_mask` and a `classifier` for `classify`."""
    D, eps = spec.hidden_size, epsilon(config)
    return MPNet(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, D, spec.max_positions + PADDING + 1, 0, eps),
        BiasedEncoder(spec, config.get("hidden_act", "gelu"), eps),
        padding=PADDING,
        lm_head=MaskedHead(D, spec.vocab_size, activation("gelu"), eps) if "fill_mask" in spec.tasks else None,
        classifier=DenseOut(D, label_count(config)) if "classify" in spec.tasks else token_classifier(spec, config),
    )
