"""The trunks of MPNet and of a BERT with linear biases."""

import re

import mlx.nn as nn

from archport.layers import MLP, Attention, PostNormBlock, RelativeBuckets, Slopes, activation, alibi_slopes

NAMES = (
    (r"^mpnet\.", ""),
    (r"attention\.attn\.(\w)\.", r"attention.\1_proj."),
    (r"attention\.LayerNorm", "attention_norm"),
    (r"intermediate\.dense", "mlp.up_proj"),
    (r"output\.dense", "mlp.down_proj"),
    (r"output\.LayerNorm", "output_norm"),
)


class Embeddings(nn.Module):
    def __init__(self, spec, config, positions):
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocab_size, spec.hidden_size)
        if positions:
            self.position_embeddings = nn.Embedding(positions, spec.hidden_size)
        self.LayerNorm = nn.LayerNorm(spec.hidden_size, eps=config["layer_norm_eps"])


class Encoder(nn.Module):
    def __init__(self, spec, config, rule):
        super().__init__()
        D, eps = spec.hidden_size, config["layer_norm_eps"]
        self.layer = [
            PostNormBlock(
                Attention(index, layer, D, bias=True, output_bias=True, distance_bias=rule),
                MLP(D, spec.intermediate_size, activation(config["hidden_act"]), bias=True),
                D,
                eps,
            )
            for index, layer in enumerate(spec.layers)
        ]


class AlibiBert(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        self.embeddings = Embeddings(spec, config, 0)
        self.encoder = Encoder(spec, config, Slopes(alibi_slopes(config["num_attention_heads"])))

    def enter(self, ids, ctx):
        return self.embeddings.word_embeddings(ids)

    def __call__(self, ids, ctx):
        x = self.embeddings.LayerNorm(self.enter(ids, ctx))
        for layer in self.encoder.layer:
            x = layer(x, ctx)
        return x

    def sanitize(self, weights):
        found = {}
        for name, value in weights.items():
            if not name.startswith("pooler.") and "position_ids" not in name:
                for pattern, new in NAMES:
                    name = re.sub(pattern, new, name)
                found[name] = value
        return found


class MPNet(AlibiBert):
    def __init__(self, spec, config):
        nn.Module.__init__(self)
        table = RelativeBuckets(config["num_attention_heads"], config["relative_attention_num_buckets"])
        self.embeddings = Embeddings(spec, config, spec.max_positions + 2)
        self.encoder = Encoder(spec, config, table)
        self.encoder.relative_attention_bias = table

    def enter(self, ids, ctx):
        return super().enter(ids, ctx) + self.embeddings.position_embeddings(ctx.positions + 2)
