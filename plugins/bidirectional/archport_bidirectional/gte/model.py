"""GTE's trunk, the stretched rope of its own code, and how that code and transformers name its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec
from archport.layers import GatedMLP, Rotary, activation
from archport_bidirectional.heads import heads
from archport_bidirectional.rotary_bert import Names, RotaryBert

_PROJECTIONS = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
HUB = Names(
    ("new.",),
    (
        ("encoder.layer.", "layers."),
        (".attn_ln.", ".attention_norm."),
        (".mlp_ln.", ".output_norm."),
        ("lm_head.norm.", "lm_head.layer_norm."),
    ),
    # The activation is of the second half.
    {".attention.qkv_proj.": _PROJECTIONS, ".mlp.up_gate_proj.": (".mlp.up_proj.", ".mlp.gate_proj.")},
)
SAVED = Names(
    ("gte.",),
    (
        (".self_attn.", ".attention."),
        (".post_attention_layernorm.", ".attention_norm."),
        (".post_mlp_layernorm.", ".output_norm."),
    ),
    {},
)


class Gated(GatedMLP):
    """A gated MLP whose last matrix alone has a bias."""

    def __init__(self, spec: ArchSpec, act: str) -> None:
        super().__init__(spec.hidden_size, spec.intermediate_size, activation(act))
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size)


def gte(spec: ArchSpec, config: Mapping[str, Any]) -> RotaryBert:
    """The trunk of a claimed config."""
    # transformers has a GELU in the masked-LM head, whatever the config says; GTE's own code obeys it.
    words = config["hidden_act"] if config.get("model_type") == "new" else "gelu"
    return RotaryBert(
        spec,
        (HUB, SAVED),
        heads(spec, config, words=words, eps=config["layer_norm_eps"], pooled=True),
        rotary=_rotary(spec.attention_layers[0].head_dim, config["rope_theta"], config.get("rope_scaling")),
        mlp=lambda _: Gated(spec, config["hidden_act"]),
        eps=config["layer_norm_eps"],
        token_types=config["type_vocab_size"],
        bias=True,
    )


def _rotary(dims: int, theta: float, scaling: Mapping[str, Any] | None) -> Rotary:
    """The rope of all layers; `ntk` multiplies theta, and slows every frequency by as much again over half of `dims`.

    Source: kexue.fm/archives/9706, formula 6, which GTE's own code names.
    """
    if not scaling or scaling.get("type") != "ntk":
        return Rotary(dims, theta, scaling)
    factor = float(scaling["factor"])
    rotary = Rotary(dims, theta * factor)
    rotary.periods = rotary.periods * mx.array(factor ** (2 / dims), mx.float32)
    return rotary
