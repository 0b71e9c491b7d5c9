"""What the Gemmas build alike: norms that store their distance from one, scaled embeddings, capped logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec, LayerContext
from archport.layers import ZeroCentredRMSNorm

from archport_decoders.causal import Causal, Decoder


class Block(nn.Module):
    """One layer of Gemma 2 and 3; parameters `input_layernorm`, `self_attn`, `post_attention_layernorm`,
    `pre_feedforward_layernorm`, `mlp`, `post_feedforward_layernorm`."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, D: int, eps: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(D, eps)
        self.pre_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), ctx))
        ctx.pause(x)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        ctx.pause(x)
        return x


class Gemma(Causal):
    """Parameters `model.embed_tokens`, `model.layers.N...`, `model.norm`, as published; the head is the embedding."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], blocks: Sequence[nn.Module]) -> None:
        D = spec.hidden_size
        norm = ZeroCentredRMSNorm(D, config["rms_norm_eps"])
        super().__init__(spec, Decoder(spec, list(blocks), norm, scale=D**0.5))
        self._cap = spec.logit_softcap

    def logits(self, hidden: mx.array) -> mx.array:
        logits = super().logits(hidden)
        return logits if self._cap is None else mx.tanh(logits / self._cap) * self._cap
