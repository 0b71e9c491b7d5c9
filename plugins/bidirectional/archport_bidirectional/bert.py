"""The BERT trunk: post-norm encoder with learned positions. The pooler and pre-training heads are not part of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport.layers import MLP, Attention, PostNormBlock
from archport.layers.activations import activation

# Published name -> name of the shared block's parameter.
_RENAMES = (
    ("attention.self.query.", "attention.q_proj."),
    ("attention.self.key.", "attention.k_proj."),
    ("attention.self.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    ("attention.output.LayerNorm.", "attention_norm."),
    ("intermediate.dense.", "mlp.up_proj."),
    ("output.dense.", "mlp.down_proj."),
    ("output.LayerNorm.", "output_norm."),
)
# Heads of pre-training checkpoints, and a buffer that old versions stored.
_UNUSED = re.compile(r"^(pooler\.|cls\.|embeddings\.position_ids$)")
# TensorFlow conversions kept its names for the norms' parameters.
_OLD_NORMS = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))


class Bert(nn.Module):
    """Parameters `embeddings` and `encoder.layer.N`, the latter renamed to the shared encoder block."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec, config)
        self.encoder = Encoder(spec, config)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embeddings(input_ids, ctx.positions)
        for block in self.encoder.layer:
            x = block(x, ctx)
        return x

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        for name, value in weights.items():
            name = name.removeprefix("bert.")
            if _UNUSED.match(name):
                continue
            for old, new in (*_OLD_NORMS, *_RENAMES):
                if name.startswith("encoder.") or old.startswith(".LayerNorm."):
                    name = name.replace(old, new)
            kept[name] = value
        return kept


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The inverse of `sanitize`: the module's tensors under published names, behind the usual prefix."""
    named: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.startswith("encoder."):
            new_to_old = next(((new, old) for old, new in _RENAMES if f".{new}" in name), ("", ""))
            name = name.replace(*new_to_old) if new_to_old[0] else name
        named[f"bert.{name}"] = value
    return named


class Embeddings(nn.Module):
    """Word, position and segment embeddings, normalised. Every token is of segment 0."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embeddings = nn.Embedding(spec.max_positions, spec.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.get("type_vocab_size", 2), spec.hidden_size)
        self.LayerNorm = nn.LayerNorm(spec.hidden_size, eps=config.get("layer_norm_eps", 1e-12))

    def __call__(self, input_ids: mx.array, positions: mx.array) -> mx.array:
        # Asked of the module: a packed table's weight holds integers.
        segment = self.token_type_embeddings(mx.zeros((1, 1), dtype=mx.int32))
        return self.LayerNorm(self.word_embeddings(input_ids) + self.position_embeddings(positions) + segment)


class Encoder(nn.Module):
    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, act = config.get("layer_norm_eps", 1e-12), activation(config.get("hidden_act", "gelu"))
        self.layer = [
            PostNormBlock(
                Attention(index, layer, spec.hidden_size, bias=True, output_bias=True),
                MLP(spec.hidden_size, spec.intermediate_size, act, bias=True),
                spec.hidden_size,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]
