"""The gpt-oss trunk: archport's blocks, with experts that clamp what their gates multiply."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec
from archport.layers import Attention, PreNormBlock, Rotary, SparseMLP

from archport_decoders.causal import Causal, Decoder
from archport_decoders.gpt_oss.published import renamed


class GptOss(Causal):
    """Parameters as published, but `mlp.gate` for the router and `mlp.switch_mlp` for the experts."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        assert spec.experts is not None
        D, eps, bias = spec.hidden_size, config["rms_norm_eps"], bool(config["attention_bias"])
        alpha, limit = config["swiglu_alpha"], config["swiglu_limit"]

        # One pass over memory, and no arrays in between.
        @partial(mx.compile, shapeless=True)
        def clamped(gate: mx.array, up: mx.array) -> mx.array:
            gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
            return gate * mx.sigmoid(alpha * gate) * (up + 1)

        blocks: list[nn.Module] = []
        for index, layer in enumerate(spec.attention_layers):
            rotary = Rotary(layer.head_dim, config["rope_theta"], config["rope_scaling"])
            mixer = Attention(index, layer, D, bias=bias, output_bias=bias, rotary=rotary)
            # Shares of the chosen experts alone are shares of all, scaled to one.
            experts = SparseMLP(D, spec.experts, renormalise=True, bias=True, combine=clamped)
            blocks.append(PreNormBlock(mixer, experts, D, eps))
        super().__init__(spec, Decoder(spec, blocks, nn.RMSNorm(D, eps=eps)))

    def renamed(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return renamed(weights)
