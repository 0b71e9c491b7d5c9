"""The trunk of the toy plugin: learned positions, pre-norm blocks."""

import mlx.nn as nn

from archport.layers import Attention, GatedMLP, PreNormBlock, Rotary, head_rows


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
        if "generate" in spec.tasks and not spec.tied_head:
            self.lm_head = nn.Linear(D, spec.vocab_size, bias=False)

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

    @property
    def head(self):
        return self.lm_head if "lm_head" in self else self.embed

    def logits(self, hidden):
        return self.lm_head(hidden) if "lm_head" in self else self.embed.as_linear(hidden)

    def head_rows(self, ids):
        return head_rows(self.head, ids)

    def sanitize(self, weights):
        # A generator's checkpoint may be used to embed, and its head is dead weight then.
        dead = () if "lm_head" in self else ("toy.lm_head.weight", "lm_head.weight")
        return {name.removeprefix("toy."): value for name, value in weights.items() if name not in dead}
