"""The trunk of NomicBert: a BERT with rotated heads and a gated MLP."""

import mlx.core as mx
import mlx.nn as nn

from archport.layers import Attention, GatedMLP, PostNormBlock, Rotary, activation

# (as transformers saves it, as here), and (as the hub has it, as here).
SAVED = (
    ("embeddings.LayerNorm.", "norm."),
    ("post_attention_layernorm.", "attention_norm."),
    ("post_mlp_layernorm.", "output_norm."),
    (".self_attn.", ".attention."),
)
HUB = (
    ("emb_ln.", "norm."),
    ("encoder.layers.", "layers."),
    (".norm1.", ".attention_norm."),
    (".norm2.", ".output_norm."),
    (".attn.out_proj.", ".attention.o_proj."),
    # SwiGLU's gate is the second.
    (".mlp.fc11.", ".mlp.up_proj."),
    (".mlp.fc12.", ".mlp.gate_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
)
FUSED = ".attn.Wqkv.weight"


class Embeddings(nn.Module):
    def __init__(self, spec, kinds):
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.token_type_embeddings = nn.Embedding(kinds, spec.hidden_size)


class NomicBert(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        D, eps, act = spec.hidden_size, config["layer_norm_eps"], activation(config["hidden_act"])
        self.embeddings = Embeddings(spec, config["type_vocab_size"])
        self.norm = nn.LayerNorm(D, eps=eps)
        self.layers = [
            PostNormBlock(
                Attention(
                    index,
                    layer,
                    D,
                    bias=False,
                    output_bias=False,
                    rotary=Rotary(layer.head_dim, config["rope_theta"], config.get("rope_scaling")),
                ),
                GatedMLP(D, spec.intermediate_size, act),
                D,
                eps,
            )
            for index, layer in enumerate(spec.layers)
        ]

    def __call__(self, ids, ctx):
        # All tokens are of the first kind.
        kind = self.embeddings.token_type_embeddings(mx.array([0]))
        x = self.norm(self.embeddings.word_embeddings(ids) + kind)
        for layer in self.layers:
            x = layer(x, ctx)
        return x

    def sanitize(self, weights):
        found = {}
        for name, value in weights.items():
            if name.startswith("pooler."):
                continue
            if name.endswith(FUSED):
                block = name.removesuffix(FUSED).removeprefix("encoder.")
                for part, rows in zip("qkv", mx.split(value, 3, axis=0), strict=True):
                    found[f"{block}.attention.{part}_proj.weight"] = rows
                continue
            for old, new in (*HUB, *SAVED):
                name = name.replace(old, new)
            found[name] = value
        return found


def saved(weights):
    """The tensors as transformers names them."""
    found = {}
    for name, value in weights.items():
        if name.startswith("norm."):
            name = f"embeddings.LayerNorm.{name.removeprefix('norm.')}"
        for old, new in SAVED[1:]:
            name = name.replace(new, old)
        found[name] = value
    return found


def published(weights):
    """The tensors as the hub names them: queries, keys and values in one matrix."""
    found = {}
    for name, value in weights.items():
        block, part, leaf = name.partition(".attention.")
        if leaf.startswith("q_proj"):
            parts = [weights[f"{block}{part}{each}_proj.weight"] for each in "qkv"]
            found[f"encoder.{block}{FUSED}"] = mx.concatenate(parts)
        elif not leaf or leaf.startswith("o_proj"):
            name = f"emb_ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
            for old, new in HUB[1:]:
                name = name.replace(new, old)
            found[name] = value
    return found
