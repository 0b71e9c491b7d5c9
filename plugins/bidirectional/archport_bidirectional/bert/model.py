"""BERT and RoBERTa: a post-norm encoder with learned positions, and the heads of classifiers and masked LMs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport.layers import MLP, Attention, Embedding, PostNormBlock, activation
from archport_bidirectional.configs import label_count
from archport_bidirectional.heads import Dense, DenseOut, MaskedHead

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
# A head for pairs of sentences, and a buffer that old versions stored.
_UNUSED = re.compile(r"^(cls\.seq_relationship\.|embeddings\.position_ids$)")
_PREFIXES = ("bert.", "roberta.")
_HEADS = (
    ("cls.predictions.transform.dense.", "lm_head.dense."),
    ("cls.predictions.transform.LayerNorm.", "lm_head.layer_norm."),
    ("cls.predictions.bias", "lm_head.bias"),
    ("cls.predictions.decoder.", "lm_head.decoder."),
)
# TensorFlow conversions kept its names for the norms' parameters.
_OLD_NORMS = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))


class Bert(nn.Module):
    """Parameters `embeddings` and `encoder.layer.N`, the latter renamed to the shared encoder block.

    For the task `fill_mask` also `lm_head`; for `classify` a `classifier`, behind a `pooler` in BERT.

    Args:
        padding: RoBERTa's padding index, behind which its positions start; None counts positions from zero.
    """

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], padding: int | None = None) -> None:
        super().__init__()
        self._padding, self._tied = padding, spec.tied_head
        self.embeddings = Embeddings(spec, config, 0 if padding is None else padding + 1)
        self.encoder = Encoder(spec, config)
        D = spec.hidden_size
        if "fill_mask" in spec.tasks:
            act = activation("gelu" if padding is not None else config.get("hidden_act", "gelu"))
            self.lm_head = MaskedHead(D, spec.vocab_size, act, config.get("layer_norm_eps", 1e-12))
        if "classify" in spec.tasks and padding is not None:
            self.classifier = DenseOut(D, label_count(config))
        elif "classify" in spec.tasks:
            self.pooler = Dense(D, mx.tanh)
            self.classifier = nn.Linear(D, label_count(config))

    def __call__(self, input_ids: mx.array, ctx: LayerContext, token_types: mx.array | None = None) -> mx.array:
        positions = ctx.positions
        if self._padding is not None:
            positions = _behind_padding(input_ids, positions, self._padding)
        x = self.embeddings(input_ids, positions, token_types)
        for block in self.encoder.layer:
            x = block(x, ctx)
        return x

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (B, labels) of first tokens (B, D)."""
        return self.classifier(self.pooler(pooled) if "pooler" in self else pooled)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits (n, V) of the words at hidden rows (n, D)."""
        return self.lm_head.logits(hidden, self.embeddings.word_embeddings)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        for name, value in weights.items():
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            if _UNUSED.match(name):
                continue
            for old, new in (*_OLD_NORMS, *_RENAMES, *_HEADS):
                if name.startswith(("encoder.", old)) or old.startswith(".LayerNorm."):
                    name = name.replace(old, new)
            kept[name] = value
        # A pooler, or a head of another task, is no part of what this module was asked for.
        own = {part for part in ("pooler", "classifier", "lm_head") if part in self}
        kept = {
            name: value
            for name, value in kept.items()
            if name.partition(".")[0] in own or not name.startswith(("pooler.", "classifier.", "lm_head.", "linear."))
        }
        if "lm_head" not in self:
            return kept
        return self.lm_head.settle(kept, "lm_head", "embeddings.word_embeddings", tied=self._tied)


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
        if name.startswith("lm_head.") and prefix == "bert.":
            old, new = next((old, new) for old, new in _HEADS if name.startswith(new))
            named[name.replace(new, old)] = value
            continue
        named[name if name.startswith(("classifier.", "lm_head.")) else f"{prefix}{name}"] = value
    return named


class Embeddings(nn.Module):
    """Word, position and segment embeddings, normalised. Without token types every token is of segment 0."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], unused_positions: int) -> None:
        super().__init__()
        self.word_embeddings = Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embeddings = Embedding(spec.max_positions + unused_positions, spec.hidden_size)
        self.token_type_embeddings = Embedding(config.get("type_vocab_size", 2), spec.hidden_size)
        self.LayerNorm = nn.LayerNorm(spec.hidden_size, eps=config.get("layer_norm_eps", 1e-12))

    def __call__(self, input_ids: mx.array, positions: mx.array, token_types: mx.array | None) -> mx.array:
        # Asked of the module: a packed table's weight holds integers.
        segment = self.token_type_embeddings(mx.zeros((1, 1), dtype=mx.int32) if token_types is None else token_types)
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
