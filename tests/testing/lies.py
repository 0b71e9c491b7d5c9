"""The lies: hooks, backends and trunks that differ from the honest toy in one thing. `liars` says what each breaks."""

import gc
from collections import Counter
from dataclasses import fields, replace
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import toy
from mlx.utils import tree_flatten
from toy_model import Toy

from archport.contract import ArchSpec, EmbeddingHead, KVAllocation, TextInputs, hookimpl
from archport.contract.attention import Price

DECODER = toy.archport_examples()[0]
ENCODER = toy.archport_examples()[1]


def plugin(name, *, trunk=None, examples=(DECODER,), **hooks):
    """The toy plugin as a module of its own, with another trunk or other hooks."""
    module = ModuleType(f"liar_{name}")
    chosen = {hook: getattr(toy, hook) for hook in ("archport_claim", "archport_build", "archport_examples")}

    def archport_examples():
        return list(examples)

    def archport_build(spec, config):
        return trunk(spec, config)

    chosen["archport_examples"] = archport_examples
    if trunk is not None:
        chosen["archport_build"] = archport_build
    for hook, function in {**chosen, **hooks}.items():
        setattr(module, hook, hookimpl(function))
    return module


def spec_with(change):
    """archport_claim of the toy, with its spec changed."""

    def archport_claim(config):
        spec = toy.archport_claim(config)
        return spec and change(spec)

    return archport_claim


def config_with(**more):
    return replace(DECODER, config={**DECODER.config, **more})


# Contract.


def archport_prefil_chunk(spec):
    return None


def more_heads(spec):
    return replace(spec, layers=tuple(replace(layer, n_kv_heads=layer.n_heads) for layer in spec.layers))


def by_position(spec):
    named = {each.name: getattr(spec, each.name) for each in fields(spec) if each.init}
    return ArchSpec(named.pop("arch"), named.pop("tasks"), **named)


def claims_strangers(config):
    if "AcmeForCausalLM" in (config.get("architectures") or []):
        return toy.archport_claim({**DECODER.config, "causal": True})
    return toy.archport_claim(config)


def ignores_flags(config):
    return toy.archport_claim({**config, "causal": True}) if config.get("architectures") else None


def ring_for_all(layer, shape):
    return KVAllocation("ring", 256, 256) if shape.B == 3 and layer.reach[0] is None else None


# Loading.


class DoublesNorms(Toy):
    def sanitize(self, weights):
        published = any(name.startswith("toy.") for name in weights)
        weights = super().sanitize(weights)
        return {n: w * 2 if published and n.endswith("layernorm.weight") else w for n, w in weights.items()}


class AddsOneToNorms(Toy):
    def sanitize(self, weights):
        saved = not any(name.startswith("toy.") for name in weights)
        weights = super().sanitize(weights)
        return {n: w + 1 if saved and n.endswith("layernorm.weight") else w for n, w in weights.items()}


class SwapsIndices(Toy):
    def index(self, spec, index):
        return len(spec.layers) - 1 - index


class FillsIn(Toy):
    def sanitize(self, weights):
        empty = {name: mx.zeros(value.shape) for name, value in tree_flatten(self.parameters())}
        return {**empty, **super().sanitize(weights)} if not any(n.endswith("scales") for n in weights) else weights


class ReadsWeight(Toy):
    def enter(self, ids, ctx):
        return self.embed.weight[ids] + self.place(ctx.positions)


# What tokens see.


class LooksAhead(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x + 0.3 * mx.pad(x[:, 1:], [(0, 0), (0, 1), (0, 0)])


class Deaf(Toy):
    def blocks(self, x, ctx):
        for layer in self.layers:
            x = x + 0 * layer.self_attn(layer.input_layernorm(x), ctx)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x


class Backend:
    """A backend of a plugin: plain attention over what `sees` says."""

    def __init__(self, name, seconds, reason, out):
        self.name, self._seconds, self._reason, self._out = name, seconds, reason, out

    def reasons_against(self, call, device):
        reason = self._reason(call)
        return [reason] if reason else []

    def price(self, call, device):
        scores = 8 * call.B * call.n_heads * call.q_len * call.kv_len
        return Price(scores, call.output_bytes, scores, 1.0, 1.0, seconds=self._seconds, dispatch_seconds=0.0)

    def run(self, call, price, q, k, v, *, scale, mask=None, sinks=None):
        return self._out(call, q, k, v, scale)


def no_window(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")


def a_little_off(call, q, k, v, scale):
    return 1.001 * no_window(call, q, k, v, scale)


def no_lengths(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)


BLIND = Backend("blind", 1e3, lambda call: "" if call.mask == "window" else "windows only", no_window)
SLOPPY = Backend("sloppy", 1e3, lambda call: "" if call.mask == "causal" else "causal only", a_little_off)
FORGETFUL = Backend("forgetful", 0.0, lambda call: "" if call.mask == "key_padding" else "padding only", no_lengths)


# What a device pads 24 tokens to: the check asks for so many.
OBSERVED = 24 if mx.default_device().type == mx.DeviceType.cpu else 32


def pins_blind(layer, call):
    return "blind" if call.mask == "window" and call.q_len == call.kv_len == OBSERVED else None


class CountsFromTheFirst(Toy):
    def positions(self, ids, ctx):
        return ctx.positions[:, :1] + mx.arange(ids.shape[1])


# Batches.


class MixesRows(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x - 0.2 * x.mean(axis=0, keepdims=True)


class KeepsPositions(Toy):
    def positions(self, ids, ctx):
        self._kept = ctx.positions
        return ctx.positions


class LooksAtFreeMemory(Toy):
    """It compares what is in use with the least that it has seen, so that what other tests hold is no part of it."""

    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        # What other tests left behind must not go between two looks.
        gc.collect()
        used = mx.get_active_memory()
        self._least = min(used, vars(self).get("_least", used))
        return x * 1.001 if used > self._least + (48 << 20) else x


class ReadsValues(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x if x.max().item() < 1e9 else x * 0


# Steps and caches.


class CountsFromZero(Toy):
    def positions(self, ids, ctx):
        return mx.broadcast_to(mx.arange(ids.shape[1]), ids.shape)


class TreatsOneTokenApart(Toy):
    def blocks(self, x, ctx):
        return super().blocks(x * 2 if x.shape[1] == 1 else x, ctx)


class LeavesEarly(Toy):
    def blocks(self, x, ctx):
        for layer in self.layers[:1] if x.shape[1] <= 2 else self.layers:
            x = layer(x, ctx)
        return x


def rounds_when_it_grows(layer, shape, limits):
    return KVAllocation("growing", 256, limits.max_context, bits=4, group_size=32) if shape.L > 256 else None


def boundless(layer, limits):
    return KVAllocation("growing", 256, 10 * limits.max_context) if layer.reach[0] is None else None


def changing_wish():
    asked = Counter()

    def archport_prefill_chunk(shape):
        asked[shape] += 1
        return (256, 192, 128, 96, 64, 48, 32)[min(asked[shape], 7) - 1]

    return archport_prefill_chunk


# Numbers and memory.


class Overflows(Toy):
    def enter(self, ids, ctx):
        return super().enter(ids, ctx) * 1e6 / 1e6


class MakesAMask(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        a = x[..., :32].transpose(0, 2, 1)
        return x + 0 * (a[..., None] * a[:, :, None]).sum(axis=(1, 3))[..., None]


# Texts.


def always_the_mean(spec):
    return EmbeddingHead(pooling=("mean",), source="a guess")


def own_prompts(spec):
    return TextInputs(prompts={"query": "Q: "}, query_prompt="query")


class ShortTable(Toy):
    def enter(self, ids, ctx):
        if ids.shape[1] > 500:
            raise ValueError("position out of range")
        return super().enter(ids, ctx)


class SmallVocabulary(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.embed = nn.Embedding(spec.vocab_size - 7, spec.hidden_size)

    def enter(self, ids, ctx):
        return super().enter(mx.minimum(ids, self.embed.weight.shape[0] - 1), ctx)


# Real weights.


class Noisy(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x + 1e-5 * mx.random.normal(x.shape)


class AnotherNorm(Toy):
    def __call__(self, ids, ctx):
        return super().__call__(ids, ctx) + 0.5
