"""The BERT and RoBERTa trunk: a post-norm encoder with learned positions. Heads are not part of it."""

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
_UNUSED = re.compile(r"^(pooler\.|cls\.|lm_head\.|embeddings\.position_ids$)")
_PREFIXES = ("bert.", "roberta.")
# TensorFlow conversions kept its names for the norms' parameters.
_OLD_NORMS = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))


class Bert(nn.Module):
    """Parameters `embeddings` and `encoder.layer.N`, the latter renamed to the shared encoder block.

    Args:
        padding: RoBERTa's padding index, behind which its positions start; None counts positions from zero.
    """

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], padding: int | None = None) -> None:
        super().__init__()
        self._padding = padding
        self.embeddings = Embeddings(spec, config, 0 if padding is None else padding + 1)
        self.encoder = Encoder(spec, config)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        positions = ctx.positions
        if self._padding is not None:
            positions = _behind_padding(input_ids, positions, self._padding)
        x = self.embeddings(input_ids, positions)
        for block in self.encoder.layer:
            x = block(x, ctx)
        return x

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        for name, value in weights.items():
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            if _UNUSED.match(name):
                continue
            for old, new in (*_OLD_NORMS, *_RENAMES):
                if name.startswith("encoder.") or old.startswith(".LayerNorm."):
                    name = name.replace(old, new)
            kept[name] = value
        return kept


def _behind_padding(input_ids: mx.array, positions: mx.array, padding: int) -> mx.array:
    """Rows of RoBERTa's position table (B, L): a padding token inside a text takes row `padding` and is not counted."""
    blank = (input_ids == padding).astype(mx.int32)
    before = mx.cumsum(blank, axis=1) - blank
    # Documents that share a row count their own padding only.
    first = mx.arange(input_ids.shape[1], dtype=mx.int32) - positions
    before = before - mx.take_along_axis(before, mx.broadcast_to(first, before.shape), axis=1)
    return mx.where(blank > 0, padding, positions - before + padding + 1)


def published(weights: Mapping[str, mx.array], prefix: str) -> dict[str, mx.array]:
    """The inverse of `sanitize`: the module's tensors under published names, behind the usual prefix."""
    named: dict[str, mx.array] = {}
    for name, value in weights.items():
        if name.startswith("encoder."):
            new_to_old = next(((new, old) for old, new in _RENAMES if f".{new}" in name), ("", ""))
            name = name.replace(*new_to_old) if new_to_old[0] else name
        named[f"{prefix}{name}"] = value
    return named


class Embeddings(nn.Module):
    """Word, position and segment embeddings, normalised. Every token is of segment 0."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], unused_positions: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embeddings = nn.Embedding(spec.max_positions + unused_positions, spec.hidden_size)
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
