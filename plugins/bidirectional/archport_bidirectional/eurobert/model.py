"""EuroBERT's trunk, which is Llama's, with the heads next to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, label_count
from archport.layers import gelu, settle_head
from archport_bidirectional.decoders.model import Blocks
from archport_bidirectional.eurobert import pooling
from archport_bidirectional.heads import Bias

_HEADS = ("lm_head", "dense", "classifier")


class EuroBert(nn.Module):
    """Parameters `model`; for the task `fill_mask` maybe `lm_head`; for `classify` `dense` and `classifier`,
    for `tag` a `classifier`.

    A classifier that pools late passes every token through `dense` before the pooling: its hidden rows are what `dense`
    makes of them.
    """

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        D = spec.hidden_size
        self._tied, self._bias = spec.tied_head, bool(config["mlp_bias"])
        self._fills = "fill_mask" in spec.tasks
        self._late = "classify" in spec.tasks and pooling(config) == "late"
        self.model = Blocks(spec, config)
        if self._fills and not spec.tied_head:
            self.lm_head = nn.Linear(D, spec.vocab_size, bias=self._bias)
        elif self._fills and self._bias:
            self.lm_head = Bias(spec.vocab_size)
        if "classify" in spec.tasks:
            self.dense = nn.Linear(D, D)
        if {"classify", "tag"} & set(spec.tasks):
            self.classifier = nn.Linear(D, label_count(config))

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.model(self.model.embed_tokens(input_ids), ctx)
        return gelu(self.dense(x)) if self._late else x

    def scores(self, pooled: mx.array) -> mx.array:
        """Scores (..., labels) of rows (..., D)."""
        return self.classifier(pooled if self._late or "dense" not in self else gelu(self.dense(pooled)))

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits (n, V) of the words at hidden rows (n, D)."""
        head = self.get("lm_head")
        if head is not None and not isinstance(head, Bias):
            return head(hidden)
        logits = self.model.embed_tokens.as_linear(hidden)
        return logits if head is None else logits + head.bias

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # A bare model is saved without the prefix.
        if not any(name.startswith("model.") for name in weights):
            weights = {name if name.startswith(_HEADS) else f"model.{name}": each for name, each in weights.items()}
        own = {head for head in _HEADS if head in self or (head == "lm_head" and self._fills)}
        kept = {
            name: value
            for name, value in weights.items()
            if name.partition(".")[0] in own or not name.startswith(tuple(f"{head}." for head in _HEADS))
        }
        if not self._fills:
            return kept
        kept, separate = settle_head(kept, "lm_head", "model.embed_tokens", tied=self._tied)
        if separate and self._tied:
            vocabulary, width = self.model.embed_tokens.weight.shape
            self.lm_head = nn.Linear(width, vocabulary, bias=self._bias)
        return kept
