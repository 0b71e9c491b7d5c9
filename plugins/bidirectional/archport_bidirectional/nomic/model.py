"""NomicBert's trunk, and how its repository and transformers name its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract import ArchSpec, label_count
from archport.layers import GatedMLP, Rotary, activation
from archport_bidirectional.nomic import GATES, is_hub
from archport_bidirectional.rotary_bert import Names, RotaryBert

HUB = Names(
    (),
    (
        ("emb_ln.", "embeddings.LayerNorm."),
        ("encoder.layers.", "layers."),
        (".norm1.", ".attention_norm."),
        (".norm2.", ".output_norm."),
        (".attn.out_proj.", ".attention.o_proj."),
        # The second is what the activation is of.
        (".mlp.fc11.", ".mlp.up_proj."),
        (".mlp.fc12.", ".mlp.gate_proj."),
        (".mlp.fc2.", ".mlp.down_proj."),
    ),
    {".attn.Wqkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")},
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


def nomic_bert(spec: ArchSpec, config: Mapping[str, Any]) -> RotaryBert:
    """The trunk of a claimed config."""
    act = activation(GATES[config["activation_function"]] if is_hub(config) else config["hidden_act"])
    return RotaryBert(
        spec,
        (HUB, SAVED),
        rotary=Rotary(spec.attention_layers[0].head_dim, config["rope_theta"], config.get("rope_scaling")),
        mlp=lambda _: GatedMLP(spec.hidden_size, spec.intermediate_size, act),
        eps=config["layer_norm_eps"],
        token_types=config["type_vocab_size"],
        bias=False,
        labels=label_count(config),
        act=act,
    )
