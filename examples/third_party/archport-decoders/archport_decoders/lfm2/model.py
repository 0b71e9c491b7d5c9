"""The LFM2 trunk: archport's blocks around a gated short convolution or attention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec, AttentionLayer, LayerContext
from archport.layers import Attention, GatedMLP, PreNormBlock, Rotary, ShortConv, activation

from archport_decoders.causal import Causal, Decoder

# (as published, as here): each stands once in a name.
NAMES = (
    ("model.embedding_norm.", "model.norm."),
    (".operator_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".feed_forward.w1.", ".mlp.gate_proj."),
    (".feed_forward.w3.", ".mlp.up_proj."),
    (".feed_forward.w2.", ".mlp.down_proj."),
    (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".q_layernorm.", ".q_norm."),
    (".k_layernorm.", ".k_norm."),
    (".conv.conv.bias", ".conv.bias"),
)
TAPS = re.compile(r".*\.conv\.conv\.weight")


class GatedConv(nn.Module):
    """y = C * conv(B * x) between two products, where B, C and x are one; parameters `in_proj`, `conv`, `out_proj`,
    and `bias` (D,) of the convolution where there are biases."""

    def __init__(self, index: int, D: int, taps: int, *, bias: bool) -> None:
        super().__init__()
        self._index = index
        self.in_proj = nn.Linear(D, 3 * D, bias=bias)
        self.conv = ShortConv(D, taps, activation("linear"))
        self.out_proj = nn.Linear(D, D, bias=bias)
        if bias:
            self.bias = mx.zeros((D,))

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        before, behind, x = mx.split(self.in_proj(x), 3, axis=-1)
        x = before * x
        step = ctx.state(self._index, x, behind)
        mixed, tail = self.conv(x, step.arrays[0] if step.arrays else None, ctx.documents)
        if "bias" in self:
            mixed = mixed + self["bias"]
        out = self.out_proj(behind * mixed)
        if step.keeps:
            step.store([tail])
            # Evaluated together: alone the tail would keep this step's inputs alive.
            (out,) = mx.depends([out], [tail])
        return out


class Lfm2(Causal):
    """Parameters under the names of archport's blocks; NAMES says what is published."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        D, eps, act = spec.hidden_size, config["norm_eps"], activation("silu")
        taps, bias = config["conv_L_cache"], bool(config["conv_bias"])
        blocks: list[nn.Module] = []
        for index, layer in enumerate(spec.layers):
            mlp = GatedMLP(D, spec.intermediate_size, act)
            if isinstance(layer, AttentionLayer):
                rotary = Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling"))
                mixer = Attention(index, layer, D, bias=False, output_bias=False, qk_norm_eps=eps, rotary=rotary)
                blocks.append(PreNormBlock(mixer, mlp, D, eps))
            else:
                blocks.append(PreNormBlock(GatedConv(index, D, taps, bias=bias), mlp, D, eps, mixer="conv"))
        super().__init__(spec, Decoder(spec, blocks, nn.RMSNorm(D, eps=eps)))

    def renamed(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        found: dict[str, mx.array] = {}
        for name, value in weights.items():
            for old, new in NAMES:
                name = name.replace(old, new)
            # Published (D, 1, taps) and converted (D, taps, 1).
            found[name] = value.swapaxes(1, 2) if TAPS.fullmatch(name) and value.shape[1] == 1 else value
        return found


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The module's tensors as transformers stores them: the inverse of `renamed`."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        for old, new in NAMES:
            # A trunk's own norm, not a block's.
            name = name.replace(new, old)
        found[name] = value.swapaxes(1, 2) if TAPS.fullmatch(name) else value
    return found
