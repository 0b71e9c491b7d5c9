"""The Gemma 2 trunk; what sees what, and how far scores reach, its layers' specs say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn
from archport.contract import ArchSpec, AttentionLayer
from archport.layers import Attention, GatedMLP, Rotary, activation

from archport_decoders.gemma import Block, Gemma


class Gemma2(Gemma):
    """Parameters as of `Gemma`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__(
            spec, config, [block(spec, config, index, layer) for index, layer in enumerate(spec.attention_layers)]
        )


def block(spec: ArchSpec, config: Mapping[str, Any], index: int, layer: AttentionLayer) -> nn.Module:
    D, bias = spec.hidden_size, bool(config["attention_bias"])
    rotary = Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling"))
    scale = config["query_pre_attn_scalar"] ** -0.5
    attention = Attention(index, layer, D, bias=bias, output_bias=bias, rotary=rotary, scale=scale)
    mlp = GatedMLP(D, spec.intermediate_size, activation(config["hidden_activation"]))
    return Block(attention, mlp, D, config["rms_norm_eps"])
