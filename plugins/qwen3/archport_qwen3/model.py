"""The Qwen3 trunk: token ids to hidden states after the final norm. Knows nothing of heads, masks or caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport.layers import Attention, GatedMLP, PreNormBlock, Rotary
from archport.layers.activations import activation


class Qwen3(nn.Module):
    """Parameter names as generation checkpoints have them: `model.embed_tokens`, `model.layers.N...`, `model.norm`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = Decoder(spec, config)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # Embedding repositories store the trunk without its prefix.
        if not any(name.startswith("model.") for name in weights):
            weights = {f"model.{name}": value for name, value in weights.items()}
        # The output head takes no part in embedding.
        return {name: value for name, value in weights.items() if "lm_head." not in name}


class Decoder(nn.Module):
    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, bias = config["rms_norm_eps"], bool(config.get("attention_bias", False))
        act = activation(config.get("hidden_act", "silu"))
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [
            PreNormBlock(
                Attention(
                    index,
                    layer,
                    spec.hidden_size,
                    bias=bias,
                    output_bias=bias,
                    qk_norm_eps=eps,
                    rotary=Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling")),
                ),
                GatedMLP(spec.hidden_size, spec.intermediate_size, act),
                spec.hidden_size,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]
        self.norm = nn.RMSNorm(spec.hidden_size, eps=eps)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)
