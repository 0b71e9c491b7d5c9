"""ModernBERT: pre-norm blocks with rotary positions, two thetas and a gated MLP, and the heads next to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, label_count
from archport.layers import Attention, Embedding, GatedMLP, Rotary, activation, added, settle_head
from archport_bidirectional.heads import Bias, DenseNorm
from archport_bidirectional.modernbert import GLOBAL_THETA, LOCAL_THETA

# Rows of these published matrices are the rows of several parts, one below the other.
_FUSED = {
    ".attn.Wqkv.": (".attn.q_proj.", ".attn.k_proj.", ".attn.v_proj."),
    # The activation is of the first half; the second gates it.
    ".mlp.Wi.": (".mlp.gate_proj.", ".mlp.up_proj."),
}
_RENAMES = ((".attn.Wo.", ".attn.o_proj."), (".mlp.Wo.", ".mlp.down_proj."))
_HEADS = ("head", "decoder", "classifier")


class ModernBert(nn.Module):
    """Parameters `embeddings`, `layers.N` and `final_norm`, the fused matrices split into the shared blocks' parts."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        eps, bias = config.get("norm_eps", 1e-5), bool(config.get("norm_bias", False))
        self.embeddings = Embeddings(spec, eps, bias)
        self.layers = [Block(index, spec, config, eps, bias) for index in range(len(spec.layers))]
        self.final_norm = nn.LayerNorm(spec.hidden_size, eps=eps, bias=bias)
        if {"classify", "fill_mask", "tag"} & set(spec.tasks):
            act, own = (
                activation(config.get("classifier_activation", "gelu")),
                bool(config.get("classifier_bias", False)),
            )
            self.head = DenseNorm(spec.hidden_size, act, eps, bias=own, norm_bias=bias)
        if {"classify", "tag"} & set(spec.tasks):
            self.classifier = nn.Linear(spec.hidden_size, label_count(config))
        self._tied, self._decoder_bias = spec.tied_head, bool(config.get("decoder_bias", True))
        self._fills = "fill_mask" in spec.tasks
        if self._fills and self._decoder_bias:
            self.decoder = Bias(spec.vocab_size)

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.final_norm(x)

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (..., labels) of rows (..., D)."""
        return self.classifier(self.head(pooled))

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits (n, V) of the words at hidden rows (n, D)."""
        x = self.head(hidden)
        if isinstance(self.get("decoder"), Bias):
            return self.embeddings.tok_embeddings.as_linear(x) + self.decoder.bias
        return self.decoder(x) if "decoder" in self else self.embeddings.tok_embeddings.as_linear(x)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        for name, value in weights.items():
            name = name.removeprefix("model.")
            # A head of another task.
            part = name.partition(".")[0]
            if part in _HEADS and part not in self and not (part == "decoder" and self._fills):
                continue
            for old, new in _RENAMES:
                name = name.replace(old, new)
            fused = next((old for old in _FUSED if old in name), None)
            if fused is None:
                kept[name] = value
                continue
            parts = _FUSED[fused]
            for part, rows in zip(parts, mx.split(value, len(parts), axis=0), strict=True):
                kept[name.replace(fused, part)] = rows
        if self._fills:
            kept, own = settle_head(kept, "decoder", "embeddings.tok_embeddings", tied=self._tied)
            if own:
                vocabulary, width = self.embeddings.tok_embeddings.weight.shape
                # A decoder of its own matrix, which quantisation may pack.
                self.decoder = nn.Linear(width, vocabulary, bias=self._decoder_bias)
        return kept


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The inverse of `sanitize`: the module's tensors under published names, after the usual prefix."""
    named: dict[str, mx.array] = {}
    for name, value in weights.items():
        fused = next((old for old, parts in _FUSED.items() if any(part in name for part in parts)), None)
        if fused is None:
            for old, new in _RENAMES:
                name = name.replace(new, old)
            named[name if name.partition(".")[0] in _HEADS else f"model.{name}"] = value
        elif _FUSED[fused][0] in name:
            parts = [weights[name.replace(_FUSED[fused][0], part)] for part in _FUSED[fused]]
            named[f"model.{name.replace(_FUSED[fused][0], fused)}"] = mx.concatenate(parts, axis=0)
    return named


class Embeddings(nn.Module):
    """Word embeddings, normalised."""

    def __init__(self, spec: ArchSpec, eps: float, bias: bool) -> None:
        super().__init__()
        self.tok_embeddings = Embedding(spec.vocab_size, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=eps, bias=bias)

    def __call__(self, input_ids: mx.array) -> mx.array:
        return self.norm(self.tok_embeddings(input_ids))


class Block(nn.Module):
    """One layer; parameters `attn_norm` (none in the first, whose input is normalised), `attn`, `mlp_norm`, `mlp`."""

    def __init__(self, index: int, spec: ArchSpec, config: Mapping[str, Any], eps: float, bias: bool) -> None:
        super().__init__()
        layer = spec.attention_layers[index]
        key, default = ("local_rope_theta", LOCAL_THETA) if layer.is_windowed else ("global_rope_theta", GLOBAL_THETA)
        theta, own = config.get(key) or default, bool(config.get("attention_bias", False))
        if index:
            self.attn_norm = nn.LayerNorm(spec.hidden_size, eps=eps, bias=bias)
        rotary = Rotary(layer.head_dim, theta, config.get(f"rope_{'local_' if layer.is_windowed else ''}scaling"))
        self.attn = Attention(index, layer, spec.hidden_size, bias=own, output_bias=own, rotary=rotary)
        self.mlp_norm = nn.LayerNorm(spec.hidden_size, eps=eps, bias=bias)
        act = activation(config.get("hidden_activation", "gelu"))
        self.mlp = GatedMLP(spec.hidden_size, spec.intermediate_size, act, bias=bool(config.get("mlp_bias", False)))

    def __call__(self, x: mx.array, ctx: LayerContext) -> mx.array:
        x = added(self.attn, x, self.attn_norm(x) if "attn_norm" in self else x, ctx)
        ctx.pause(x)
        x = added(self.mlp, x, self.mlp_norm(x))
        ctx.pause(x)
        return x
