"""The Llama trunk: token ids to hidden states after the final norm. Knows nothing of heads, masks or caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport.layers import Attention, Embedding, GatedMLP, PreNormBlock, Rotary, activation


class Llama(nn.Module):
    """Parameter names as published: `model.embed_tokens`, `model.layers.N...`, `model.norm`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = Decoder(spec, config)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # A saved LlamaModel has no prefix. The output head takes no part in embedding; old files store frequencies.
        if not any(name.startswith("model.") for name in weights):
            weights = {f"model.{name}": value for name, value in weights.items()}
        unused = ("lm_head.", "rotary_emb.inv_freq")
        return {name: value for name, value in weights.items() if not any(part in name for part in unused)}


class Decoder(nn.Module):
    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, bias = config.get("rms_norm_eps", 1e-6), bool(config.get("attention_bias", False))
        act, theta = activation(config.get("hidden_act", "silu")), config.get("rope_theta", 10000.0)
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [
            PreNormBlock(
                Attention(
                    index,
                    layer,
                    spec.hidden_size,
                    bias=bias,
                    output_bias=bias,
                    rotary=Rotary(layer.head_dim, theta, config.get("rope_scaling")),
                ),
                GatedMLP(spec.hidden_size, spec.intermediate_size, act, bias=bool(config.get("mlp_bias", False))),
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
