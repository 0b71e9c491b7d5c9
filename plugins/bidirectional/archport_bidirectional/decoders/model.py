"""Llama, Qwen2 and Qwen3 trunks that encode: pre-norm blocks, rotary positions. Knows nothing of what a token sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, label_count
from archport.layers import Attention, Embedding, GatedMLP, PreNormBlock, Rotary, activation
from archport_bidirectional.decoders import QWEN2


class DecoderEncoder(nn.Module):
    """Parameter names as generation checkpoints have them: `model.embed_tokens`, `model.layers.N...`, `model.norm`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = Blocks(spec, config)
        if "classify" in spec.tasks:
            self.score = nn.Linear(spec.hidden_size, label_count(config), bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(self.model.embed_tokens(input_ids), ctx)

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (B, labels) of pooled rows (B, D)."""
        return self.score(pooled)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # Embedding repositories store the trunk without its prefix.
        if not any(name.startswith("model.") for name in weights):
            weights = {name if name.startswith("score.") else f"model.{name}": each for name, each in weights.items()}
        # Heads take no part in the trunk; a projection of pooled rows is read by the pipeline.
        unused = ("lm_head.", "linear.", "model.linear.")
        return {name: value for name, value in weights.items() if not name.startswith(unused)}


class Blocks(nn.Module):
    """Embeddings, blocks and the final norm; called with embeddings, so that images may stand among them."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, act = config["rms_norm_eps"], activation(config.get("hidden_act", "silu"))
        # Of Qwen2, q, k and v have biases whatever a config says, and the output has none.
        qwen2 = spec.arch == QWEN2
        bias = bool(config.get("attention_bias", False)) and not qwen2
        # A key of Llama's config alone.
        mlp_bias = not (spec.qk_norm or qwen2) and bool(config.get("mlp_bias", False))
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [
            PreNormBlock(
                Attention(
                    index,
                    layer,
                    spec.hidden_size,
                    bias=bias or qwen2,
                    output_bias=bias,
                    qk_norm_eps=eps if spec.qk_norm else None,
                    rotary=Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling")),
                ),
                GatedMLP(spec.hidden_size, spec.intermediate_size, act, bias=mlp_bias),
                spec.hidden_size,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]
        self.norm = nn.RMSNorm(spec.hidden_size, eps=eps)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)
