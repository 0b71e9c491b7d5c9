"""The Ministral 3 trunk: archport's blocks, with queries that grow every so many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import mlx.core as mx
from archport.contract import ArchSpec, LayerContext
from archport.layers import Attention

from archport_decoders.causal import Causal, plain
from archport_decoders.ministral3 import GROWTH
from archport_decoders.mistral.model import NONE


class GrowingAttention(Attention):
    """Attention whose query at position p is multiplied by 1 + beta log(1 + floor(p / every))."""

    # The sum after it is its own step.
    takes_onto = False

    def __init__(self, *arguments: Any, growth: tuple[float, float], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._beta, self._every = growth

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        q, k, v, _ = self.heads(x, ctx.rotate)
        steps = mx.floor(ctx.positions.astype(mx.float32) / self._every)
        growth = 1 + self._beta * mx.log1p(steps)
        return self.joined(self.attended(ctx, q * growth[:, None, :, None].astype(q.dtype), k, v), None)


class Ministral3(Causal):
    """Parameters `model.embed_tokens`, `model.layers.N...`, `model.norm`, `lm_head`, as published."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        growth = tuple(float(config["rope_scaling"][key]) for key in GROWTH)
        super().__init__(spec, plain(spec, {**config, **NONE}, partial(GrowingAttention, growth=growth)))
