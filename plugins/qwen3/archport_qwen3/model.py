"""The trunk of Qwen3, dense or with experts, and of Qwen2: token ids to hidden states, and its head.

Masks and caches are the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, label_count
from archport.layers import (
    Attention,
    Embedding,
    GatedMLP,
    PreNormBlock,
    Rotary,
    SparseMLP,
    activation,
    head_rows,
    settle_head,
    stack_experts,
)


class Qwen3(nn.Module):
    """Parameter names as generation checkpoints have them: `model.embed_tokens`, `model.layers.N...`, `lm_head`; of a
    classifier `score`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._spec = spec
        self.model = Decoder(spec, config)
        # An embedding model's own head, where a repository has one, is dead weight.
        self._has_head = "generate" in spec.tasks
        if "classify" in spec.tasks:
            self.score = nn.Linear(spec.hidden_size, label_count(config), bias=False)
        if not spec.tied_head and self._has_head:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        return self.model(input_ids, ctx)

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (B, labels) of pooled rows (B, D)."""
        return self.score(pooled)

    def logits(self, hidden: mx.array) -> mx.array:
        return self.lm_head(hidden) if "lm_head" in self else self.model.embed_tokens.as_linear(hidden)

    def head_rows(self, ids: Sequence[int]) -> mx.array:
        return head_rows(self.lm_head if "lm_head" in self else self.model.embed_tokens, ids)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # Embedding repositories store the trunk without its prefix.
        if not any(name.startswith("model.") for name in weights):
            heads = ("lm_head.", "score.")
            weights = {n if n.startswith(heads) else f"model.{n}": value for n, value in weights.items()}
        if self._has_head:
            weights, own = settle_head(weights, "lm_head", "model.embed_tokens", tied=self._spec.tied_head)
            if own and "lm_head" not in self:
                self.lm_head = nn.Linear(self._spec.hidden_size, self._spec.vocab_size, bias=False)
        else:
            weights = {name: value for name, value in weights.items() if not name.startswith("lm_head.")}
        experts = self._spec.experts
        if experts is not None:
            for index in experts.layers:
                weights = stack_experts(weights, f"model.layers.{index}.mlp", experts.count)
        return weights


class Decoder(nn.Module):
    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, qwen2 = config["rms_norm_eps"], not spec.qk_norm
        bias = bool(config.get("attention_bias", False))
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [
            PreNormBlock(
                Attention(
                    index,
                    layer,
                    spec.hidden_size,
                    bias=qwen2 or bias,
                    output_bias=bias and not qwen2,
                    qk_norm_eps=None if qwen2 else eps,
                    rotary=Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling")),
                ),
                _mlp(spec, config, index),
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


def _mlp(spec: ArchSpec, config: Mapping[str, Any], index: int) -> nn.Module:
    act = config.get("hidden_act", "silu")
    if spec.experts is None or index not in spec.experts.layers:
        return GatedMLP(spec.hidden_size, spec.intermediate_size, activation(act))
    # The family's class default is not to, and its published files say to: the file decides.
    renormalise = bool(config.get("norm_topk_prob", False))
    return SparseMLP(spec.hidden_size, spec.experts, renormalise=renormalise, act=act)
