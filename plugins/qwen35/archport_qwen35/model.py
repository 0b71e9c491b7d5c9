"""The Qwen3.5 trunk: token ids to hidden states, and its output head. Knows no masks, states or caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, AttentionLayer, CheckpointError, LayerContext, LayerSpec, TowerContext
from archport.layers import (
    Attention,
    Embedding,
    GatedDeltaNet,
    GatedMLP,
    PatchMergingTower,
    PreNormBlock,
    Rotary,
    SectionedRotary,
    SparseMLP,
    TowerShape,
    activation,
    head_rows,
    settle_head,
)
from archport_qwen35.weights import renamed

# What the published family deals out to time, rows and columns.
SECTIONS = (11, 11, 10)


class Qwen35(nn.Module):
    """Parameter names as text checkpoints have them: `model.embed_tokens`, `model.layers.N...`, `lm_head`."""

    def __init__(self, spec: ArchSpec, text: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._spec = spec
        self.model = Decoder(spec, text)
        if vision:
            self.visual = PatchMergingTower(TowerShape.of(vision, spec.hidden_size))
        self._has_head = bool({"generate", "rerank"} & set(spec.tasks))
        if not spec.tied_head and self._has_head:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def see(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        if "visual" not in self:
            raise CheckpointError("this checkpoint has no vision tower, although its config describes one: text only")
        return self.visual(patches, ctx)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        found = renamed(weights, self._spec)
        if "visual" in self and not any(name.startswith("visual.") for name in found):
            # A conversion of the text half alone, whose config still describes the tower.
            del self.visual
        if not self._has_head:
            return {name: value for name, value in found.items() if not name.startswith("lm_head.")}
        found, own = settle_head(found, "lm_head", "model.embed_tokens", tied=self._spec.tied_head)
        if own and "lm_head" not in self:
            self.lm_head = nn.Linear(self._spec.hidden_size, self._spec.vocab_size, bias=False)
        return found

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
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        rotary = _rotary(spec, text)
        self.layers = [_block(spec, text, index, layer, rotary) for index, layer in enumerate(spec.layers)]
        self.norm = nn.RMSNorm(spec.hidden_size, eps=text["rms_norm_eps"])

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embed_tokens(input_ids)
        if ctx.visual is not None:
            x = ctx.visual.replace(x)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)


def _block(
    spec: ArchSpec, text: Mapping[str, Any], index: int, layer: LayerSpec, rotary: Rotary | None
) -> PreNormBlock:
    eps, width = text["rms_norm_eps"], spec.hidden_size
    mlp = _mlp(spec, text, index)
    if not isinstance(layer, AttentionLayer):
        assert layer.heads is not None
        act = activation(text.get("hidden_act", "silu"))
        net = GatedDeltaNet(index, layer.heads, width, conv_taps=layer.conv_taps, eps=eps, act=act)
        return PreNormBlock(net, mlp, width, eps, mixer="linear_attn")
    bias = bool(text.get("attention_bias", False))
    attention = Attention(
        index,
        layer,
        width,
        bias=bias,
        output_bias=bias,
        qk_norm_eps=eps,
        rotary=rotary,
    )
    return PreNormBlock(attention, mlp, width, eps)


def _rotary(spec: ArchSpec, text: Mapping[str, Any]) -> Rotary | None:
    """One for all layers, so that angles on several axes are computed once per step; text alone has one axis, and
    layers that are all recurrent have none."""
    if not spec.attention_layers:
        return None
    scaling = text.get("rope_scaling") or {}
    dims = int(spec.attention_layers[0].head_dim * text.get("partial_rotary_factor", 0.25))
    if spec.vision is None:
        return Rotary(dims, text["rope_theta"], scaling)
    return SectionedRotary(dims, text["rope_theta"], scaling, scaling.get("mrope_section") or SECTIONS)


def _mlp(spec: ArchSpec, text: Mapping[str, Any], index: int) -> nn.Module:
    act = text.get("hidden_act", "silu")
    if spec.experts is None or index not in spec.experts.layers:
        return GatedMLP(spec.hidden_size, spec.intermediate_size, activation(act))
    renormalise = bool(text.get("norm_topk_prob", True))
    return SparseMLP(spec.hidden_size, spec.experts, renormalise=renormalise, act=act)
