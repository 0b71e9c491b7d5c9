"""The first Gemma's trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec, AttentionLayer, LayerContext
from archport.layers import Attention, GatedMLP, Rotary, ZeroCentredRMSNorm, activation

from archport_decoders.gemma import Gemma


class Block(nn.Module):
    """One layer; parameters `input_layernorm`, `self_attn`, `post_attention_layernorm`, `mlp`."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, D: int, eps: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(D, eps)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), ctx)
        ctx.pause(x)
        x = x + self.mlp(self.post_attention_layernorm(x))
        ctx.pause(x)
        return x


class Gemma1(Gemma):
    """Parameters as of `Gemma`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__(
            spec, config, [block(spec, config, index, layer) for index, layer in enumerate(spec.attention_layers)]
        )


def block(spec: ArchSpec, config: Mapping[str, Any], index: int, layer: AttentionLayer) -> nn.Module:
    D, bias = spec.hidden_size, bool(config["attention_bias"])
    rotary = Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling"))
    attention = Attention(index, layer, D, bias=bias, output_bias=bias, rotary=rotary)
    mlp = GatedMLP(D, spec.intermediate_size, activation(config["hidden_act"]))
    return Block(attention, mlp, D, config["rms_norm_eps"])
