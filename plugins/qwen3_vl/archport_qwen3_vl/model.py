"""The Qwen3-VL trunk: token ids and pictures to hidden states, and its output head. Knows no masks, caches or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, TowerContext
from archport.layers import (
    Attention,
    Embedding,
    GatedMLP,
    PatchMergingTower,
    PreNormBlock,
    SectionedRotary,
    SparseMLP,
    TowerShape,
    activation,
    head_rows,
    settle_head,
)
from archport_qwen3_vl.weights import sanitize

# What the published family deals out to time, rows and columns.
SECTIONS = (24, 20, 20)


class Qwen3VL(nn.Module):
    """Parameter names as the hub has them: `model.language_model`, `model.visual`, `lm_head`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._spec, self._vision = spec, config["vision_config"]
        vision = config["vision_config"]
        shape = TowerShape.of(vision, spec.hidden_size, taps=vision.get("deepstack_visual_indexes") or ())
        self.model = Pair(spec, config["text_config"], shape)
        self._has_head = "generate" in spec.tasks or "rerank" in spec.tasks
        if not spec.tied_head and self._has_head:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model.language_model(input_ids, ctx)

    def see(self, patches: mx.array, ctx: TowerContext) -> list[mx.array]:
        return self.model.visual(patches, ctx)

    def logits(self, hidden: mx.array) -> mx.array:
        return self.lm_head(hidden) if "lm_head" in self else self.model.language_model.embed_tokens.as_linear(hidden)

    def head_rows(self, ids: Sequence[int]) -> mx.array:
        return head_rows(self.lm_head if "lm_head" in self else self.model.language_model.embed_tokens, ids)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        found = sanitize(weights, self._spec, channels=self._vision.get("in_channels", 3))
        if not self._has_head:
            return {name: value for name, value in found.items() if not name.startswith("lm_head.")}
        found, own = settle_head(found, "lm_head", "model.language_model.embed_tokens", tied=self._spec.tied_head)
        if own and "lm_head" not in self:
            self.lm_head = nn.Linear(self._spec.hidden_size, self._spec.vocab_size, bias=False)
        return found


class Pair(nn.Module):
    def __init__(self, spec: ArchSpec, text: Mapping[str, Any], tower: TowerShape) -> None:
        super().__init__()
        self.visual = PatchMergingTower(tower)
        self.language_model = Decoder(spec, text)


class Decoder(nn.Module):
    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, bias = config["rms_norm_eps"], bool(config.get("attention_bias", False))
        scaling = config.get("rope_scaling") or {}
        head_dim = spec.attention_layers[0].head_dim
        # One for all layers, so that its angles are computed once per step.
        rotary = SectionedRotary(head_dim, config["rope_theta"], scaling, scaling.get("mrope_section") or SECTIONS)
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [
            PreNormBlock(
                Attention(
                    index,
                    layer,
                    spec.hidden_size,
                    bias=bias,
                    output_bias=bias,
                    qk_norm_eps=eps,
                    rotary=rotary,
                ),
                _mlp(spec, config, index),
                spec.hidden_size,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]
        self.norm = nn.RMSNorm(spec.hidden_size, eps=eps)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x, visual = self.embed_tokens(input_ids), ctx.visual
        if visual is not None:
            x = visual.replace(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, ctx)
            if visual is not None:
                x = visual.add(x, index)
        return self.norm(x)


def _mlp(spec: ArchSpec, config: Mapping[str, Any], index: int) -> nn.Module:
    act = config.get("hidden_act", "silu")
    if spec.experts is None or index not in spec.experts.layers:
        return GatedMLP(spec.hidden_size, spec.intermediate_size, activation(act))
    # The family's router always does, and its files leave the flag out.
    return SparseMLP(spec.hidden_size, spec.experts, renormalise=config.get("norm_topk_prob") is not False, act=act)
