"""The encoder half of T5: embeddings, pre-norm blocks whose scores take a bias and no scale, a norm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, LayerContext, label_count
from archport.layers import MLP, Attention, Embedding, GatedMLP, PreNormBlock, RelativeBuckets, activation
from archport_bidirectional.t5 import activation_of, every_layer_has_its_own

# Pieces of a published block's names -> those of the shared block.
_BLOCK = (
    *((f"layer.0.SelfAttention.{name}.", f"self_attn.{name}_proj.") for name in "qkvo"),
    ("layer.0.layer_norm.", "input_layernorm."),
    ("layer.1.layer_norm.", "post_attention_layernorm."),
    # The second of a pair is what the activation is not of.
    ("layer.1.DenseReluDense.wi_0.", "mlp.gate_proj."),
    ("layer.1.DenseReluDense.wi_1.", "mlp.up_proj."),
    ("layer.1.DenseReluDense.wi.", "mlp.up_proj."),
    ("layer.1.DenseReluDense.wo.", "mlp.down_proj."),
)
_TABLE = re.compile(r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight")
# The embedding matrix under its two names; the first is the one that counts.
_WORDS = ("shared.weight", "encoder.embed_tokens.weight")


class T5(nn.Module):
    """Parameters `embed_tokens`, `tables.N`, `layers.N`, `norm`, and for the task `tag` a `classifier`.

    There is one table of distances for all layers, or one for each.
    """

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        D, eps = spec.hidden_size, config["layer_norm_epsilon"]
        name, gated = activation_of(config)
        act = activation(name)
        heads = spec.attention_layers[0].n_heads
        count = len(spec.layers) if every_layer_has_its_own(config) else 1
        buckets, far = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
        self.embed_tokens = Embedding(spec.vocab_size, D)
        self.tables = [RelativeBuckets(heads, buckets, far) for _ in range(count)]
        self.layers = [
            PreNormBlock(
                Attention(
                    index,
                    layer,
                    D,
                    bias=False,
                    output_bias=False,
                    scale=1.0,
                    distance_bias=self.tables[index % count],
                ),
                GatedMLP(D, spec.intermediate_size, act) if gated else MLP(D, spec.intermediate_size, act, bias=False),
                D,
                eps,
            )
            for index, layer in enumerate(spec.attention_layers)
        ]
        self.norm = nn.RMSNorm(D, eps=eps)
        if "tag" in spec.tasks:
            self.classifier = nn.Linear(D, label_count(config))

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)

    def scores(self, hidden: mx.array) -> mx.array:
        """Scores (..., labels) of rows (..., D)."""
        return self.classifier(hidden)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        kept: dict[str, mx.array] = {}
        for name, value in weights.items():
            own = _own(name.removeprefix("transformer."), weights)
            if own is not None and (own.partition(".")[0] != "classifier" or "classifier" in self):
                kept[own] = value
        return kept


def _own(name: str, weights: Mapping[str, mx.array]) -> str | None:
    """The module's name of a published tensor; None of what no encoder reads."""
    if name in _WORDS:
        # Both are stored by some versions, with and without a head's prefix.
        first = any(known.endswith(_WORDS[0]) for known in weights)
        return "embed_tokens.weight" if name == _WORDS[0] or not first else None
    table = _TABLE.fullmatch(name)
    if table is not None:
        return f"tables.{table[1]}.weight"
    if name.startswith(("decoder.", "lm_head.")):
        return None
    name = name.replace("encoder.block.", "layers.").replace("encoder.final_layer_norm.", "norm.")
    for old, new in _BLOCK:
        name = name.replace(old, new)
    return name


def published(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The module's tensors under their published names."""
    gated = any("gate_proj" in name for name in weights)
    block = [pair for pair in _BLOCK if not pair[0].endswith(".wi." if gated else ".wi_1.")]
    labelled = any(name.startswith("classifier.") for name in weights)
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        at = name.split(".")[1] if name.startswith("tables.") else None
        if at is not None:
            name = f"encoder.block.{at}.layer.0.SelfAttention.relative_attention_bias.weight"
        elif name == "embed_tokens.weight":
            name = _WORDS[0]
        else:
            for old, new in block:
                name = name.replace(new, old)
            name = re.sub(r"^layers\.", "encoder.block.", name)
            name = re.sub(r"^norm\.", "encoder.final_layer_norm.", name)
        found[name if name.startswith("classifier.") or not labelled else f"transformer.{name}"] = value
    return found
