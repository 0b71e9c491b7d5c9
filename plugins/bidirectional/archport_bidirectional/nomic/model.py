"""NomicBert's trunk, and how its repository and transformers name its tensors.

v2's experts by their published description (arXiv:2502.07972): a token's two of eight answer with the softmax's own
weights, which are not scaled to sum to one, and one bias is added to what they make together. All first matrices of a
layer's experts are one matrix `w1` (E W, D), all second ones `w2` (E W, D), an expert's rows after one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec
from archport.layers import MLP, GatedMLP, Rotary, SparseMLP, activation
from archport_bidirectional.heads import heads
from archport_bidirectional.nomic import GATES, PLAIN, is_gated, is_hub
from archport_bidirectional.rotary_bert import Names, RotaryBert

_HUB_BLOCK = (
    ("emb_ln.", "embeddings.LayerNorm."),
    ("encoder.layers.", "layers."),
    (".norm1.", ".attention_norm."),
    (".norm2.", ".output_norm."),
    (".attn.out_proj.", ".attention.o_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
)
_PROJECTIONS = {".attn.Wqkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")}
# The activation is of the second.
HUB = Names((), (*_HUB_BLOCK, (".mlp.fc11.", ".mlp.up_proj."), (".mlp.fc12.", ".mlp.gate_proj.")), _PROJECTIONS)
HUB_PLAIN = Names(
    (),
    (
        *_HUB_BLOCK,
        (".mlp.fc1.", ".mlp.up_proj."),
        (".mlp.router.layer.", ".mlp.gate."),
        (".mlp.experts.bias", ".mlp.bias"),
    ),
    _PROJECTIONS,
)
SAVED = Names(
    ("nomic_bert.",),
    (
        (".self_attn.", ".attention."),
        (".post_attention_layernorm.", ".attention_norm."),
        (".post_mlp_layernorm.", ".output_norm."),
        ("cls.predictions.transform.dense.", "lm_head.dense."),
        ("cls.predictions.transform.layer_norm.", "lm_head.layer_norm."),
        ("cls.predictions.decoder.", "lm_head.decoder."),
        ("cls.predictions.bias", "lm_head.bias"),
    ),
    {},
)


class NomicBert(RotaryBert):
    """`RotaryBert` whose layers may hold experts: parameters `layers.N.mlp.switch_mlp`."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = super().sanitize(weights)
        for index, block in enumerate(self.layers):
            if isinstance(block.mlp, SparseMLP):
                weights = _together(weights, f"layers.{index}.mlp", block.mlp)
        return weights


def nomic_bert(spec: ArchSpec, config: Mapping[str, Any]) -> RotaryBert:
    """The trunk of a claimed config."""
    hub = is_hub(config)
    act = {**GATES, **PLAIN}[config["activation_function"]] if hub else config["hidden_act"]
    return NomicBert(
        spec,
        (HUB if is_gated(config) else HUB_PLAIN, SAVED),
        heads(spec, config, words=act, eps=config["layer_norm_eps"], pooled=True),
        rotary=Rotary(spec.attention_layers[0].head_dim, config["rope_theta"], config.get("rope_scaling")),
        mlp=lambda index: _mlp(spec, config, index, act),
        eps=config["layer_norm_eps"],
        token_types=config["type_vocab_size"],
        bias=hub and bool(config.get("qkv_proj_bias")),
    )


def _mlp(spec: ArchSpec, config: Mapping[str, Any], index: int, act: str) -> nn.Module:
    D, inner = spec.hidden_size, spec.intermediate_size
    if spec.experts is not None and index in spec.experts.layers:
        return SparseMLP(D, spec.experts, act=act, gated=False, output_bias=True)
    kind = GatedMLP if spec.gated_mlp else MLP
    mlp = kind(D, inner, activation(act), bias=bool(config.get("mlp_fc1_bias")))
    mlp.down_proj = nn.Linear(inner, D, bias=bool(config.get("mlp_fc2_bias")))
    return mlp


def _together(weights: dict[str, mx.array], path: str, mlp: SparseMLP) -> dict[str, mx.array]:
    """The tensors with a layer's `w1` and `w2` as stacks of matrices; one of another shape stays, to be named."""
    count, inner, D = mlp.switch_mlp.fc1.weight.shape
    found = dict(weights)
    for published, name in (("w1", "fc1"), ("w2", "fc2")):
        value = found.get(f"{path}.experts.mlp.{published}")
        if value is None or value.shape != (count * inner, D):
            continue
        del found[f"{path}.experts.mlp.{published}"]
        stack = value.reshape(count, inner, D)
        found[f"{path}.switch_mlp.{name}.weight"] = stack if name == "fc1" else mx.contiguous(stack.swapaxes(1, 2))
    return found


def apart(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The inverse for every layer: stacks of matrices as `w1` and `w2`."""
    found: dict[str, mx.array] = {}
    for name, value in weights.items():
        path, stack, leaf = name.partition("switch_mlp.")
        if stack:
            rows = value if leaf == "fc1.weight" else value.swapaxes(1, 2)
            name = f"{path}experts.mlp.{'w1' if leaf == 'fc1.weight' else 'w2'}"
            value = mx.contiguous(rows.reshape(-1, rows.shape[-1]))
        found[name] = value
    return found
