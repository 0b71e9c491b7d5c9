"""The Qwen3.5 trunk: token ids to hidden states, and its output head. Knows no masks, states or caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, AttentionLayer, LayerContext, LayerSpec
from archport.layers import Attention, GatedDeltaNet, GatedMLP, PreNormBlock, Rotary
from archport.layers.activations import activation
from archport_qwen35.weights import renamed


class Qwen35(nn.Module):
    """Parameter names as text checkpoints have them: `model.embed_tokens`, `model.layers.N...`, `lm_head`."""

    def __init__(self, spec: ArchSpec, text: Mapping[str, Any]) -> None:
        super().__init__()
        self._spec = spec
        self.model = Decoder(spec, text)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return {name: value for name, value in renamed(weights, self._spec).items() if "lm_head." not in name}

    def in_float32(self, name: str) -> bool:
        # Decays are exponentials of exponentials of these.
        return name.endswith(".A_log")


class Decoder(nn.Module):
    def __init__(self, spec: ArchSpec, text: Mapping[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [_block(spec, text, index, layer) for index, layer in enumerate(spec.layers)]
        self.norm = nn.RMSNorm(spec.hidden_size, eps=text["rms_norm_eps"])

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)


def _block(spec: ArchSpec, text: Mapping[str, Any], index: int, layer: LayerSpec) -> PreNormBlock:
    eps, width = text["rms_norm_eps"], spec.hidden_size
    mlp = GatedMLP(width, spec.intermediate_size, activation(text.get("hidden_act", "silu")))
    if not isinstance(layer, AttentionLayer):
        assert layer.heads is not None
        net = GatedDeltaNet(index, layer.heads, width, conv_taps=layer.conv_taps, eps=eps)
        return PreNormBlock(net, mlp, width, eps, mixer="linear_attn")
    dims = int(layer.head_dim * text.get("partial_rotary_factor", 0.25))
    bias = bool(text.get("attention_bias", False))
    attention = Attention(
        index,
        layer,
        width,
        bias=bias,
        output_bias=bias,
        qk_norm_eps=eps,
        rotary=Rotary(dims, text["rope_theta"], text.get("rope_scaling")),
    )
    return PreNormBlock(attention, mlp, width, eps)
