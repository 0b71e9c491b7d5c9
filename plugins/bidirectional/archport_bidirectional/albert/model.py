"""The ALBERT trunk: a few post-norm blocks, each run as several layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport_bidirectional.encoder import Embeddings, Names, PostNormEncoder, block, epsilon
from archport_bidirectional.heads import heads

NAMES = Names(
    "albert.",
    (
        ("attention.query.", "attention.q_proj."),
        ("attention.key.", "attention.k_proj."),
        ("attention.value.", "attention.v_proj."),
        ("attention.dense.", "attention.o_proj."),
        ("attention.LayerNorm.", "attention_norm."),
        ("ffn_output.", "mlp.down_proj."),
        ("ffn.", "mlp.up_proj."),
        ("full_layer_layer_norm.", "output_norm."),
    ),
    trunk=(("pooler.", "pooler.dense."),),
    heads=(
        ("predictions.dense.", "lm_head.dense."),
        ("predictions.LayerNorm.", "lm_head.layer_norm."),
        ("predictions.bias", "lm_head.bias"),
        ("predictions.decoder.", "lm_head.decoder."),
    ),
    others=("sop_classifier.",),
)


@dataclass(frozen=True, slots=True)
class AsLayer:
    """A context in which a block attends as another layer than the one it was made for.

    Args:
        ctx: what it asks.
        layer: the layer it stands for.
    """

    ctx: LayerContext
    layer: int

    @property
    def rotate(self) -> Any:
        return self.ctx.rotate

    def attend(self, layer: int, q: mx.array, k: mx.array | None, v: mx.array | None, **how: Any) -> mx.array:
        return self.ctx.attend(self.layer, q, k, v, **how)

    def pause(self, x: mx.array) -> None:
        self.ctx.pause(x)


class Group(nn.Module):
    """The blocks of one group; parameters `albert_layers.N`."""

    def __init__(self, spec: ArchSpec, act: str, eps: float, count: int) -> None:
        super().__init__()
        self.albert_layers = [block(index, spec, act, eps) for index in range(count)]


class SharedEncoder(nn.Module):
    """Parameters `embedding_hidden_mapping_in` and `albert_layer_groups.N`, as published."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], width: int, eps: float) -> None:
        super().__init__()
        groups, inner = config.get("num_hidden_groups", 1), config.get("inner_group_num", 1)
        act = config.get("hidden_act", "gelu_new")
        self.embedding_hidden_mapping_in = nn.Linear(width, spec.hidden_size)
        self.albert_layer_groups = [Group(spec, act, eps, inner) for _ in range(groups)]
        layers = len(spec.layers) // inner
        # In transformers' arithmetic, which is that of floats where groups do not share layers evenly.
        self._order = [(int(layer / (layers / groups)), at) for layer in range(layers) for at in range(inner)]

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embedding_hidden_mapping_in(x)
        for layer, (group, at) in enumerate(self._order):
            shared: Any = AsLayer(ctx, layer)
            x = self.albert_layer_groups[group].albert_layers[at](x, shared)
        return x


def albert(spec: ArchSpec, config: Mapping[str, Any]) -> PostNormEncoder:
    """The module of a checkpoint, with an `lm_head` for `fill_mask`, a `pooler` and a `classifier` for `classify`."""
    eps, E = epsilon(config), config.get("embedding_size", 128)
    return PostNormEncoder(
        spec,
        NAMES,
        Embeddings(spec.vocab_size, E, spec.max_positions, config.get("type_vocab_size", 2), eps),
        SharedEncoder(spec, config, E, eps),
        heads(spec, config, words=config.get("hidden_act", "gelu_new"), eps=eps, width=E, pooled=True),
    )
