"""The EmbeddingGemma trunk: scaled embeddings, norms before and after each half of a block. Knows no window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext
from archport.layers import Attention, Embedding, GatedMLP, Rotary, ZeroCentredRMSNorm, activation
from archport_bidirectional.gemma import GLOBAL_THETA, LOCAL_THETA


class EmbeddingGemma(nn.Module):
    """Parameter names as the embedding repositories have them, without a prefix: `embed_tokens`, `layers.N`, `norm`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps = config.get("rms_norm_eps", 1e-6)
        self._scale = spec.hidden_size**0.5
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [Block(index, spec, config, eps) for index in range(len(spec.layers))]
        self.norm = ZeroCentredRMSNorm(spec.hidden_size, eps=eps)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embed_tokens(input_ids)
        # Rounded to the type of the activations, as the reference does; a packed table's own type holds integers.
        x = x * mx.array(self._scale, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept = {name.removeprefix("model."): value for name, value in weights.items()}
        # Heads that some conversions keep next to the trunk; the pipeline reads them by itself.
        return {name: value for name, value in kept.items() if not name.startswith(("dense.", "lm_head."))}


class Block(nn.Module):
    """One layer; parameters `self_attn`, `mlp` and four norms."""

    def __init__(self, index: int, spec: ArchSpec, config: Mapping[str, Any], eps: float) -> None:
        super().__init__()
        layer, D = spec.attention_layers[index], spec.hidden_size
        if layer.is_windowed:
            theta, scaling = config.get("rope_local_base_freq") or LOCAL_THETA, config.get("rope_local_scaling")
            rotary = Rotary(layer.head_dim, theta, scaling)
        else:
            rotary = Rotary(layer.head_dim, config.get("rope_theta") or GLOBAL_THETA, config.get("rope_scaling"))
        bias = bool(config.get("attention_bias", False))
        self.self_attn = Attention(
            index,
            layer,
            D,
            bias=bias,
            output_bias=bias,
            qk_norm_eps=eps,
            qk_norm=ZeroCentredRMSNorm,
            rotary=rotary,
            scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        )
        self.mlp = GatedMLP(
            D, spec.intermediate_size, activation(config.get("hidden_activation") or "gelu_pytorch_tanh")
        )
        self.input_layernorm = ZeroCentredRMSNorm(D, eps=eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(D, eps=eps)
        self.pre_feedforward_layernorm = ZeroCentredRMSNorm(D, eps=eps)
        self.post_feedforward_layernorm = ZeroCentredRMSNorm(D, eps=eps)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), ctx))
        ctx.pause(x)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        ctx.pause(x)
        return x
