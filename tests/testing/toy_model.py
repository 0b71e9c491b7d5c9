"""The trunk of the toy plugin: learned positions, pre-norm blocks."""

import mlx.nn as nn

from archport.layers import Attention, GatedMLP, PreNormBlock, Rotary


class Toy(nn.Module):
    def __init__(self, spec, config):
        super().__init__()
        D = spec.hidden_size
        self.embed = nn.Embedding(spec.vocab_size, D)
        self.place = nn.Embedding(spec.max_positions, D)
        self.layers = [
            PreNormBlock(
                Attention(
                    self.index(spec, index),
                    layer,
                    D,
                    bias=False,
                    output_bias=False,
                    qk_norm_eps=1e-6,
                    rotary=Rotary(layer.head_dim, 1e4),
                ),
                GatedMLP(D, spec.intermediate_size, nn.silu),
                D,
                1e-6,
            )
            for index, layer in enumerate(spec.layers)
        ]
        self.norm = nn.RMSNorm(D, eps=1e-6)

    def index(self, spec, index):
        return index

    def enter(self, ids, ctx):
        return self.embed(ids) + self.place(self.positions(ids, ctx))

    def positions(self, ids, ctx):
        return ctx.positions

    def blocks(self, x, ctx):
        for layer in self.layers:
            x = layer(x, ctx)
        return x

    def __call__(self, ids, ctx):
        return self.norm(self.blocks(self.enter(ids, ctx), ctx))

    def sanitize(self, weights):
        return {name.removeprefix("toy."): value for name, value in weights.items()}
