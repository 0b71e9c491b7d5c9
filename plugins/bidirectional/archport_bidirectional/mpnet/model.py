"""The MPNet trunk: BERT's blocks with a bucketed table of distances that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from archport.contract import ArchSpec
from archport.layers import RelativeBuckets
from archport_bidirectional.encoder import Embeddings, Encoder, Names, PostNormEncoder, epsilon
from archport_bidirectional.heads import heads
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
    eps = epsilon(config)
    return MPNet(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, spec.hidden_size, spec.max_positions + PADDING + 1, 0, eps),
        BiasedEncoder(spec, config.get("hidden_act", "gelu"), eps),
        heads(spec, config, words="gelu", eps=eps, pooled=False),
        padding=PADDING,
    )
