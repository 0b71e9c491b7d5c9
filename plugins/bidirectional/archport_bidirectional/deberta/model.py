"""The DeBERTa-v2 trunk: BERT's blocks, with vectors by distance that queries and keys meet.

arXiv 2006.03654, section 3.1: a score is the sum of content to content, content to position and position to content,
over the root of as many times the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import ArchSpec, DistanceVectors, LayerContext
from archport.layers import MLP, Attention, Embedding, PostNormBlock, activation
from archport_bidirectional.deberta import relative_positions, relative_terms, stated_terms
from archport_bidirectional.encoder import Embeddings, Names, PostNormEncoder, epsilon
from archport_bidirectional.heads import heads

NAMES = Names(
    "deberta.",
    (
        *((f"attention.self.{name}_proj.", f"attention.{own}_proj.") for name, own in
          (("query", "q"), ("key", "k"), ("value", "v"), ("pos_key", "pos_k"), ("pos_query", "pos_q"))),
        ("attention.output.dense.", "attention.o_proj."),
        ("attention.output.LayerNorm.", "attention_norm."),
        ("intermediate.dense.", "mlp.up_proj."),
        ("output.dense.", "mlp.down_proj."),
        ("output.LayerNorm.", "output_norm."),
    ),
    heads=(
        ("cls.predictions.transform.dense.", "lm_head.dense."),
        ("cls.predictions.transform.LayerNorm.", "lm_head.layer_norm."),
        ("cls.predictions.decoder.", "lm_head.decoder."),
        ("cls.predictions.bias", "lm_head.bias"),
        # Of a head that is not the older one.
        ("lm_predictions.lm_head.dense.", "lm_head.dense."),
        ("lm_predictions.lm_head.LayerNorm.", "lm_head.layer_norm."),
        ("lm_predictions.lm_head.bias", "lm_head.bias"),
        ("pooler.dense.", "pooler.dense."),
    ),
    # Of training.
    others=("mask_predictions.",),
)  # fmt: skip


# (distances (n,)) -> rows (m, D) of a table, and the row of each distance; None where each has its own.
Rows = Callable[[mx.array], tuple[mx.array, mx.array | None]]


def _rows(positions: int, half: int, buckets: int, span: int) -> np.ndarray:
    """The table's row of every distance from 1 - positions to positions - 1, int32.

    In float32 and in the order of transformers' operations, since the edges of buckets fall where rounding puts them.
    """
    before = -np.arange(1 - positions, positions, dtype=np.int64)
    bucket = before
    if buckets > 0:
        middle = buckets // 2
        far = np.maximum(np.abs(before), middle - 1).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            wide = np.log(far / np.float32(middle)) / np.log(np.float32((span - 1) / middle))
            wide = np.ceil(wide * np.float32(middle - 1)) + np.float32(middle)
        near = np.abs(before) <= middle
        bucket = np.where(near, before, np.where(near, 0, wide) * np.sign(before)).astype(np.int64)
    return np.clip(bucket + half, 0, 2 * half - 1).astype(np.int32)


class Disentangled(Attention):
    """Attention whose scores meet the vectors of a shared table of distances, by this layer's own projections.

    Parameters besides those of `Attention`: `pos_k_proj` and `pos_q_proj`, where those of keys and queries do not serve
    for both.
    """

    def __init__(self, index: int, spec: ArchSpec, rows: Rows, config: Mapping[str, Any]) -> None:
        layer, terms = spec.attention_layers[index], relative_terms(config)
        scale = 1 / math.sqrt(layer.head_dim * (1 + len(stated_terms(config))))
        super().__init__(
            index,
            layer,
            spec.hidden_size,
            bias=True,
            output_bias=True,
            scale=scale,
            distance_bias=self._vectors if terms else None,
        )
        self._rows, self._terms = rows, terms
        self._shared = bool(config.get("share_att_key", False))
        if not self._shared:
            width = layer.n_heads * layer.head_dim
            if "c2p" in terms:
                self.pos_k_proj = nn.Linear(spec.hidden_size, width)
            if "p2c" in terms:
                self.pos_q_proj = nn.Linear(spec.hidden_size, width)

    def merge(self) -> None:
        """As of `Attention`, unless rows of the table go through the matrices of queries and keys, one at a time."""
        if not (self._shared and self._terms):
            super().merge()

    def _vectors(self, distances: mx.array) -> DistanceVectors:
        """The vectors that queries and keys meet at distances (n,), scaled as scores are."""
        rows, at = self._rows(distances)
        names = ("k_proj", "q_proj") if self._shared else ("pos_k_proj", "pos_q_proj")
        found = [
            self._by_heads(self[name](rows), at) if term in self._terms else None
            for term, name in zip(("c2p", "p2c"), names, strict=True)
        ]
        return DistanceVectors(*found)

    def _by_heads(self, projected: mx.array, at: mx.array | None) -> mx.array:
        heads = projected * self._scale
        heads = heads.reshape(len(projected), self._spec.n_heads, self._spec.head_dim).transpose(1, 0, 2)
        return heads if at is None else heads[:, at]


class Encoder(nn.Module):
    """Parameters `layer.N`; where distances count `rel_embeddings`, and `LayerNorm` where that table is normed."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        D, act = spec.hidden_size, activation(config["hidden_act"])
        span, buckets = relative_positions(config), config.get("position_buckets", -1)
        self._half = buckets if buckets > 0 else span
        rows = _rows(config["max_position_embeddings"], self._half, buckets, span)
        self._row_of, self._farthest = mx.array(rows), len(rows) // 2
        if config["relative_attention"]:
            self.rel_embeddings = Embedding(2 * self._half, D)
            normed = (config.get("norm_rel_ebd") or "none").lower().split("|")
            if "layer_norm" in [word.strip() for word in normed]:
                self.LayerNorm = nn.LayerNorm(D, eps=eps)
        self.layer = [
            PostNormBlock(
                Disentangled(index, spec, self.rows, config), MLP(D, spec.intermediate_size, act, bias=True), D, eps
            )
            for index in range(len(spec.layers))
        ]

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        for layer in self.layer:
            x = layer(x, ctx)
        return x

    def rows(self, distances: mx.array) -> tuple[mx.array, mx.array | None]:
        """(rows (m, D) of the table, the row of each distance (n,)); None where each distance has its own."""
        at = self._row_of[mx.clip(distances, -self._farthest, self._farthest) + self._farthest]
        few = distances.size <= 2 * self._half
        rows = self.rel_embeddings(at if few else mx.arange(2 * self._half, dtype=mx.int32))
        return self.LayerNorm(rows) if "LayerNorm" in self else rows, None if few else at


class DebertaV2(PostNormEncoder):
    """A post-norm encoder whose checkpoints may hold tables that their config leaves out."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        tables = {"embeddings": ("position_embeddings", "token_type_embeddings")}
        tables["encoder"] = ("rel_embeddings", "LayerNorm")
        unread = tuple(f"{at}.{name}." for at, names in tables.items() for name in names if name not in self[at])
        kept = super().sanitize(weights)
        return {name: value for name, value in kept.items() if not name.startswith(unread)}


def deberta_v2(spec: ArchSpec, config: Mapping[str, Any]) -> DebertaV2:
    """The module of a checkpoint, with an `lm_head` for `fill_mask`, a `pooler` and a `classifier` for `classify`."""
    eps, act = epsilon(config), config["hidden_act"]
    rows = config["max_position_embeddings"] if config["position_biased_input"] else 0
    return DebertaV2(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, spec.hidden_size, rows, config["type_vocab_size"], eps),
        Encoder(spec, config, eps),
        heads(spec, config, words=act, eps=eps, labels=config["pooler_hidden_act"], pooled=True),
    )
