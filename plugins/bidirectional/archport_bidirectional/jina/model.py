"""The trunk of jina-embeddings-v3, and how its repository and transformers name its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract import ArchSpec
from archport.layers import MLP, Rotary, activation
from archport_bidirectional.heads import heads
from archport_bidirectional.rotary_bert import Names, RotaryBert

_MLP = ((".mlp.fc1.", ".mlp.up_proj."), (".mlp.fc2.", ".mlp.down_proj."))
HUB = Names(
    ("roberta.",),
    (
        ("emb_ln.", "embeddings.LayerNorm."),
        ("encoder.layers.", "layers."),
        (".norm1.", ".attention_norm."),
        (".norm2.", ".output_norm."),
        (".mixer.out_proj.", ".attention.o_proj."),
        *_MLP,
    ),
    {".mixer.Wqkv.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")},
)
SAVED = Names(
    ("roberta.",),
    (
        (".self_attn.", ".attention."),
        (".post_attention_layernorm.", ".attention_norm."),
        (".post_mlp_layernorm.", ".output_norm."),
        *_MLP,
    ),
    {},
)


def jina(spec: ArchSpec, config: Mapping[str, Any]) -> RotaryBert:
    """The trunk of a claimed config."""
    D, act = spec.hidden_size, activation(config["hidden_act"])
    # Its repository's word, and transformers'.
    theta = config["rotary_emb_base"] if config.get("rotary_emb_base") is not None else config["rope_theta"]
    return RotaryBert(
        spec,
        (HUB, SAVED),
        # RoBERTa's masked-LM head has this one, whatever the config says.
        heads(spec, config, words="gelu", eps=config["layer_norm_eps"], pooled=False),
        rotary=Rotary(spec.attention_layers[0].head_dim, theta, config.get("rope_scaling")),
        mlp=lambda _: MLP(D, spec.intermediate_size, act, bias=True),
        eps=config["layer_norm_eps"],
        token_types=config["type_vocab_size"],
        bias=True,
    )
