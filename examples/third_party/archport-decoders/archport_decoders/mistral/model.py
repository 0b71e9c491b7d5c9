"""The Mistral trunk: blocks of archport's alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn
from archport.contract import ArchSpec
from archport.layers import Attention, GatedMLP, PreNormBlock, Rotary, activation

from archport_decoders.causal import Causal, Decoder


class Mistral(Causal):
    """Parameters `model.embed_tokens`, `model.layers.N...`, `model.norm`, `lm_head`, as published."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        D, eps, act = spec.hidden_size, config["rms_norm_eps"], activation(config["hidden_act"])
        blocks: list[nn.Module] = []
        for index, layer in enumerate(spec.attention_layers):
            rotary = Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling"))
            mixer = Attention(index, layer, D, bias=False, output_bias=False, rotary=rotary)
            blocks.append(PreNormBlock(mixer, GatedMLP(D, spec.intermediate_size, act), D, eps))
        super().__init__(spec, Decoder(spec, blocks, nn.RMSNorm(D, eps=eps)))
