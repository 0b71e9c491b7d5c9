"""The Gemma 3 trunk: norms before and after each half of a block, norms of q and k, scaled embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec, AttentionLayer, LayerContext
from archport.layers import Attention, GatedMLP, Rotary, ZeroCentredRMSNorm, activation

from archport_decoders.causal import Causal, Decoder


class Block(nn.Module):
    """One layer; parameters `input_layernorm`, `self_attn`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
    `mlp`, `post_feedforward_layernorm`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any], index: int, layer: AttentionLayer) -> None:
        super().__init__()
        D, eps, bias = spec.hidden_size, config["rms_norm_eps"], bool(config.get("attention_bias"))
        local = config["layer_types"][index] == "sliding_attention"
        theta, scaling = ("rope_local_base_freq", "rope_local_scaling") if local else ("rope_theta", "rope_scaling")
        self.self_attn = Attention(
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
        self.mlp = GatedMLP(D, spec.intermediate_size, activation(config["hidden_activation"]))
        self.input_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(D, eps)
        self.pre_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)
        self.post_feedforward_layernorm = ZeroCentredRMSNorm(D, eps)

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), ctx))
        ctx.pause(x)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        ctx.pause(x)
        return x


class Gemma3(Causal):
    """Parameters `model.embed_tokens`, `model.layers.N...`, `model.norm`, as published; the head is the embedding."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        D = spec.hidden_size
        blocks: list[nn.Module] = [
            Block(spec, config, index, layer) for index, layer in enumerate(spec.attention_layers)
        ]
        norm = ZeroCentredRMSNorm(D, config["rms_norm_eps"])
        super().__init__(spec, Decoder(spec, blocks, norm, scale=D**0.5))
        self._cap = config.get("final_logit_softcapping")

    def logits(self, hidden: mx.array) -> mx.array:
        found = super().logits(hidden)
        return found if self._cap is None else mx.tanh(found / self._cap) * self._cap
