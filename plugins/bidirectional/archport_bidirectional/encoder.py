"""Post-norm encoders: embeddings, equal blocks, and the heads of classifiers and masked LMs, composed by each family.

A family says what stands in front of its blocks, how its published tensors are named, and which heads it has. Knows no
family by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, DistanceBias, LayerContext
from archport.layers import MLP, Attention, Embedding, PostNormBlock, activation

# TensorFlow conversions kept its names for the norms' parameters.
_OLD_NORMS = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))
# Modules that serve one task; a checkpoint may hold those of others.
_HEADS = ("pooler", "classifier", "lm_head")


@dataclass(frozen=True, slots=True)
class Names:
    """How a family's published tensors are named, by pairs of a published beginning or piece and the module's own.

    Args:
        prefix: in front of the trunk's tensors, where a head was saved with it.
        trunk: beginnings of trunk tensors.
        block: pieces of a block's tensors.
        heads: beginnings of the heads' tensors.
        others: beginnings of tensors that no task here reads.
    """

    prefix: str
    block: tuple[tuple[str, str], ...]
    trunk: tuple[tuple[str, str], ...] = ()
    heads: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()

    def own(self, name: str) -> str | None:
        """The module's name of a published tensor; None where no task reads it."""
        name = name.removeprefix(self.prefix)
        for old, new in _OLD_NORMS:
            name = name.replace(old, new)
        if name == "embeddings.position_ids" or name.startswith(self.others or "\0"):
            return None
        for old, new in (*self.trunk, *self.heads):
            # What is saved under the module's own names stays.
            if name.startswith(old) and not name.startswith(new):
                name = new + name.removeprefix(old)
                break
        if name.startswith("encoder."):
            for old, new in self.block:
                name = name.replace(old, new)
        return name

    def published(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The module's tensors under their published names."""
        return {self._published(name): value for name, value in weights.items()}

    def _published(self, name: str) -> str:
        head = name.startswith(("classifier.", "lm_head."))
        if name.startswith("encoder."):
            for old, new in self.block:
                if f".{new}" in name:
                    name = name.replace(f".{new}", f".{old}")
                    break
        for old, new in (*self.trunk, *self.heads):
            if name.startswith(new):
                name = old + name.removeprefix(new)
                break
        # A pooler lies with the trunk, where it is not the first layer of a classifier.
        return name if head or any(name.startswith(old) for old, _ in self.heads) else f"{self.prefix}{name}"


# Published name -> name of the shared block's parameter, as BERT's checkpoints and most others have them.
BERT_BLOCK = (
    ("attention.self.query.", "attention.q_proj."),
    ("attention.self.key.", "attention.k_proj."),
    ("attention.self.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    ("attention.output.LayerNorm.", "attention_norm."),
    ("intermediate.dense.", "mlp.up_proj."),
    ("output.dense.", "mlp.down_proj."),
    ("output.LayerNorm.", "output_norm."),
)


class Headed(nn.Module):
    """A trunk's `embeddings` and the heads after it: of `pooler`, `classifier` and `lm_head` those that there are.

    Args:
        heads: by name.
    """

    def __init__(self, spec: ArchSpec, embeddings: Embeddings, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._tied = spec.tied_head
        self.embeddings = embeddings
        for name, head in heads.items():
            self[name] = head

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (B, labels) of first tokens (B, D), or (B, L, labels) of every token."""
        return self["classifier"](self["pooler"](pooled) if "pooler" in self else pooled)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits (n, V) of the words at hidden rows (n, D)."""
        return self["lm_head"].logits(hidden, self.embeddings.word_embeddings)

    def settled(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The tensors of the trunk and of these heads; those of other tasks' heads are no part of the module."""
        unused = {head for head in _HEADS if head not in self}
        kept = {name: value for name, value in weights.items() if name.partition(".")[0] not in unused}
        if "lm_head" not in self:
            return kept
        return self["lm_head"].settle(kept, "lm_head", "embeddings.word_embeddings", tied=self._tied)


class PostNormEncoder(Headed):
    """Parameters `embeddings`, `encoder.layer.N`, and those of the heads.

    Args:
        names: of the published tensors.
        padding: RoBERTa's padding index, after which its positions start; None counts positions from zero.
        projection: from the width of the embeddings to that of the blocks, where these differ.
    """

    def __init__(
        self,
        spec: ArchSpec,
        names: Names,
        embeddings: Embeddings,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        padding: int | None = None,
        projection: nn.Linear | None = None,
    ) -> None:
        super().__init__(spec, embeddings, heads)
        self._names, self._padding = names, padding
        self.encoder = encoder
        if projection is not None:
            self.embeddings_project = projection

    def __call__(self, input_ids: mx.array, ctx: LayerContext, token_types: mx.array | None = None) -> mx.array:
        positions = ctx.positions
        if self._padding is not None:
            positions = after_padding(input_ids, positions, self._padding)
        x = self.embeddings(input_ids, positions, token_types)
        if "embeddings_project" in self:
            x = self["embeddings_project"](x)
        return self.encoder(x, ctx)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        named = ((self._names.own(published), value) for published, value in weights.items())
        return self.settled({name: value for name, value in named if name is not None})


def after_padding(input_ids: mx.array, positions: mx.array, padding: int) -> mx.array:
    """Rows of RoBERTa's position table (B, L): a padding token inside a text takes row `padding` and is not counted."""
    blank = (input_ids == padding).astype(mx.int32)
    before = mx.cumsum(blank, axis=1) - blank
    # Documents that share a row count their own padding only.
    first = mx.arange(input_ids.shape[1], dtype=mx.int32) - positions
    before = before - mx.take_along_axis(before, mx.broadcast_to(first, before.shape), axis=1)
    return mx.where(blank > 0, padding, positions - before + padding + 1)


class Embeddings(nn.Module):
    """Word, position and token type embeddings, normalised. Without token types every token has type 0.

    Args:
        width: of the tables.
        rows: of the position table; 0 for families that turn heads, or know distances, instead.
        types: rows of the type table; 0 for families without one.
    """

    def __init__(self, vocabulary: int, width: int, rows: int, types: int, eps: float) -> None:
        super().__init__()
        self.word_embeddings = Embedding(vocabulary, width)
        if rows:
            self.position_embeddings = Embedding(rows, width)
        if types:
            self.token_type_embeddings = Embedding(types, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def __call__(self, input_ids: mx.array, positions: mx.array | None, token_types: mx.array | None) -> mx.array:
        x = self.word_embeddings(input_ids)
        if positions is not None and "position_embeddings" in self:
            x = x + self.position_embeddings(positions)
        if "token_type_embeddings" in self:
            # Asked of the module: a packed table's weight holds integers.
            x = x + self.token_type_embeddings(mx.zeros((1, 1), dtype=mx.int32) if token_types is None else token_types)
        return self.LayerNorm(x)


class Encoder(nn.Module):
    """Blocks, one after another; parameters `layer.N`.

    Args:
        bias: what distances add to the scores, shared by all blocks.
    """

    def __init__(self, spec: ArchSpec, act: str, eps: float, bias: DistanceBias | None = None) -> None:
        super().__init__()
        self.layer = [block(index, spec, act, eps, bias) for index in range(len(spec.layers))]

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        for layer in self.layer:
            x = layer(x, ctx)
        return x


def block(index: int, spec: ArchSpec, act: str, eps: float, bias: DistanceBias | None = None) -> PostNormBlock:
    """The block of one layer."""
    D = spec.hidden_size
    return PostNormBlock(
        Attention(index, spec.attention_layers[index], D, bias=True, output_bias=True, distance_bias=bias),
        MLP(D, spec.intermediate_size, activation(act), bias=True),
        D,
        eps,
    )


def epsilon(config: Mapping[str, Any]) -> float:
    """That of the norms."""
    return config.get("layer_norm_eps", 1e-12)
