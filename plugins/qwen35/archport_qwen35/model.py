"""The Qwen3.5 trunk: token ids to hidden states, and its output head. Knows no masks, states or caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, AttentionLayer, LayerContext, LayerSpec
from archport.layers import Attention, GatedDeltaNet, GatedMLP, PreNormBlock, Rotary, SparseMLP, head_rows
from archport.layers.activations import activation
from archport_qwen35.weights import renamed


class Qwen35(nn.Module):
    """Parameter names as text checkpoints have them: `model.embed_tokens`, `model.layers.N...`, `lm_head`."""

    def __init__(self, spec: ArchSpec, text: Mapping[str, Any]) -> None:
        super().__init__()
        self._spec = spec
        self.model = Decoder(spec, text)
        if not spec.tied_head and "generate" in spec.tasks:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        found = renamed(weights, self._spec)
        return found if "lm_head" in self else {name: found[name] for name in found if not name.startswith("lm_head.")}

    def logits(self, hidden: mx.array) -> mx.array:
        return self.lm_head(hidden) if "lm_head" in self else self.model.embed_tokens.as_linear(hidden)

    def head_rows(self, ids: Sequence[int]) -> mx.array:
        return head_rows(self.lm_head if "lm_head" in self else self.model.embed_tokens, ids)

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
    mlp = _mlp(spec, text, index)
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


def _mlp(spec: ArchSpec, text: Mapping[str, Any], index: int) -> nn.Module:
    act = text.get("hidden_act", "silu")
    if spec.experts is None or index not in spec.experts.layers:
        return GatedMLP(spec.hidden_size, spec.intermediate_size, activation(act))
    renormalise = bool(text.get("norm_topk_prob", True))
    return SparseMLP(spec.hidden_size, spec.experts, renormalise=renormalise, act=act)
