"""Honest plugins of kinds that the shipped ones are not: the toy with another mixer or MLP, declared as built."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from lies import config_with, plugin, spec_with
from lies_of_spans import CLAIM, names, pictures
from lies_of_specs import NoHeadNorms
from toy_model import Toy

from archport.contract import AttentionLayer, Experts, Footprint, RecurrentLayer
from archport.layers import MLP, Attention, Rotary
from archport.layers.short_conv import ShortConv

# An inner width that the family adjusts, as LFM2 does: two thirds, rounded to 32.
ADJUSTED = plugin(
    "adjusted",
    examples=[config_with(intermediate_size=160)],
    archport_claim=spec_with(lambda spec: replace(spec, intermediate_size=96)),
)


# Tokens of a span see each other; the inputs find spans by their ids.
SPANNED = plugin("spanned", archport_claim=CLAIM, archport_inputs=names(pictures))


class Latent(nn.Module):
    """Multi-head latent attention, as DeepSeek's: keys and values from a narrow row, one rotated part for all heads."""

    NOPE, ROPE, RANK = 32, 16, 24

    def __init__(self, index, layer, D):
        super().__init__()
        self._index, self._heads, self._v = index, layer.n_heads, layer.v_head_dim
        self.q_proj = nn.Linear(D, layer.n_heads * layer.head_dim, bias=False)
        self.kv_a = nn.Linear(D, self.RANK + self.ROPE, bias=False)
        self.kv_norm = nn.RMSNorm(self.RANK)
        self.kv_b = nn.Linear(self.RANK, layer.n_heads * (self.NOPE + self._v), bias=False)
        self.o_proj = nn.Linear(layer.n_heads * self._v, D, bias=False)
        self._rotary = Rotary(self.ROPE, 1e4)

    def __call__(self, x, ctx):
        B, L, _ = x.shape
        q = self.q_proj(x).reshape(B, L, self._heads, -1).transpose(0, 2, 1, 3)
        narrow, shared = mx.split(self.kv_a(x), [self.RANK], axis=-1)
        made = self.kv_b(self.kv_norm(narrow)).reshape(B, L, self._heads, -1).transpose(0, 2, 1, 3)
        k, v = mx.split(made, [self.NOPE], axis=-1)
        q, turned = mx.split(q, [self.NOPE], axis=-1)
        turned, shared = ctx.rotate(turned, shared[:, None], self._rotary)
        shared = mx.broadcast_to(shared, (B, self._heads, L, self.ROPE))
        q, k = mx.concatenate([q, turned], axis=-1), mx.concatenate([k, shared], axis=-1)
        out = ctx.attend(self._index, q, k, v, scale=q.shape[-1] ** -0.5)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))


class LatentToy(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        for index, layer in enumerate(spec.layers):
            self.layers[index].self_attn = Latent(index, layer, spec.hidden_size)


def latent(spec):
    layers = [replace(each, n_kv_heads=each.n_heads, head_dim=48, v_head_dim=32) for each in spec.layers]
    return replace(spec, layers=tuple(layers), qk_norm=False)


LATENT = plugin(
    "latent",
    trunk=LatentToy,
    examples=[config_with(num_key_value_heads=4, head_dim=16)],
    archport_claim=spec_with(latent),
)


class Stretched(NoHeadNorms):
    """Yarn, whose gain scales q and k as they are rotated."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
        for index, layer in enumerate(spec.layers):
            self.layers[index].self_attn = Attention(
                index, layer, spec.hidden_size, bias=False, output_bias=False, rotary=Rotary(layer.head_dim, 1e4, yarn)
            )


# The gain copies q and k as norms would, and is declared as such.
STRETCHED = plugin("stretched", trunk=Stretched)


class Sinking(nn.Module):
    """Attention as gpt-oss has it: biases on all four projections, and a sink logit per head."""

    def __init__(self, index, layer, D):
        super().__init__()
        self._index, self._layer = index, layer
        self.q_proj = nn.Linear(D, layer.n_heads * layer.head_dim)
        self.k_proj = nn.Linear(D, layer.n_kv_heads * layer.head_dim)
        self.v_proj = nn.Linear(D, layer.n_kv_heads * layer.head_dim)
        self.o_proj = nn.Linear(layer.n_heads * layer.head_dim, D)
        self.sinks = mx.zeros((layer.n_heads,))
        self._rotary = Rotary(layer.head_dim, 1e4)

    def __call__(self, x, ctx):
        B, L, _ = x.shape
        q, k, v = (
            each(x).reshape(B, L, -1, self._layer.head_dim).transpose(0, 2, 1, 3)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = ctx.rotate(q, k, self._rotary)
        out = ctx.attend(self._index, q, k, v, scale=self._layer.head_dim**-0.5, sinks=self.sinks)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))


class SinkingToy(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        for index, layer in enumerate(spec.layers):
            self.layers[index].self_attn = Sinking(index, layer, spec.hidden_size)


def sinking(spec):
    return replace(spec, layers=tuple(replace(each, sinks=True) for each in spec.layers), qk_norm=False)


SINKING = plugin("sinking", trunk=SinkingToy, archport_claim=spec_with(sinking))


class Convolved(nn.Module):
    """A recurrence that archport does not bring, as LFM2's: a short convolution between two gates."""

    TAPS = 3

    def __init__(self, index, D):
        super().__init__()
        self._index = index
        self.in_proj = nn.Linear(D, 3 * D, bias=False)
        self.conv = ShortConv(D, self.TAPS, lambda x: x)
        self.out_proj = nn.Linear(D, D, bias=False)

    def __call__(self, x, ctx):
        before, behind, x = mx.split(self.in_proj(x), 3, axis=-1)
        x = before * x
        step = ctx.state(self._index, x, behind)
        mixed, tail = self.conv(x, step.arrays[0] if step.arrays else None, ctx.documents)
        out = self.out_proj(behind * mixed)
        if step.keeps:
            step.store([tail])
            (out,) = mx.depends([out], [tail])
        return out


class ConvolvedToy(Toy):
    def __init__(self, spec, config):
        whole = replace(spec, layers=tuple(each for each in spec.layers if isinstance(each, AttentionLayer)) * 2)
        super().__init__(whole, config)
        for index, layer in enumerate(spec.layers):
            if isinstance(layer, RecurrentLayer):
                self.layers[index].self_attn = Convolved(index, spec.hidden_size)


def convolved(spec):
    D, taps = spec.hidden_size, Convolved.TAPS
    own = RecurrentLayer(0, conv_taps=taps, conv_bytes=4 * (taps - 1) * D, channels=5 * D, values=D)
    return replace(spec, layers=(own, spec.layers[1]))


CONVOLVED = plugin(
    "convolved",
    trunk=ConvolvedToy,
    examples=[config_with(layer_types=["conv", "full_attention"])],
    archport_claim=spec_with(convolved),
)
PLAIN = plugin("plain")
# The model is wide next to its heads, and MLX's own silu is handed to an MLP of archport's.
WIDE = plugin("wide", examples=[config_with(hidden_size=256, head_dim=8)])


class UngatedToy(Toy):
    """Norms before each half, as decoders have them, around an MLP without a gate; its activation is a module."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        for layer in self.layers:
            layer.mlp = MLP(spec.hidden_size, spec.intermediate_size, nn.GELU(), bias=True)


UNGATED = plugin(
    "ungated",
    trunk=UngatedToy,
    examples=[config_with(intermediate_size=256)],
    archport_claim=spec_with(lambda spec: replace(spec, gated_mlp=False)),
)


class LearnedToy(UngatedToy):
    """The same with learned positions alone, as GPT-2 has them."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        for index, layer in enumerate(spec.layers):
            self.layers[index].self_attn = Attention(index, layer, spec.hidden_size, bias=True, output_bias=True)


LEARNED = plugin(
    "learned",
    trunk=LearnedToy,
    examples=[config_with(intermediate_size=256)],
    archport_claim=spec_with(lambda spec: replace(spec, gated_mlp=False, qk_norm=False, rotary=False)),
)


class ClampedExperts(nn.Module):
    """Experts as gpt-oss's, in modules of the plugin's own: biases everywhere, a gate that is clamped."""

    COUNT, CHOSEN = 4, 2

    def __init__(self, D, inner):
        super().__init__()
        self.router = nn.Linear(D, self.COUNT)
        self.into, self.into_bias = mx.zeros((self.COUNT, D, 2 * inner)), mx.zeros((self.COUNT, 2 * inner))
        self.back, self.back_bias = mx.zeros((self.COUNT, inner, D)), mx.zeros((self.COUNT, D))

    def __call__(self, x):
        likes = self.router(x).astype(mx.float32)
        chosen = mx.argpartition(-likes, kth=self.CHOSEN - 1, axis=-1)[..., : self.CHOSEN]
        shares = mx.softmax(mx.take_along_axis(likes, chosen, axis=-1), axis=-1).astype(x.dtype)
        inner = self.product(x[..., None, None, :], self.into, chosen) + self.into_bias[chosen]
        gate, up = mx.split(inner, 2, axis=-1)
        gate, up = mx.minimum(gate, 1), mx.clip(up, -1, 1)
        inner = gate * mx.sigmoid(1.702 * gate) * (up + 1)
        out = self.product(inner[..., None, :], self.back, chosen) + self.back_bias[chosen]
        return (out * shares[..., None]).sum(axis=-2)

    def product(self, x, matrices, chosen):
        # MLX has none of 16 bits on a CPU.
        found = mx.gather_mm(x.astype(mx.float32), matrices.astype(mx.float32), rhs_indices=chosen)
        return found.squeeze(-2).astype(x.dtype)


class ClampedToy(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        for layer in self.layers:
            layer.mlp = ClampedExperts(spec.hidden_size, spec.intermediate_size)


def clamped(spec):
    D, wide = spec.hidden_size, ClampedExperts.CHOSEN * spec.intermediate_size
    experts = Experts(
        count=ClampedExperts.COUNT,
        per_token=ClampedExperts.CHOSEN,
        intermediate_size=spec.intermediate_size,
        layers=tuple(range(len(spec.layers))),
    )
    # Gate and up, their biases and their sum; clamped, and multiplied; answers, biases and products of the chosen.
    mlp = 6 * wide + 4 * wide + 3 * ClampedExperts.CHOSEN * D + 3 * D
    layers = tuple(replace(each, footprint=Footprint(mlp=mlp)) for each in spec.layers)
    return replace(spec, layers=layers, experts=experts)


CLAMPED = plugin("clamped", trunk=ClampedToy, archport_claim=spec_with(clamped))
