"""The Gemma 3 trunk: norms of q and k, and positions of two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn
from archport.contract import ArchSpec, AttentionLayer
from archport.layers import Attention, GatedMLP, Rotary, ZeroCentredRMSNorm, activation

from archport_decoders.gemma import Block, Gemma


class Gemma3(Gemma):
    """Parameters as of `Gemma`, and `q_norm` and `k_norm` in every attention."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__(
            spec, config, [block(spec, config, index, layer) for index, layer in enumerate(spec.attention_layers)]
        )


def block(spec: ArchSpec, config: Mapping[str, Any], index: int, layer: AttentionLayer) -> nn.Module:
    D, eps, bias = spec.hidden_size, config["rms_norm_eps"], bool(config.get("attention_bias"))
    local = config["layer_types"][index] == "sliding_attention"
    theta, scaling = ("rope_local_base_freq", "rope_local_scaling") if local else ("rope_theta", "rope_scaling")
    attention = Attention(
        index,
        layer,
        D,
        bias=bias,
        output_bias=bias,
        qk_norm_eps=eps,
        qk_norm=ZeroCentredRMSNorm,
        rotary=Rotary(layer.head_dim, config[theta], config.get(scaling)),
        scale=config["query_pre_attn_scalar"] ** -0.5,
    )
    return Block(attention, GatedMLP(D, spec.intermediate_size, activation(config["hidden_activation"])), D, eps)
