"""Lies of claims and of modules that are not what was claimed."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import toy
from lies import DECODER, spec_with
from mlx.utils import tree_flatten
from toy_model import Toy

from archport.contract import Footprint
from archport.layers import MLP, Attention, Rotary


def declaring(**more):
    """archport_claim of the toy, with other values in its spec."""
    return spec_with(lambda spec: replace(spec, **more))


def built_as(**more):
    """A trunk that is built with other values than are declared."""

    class Built(Toy):
        def __init__(self, spec, config):
            super().__init__(replace(spec, **more), config)

    return Built


def one_more_in_reach(spec):
    layers = [replace(each, reach=(each.reach[0] + 1, 0)) if each.is_windowed else each for each in spec.layers]
    return replace(spec, layers=tuple(layers))


def footprint(**numbers):
    """A change of a spec: every layer declares these."""

    def change(spec):
        layers = [replace(each, footprint=Footprint(**numbers)) for each in spec.layers]
        return replace(spec, layers=tuple(layers))

    return change


def claims_the_nameless(config):
    return toy.archport_claim({**DECODER.config, "causal": True} if not config.get("architectures") else config)


class NoHeadNorms(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        for index, layer in enumerate(spec.layers):
            rotary = Rotary(layer.head_dim, 1e4)
            self.layers[index].self_attn = Attention(
                index, layer, spec.hidden_size, bias=False, output_bias=False, rotary=rotary
            )


class NoGates(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        for layer in self.layers:
            layer.mlp = MLP(spec.hidden_size, spec.intermediate_size, mx.tanh, bias=False)


class AttendsTwice(Toy):
    def blocks(self, x, ctx):
        x = super().blocks(x, ctx)
        last = self.layers[1]
        return x + 0.5 * last.self_attn(last.input_layernorm(x), ctx)


class TransposesSquares(Toy):
    def sanitize(self, weights):
        published = any(name.startswith("toy.") for name in weights)
        weights = super().sanitize(weights)
        square = {n for n, w in weights.items() if w.ndim == 2 and w.shape[0] == w.shape[1]} if published else ()
        return {n: w.T if n in square else w for n, w in weights.items()}


class DropsStrangers(Toy):
    def sanitize(self, weights):
        known = {name for name, _ in tree_flatten(self.parameters())}
        packed = {f"{name.removesuffix('.weight')}.{leaf}" for name in known for leaf in ("scales", "biases")}
        return {n: w for n, w in super().sanitize(weights).items() if n in known | packed}


class PadsWhatIsShort(Toy):
    def sanitize(self, weights):
        shapes = {name: value.shape for name, value in tree_flatten(self.parameters())}
        weights = super().sanitize(weights)
        missing = {n: shapes[n][0] - len(w) for n, w in weights.items() if w.ndim == 2 and n in shapes}
        return {
            n: mx.pad(w, [(0, max(0, missing.get(n, 0))), (0, 0)]) if n in missing else w for n, w in weights.items()
        }


# Numbers and memory.


class EvaluatesWithin(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        mx.eval(x)
        return x


class GoesThroughNumpy(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return mx.array(np.array(x.astype(mx.float32))).astype(x.dtype)


class CoarseInHalf(Toy):
    """Sixteen bits lose all but three."""

    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x if x.dtype == mx.float32 else mx.round(x * 8) / 8


# A GPU's plan has a constant beside the model.
COPIES = 16 if mx.default_device().type == mx.DeviceType.cpu else 64


class Repeats(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        wide = mx.concatenate([x * (1 + index) for index in range(COPIES)], axis=-1)
        return x + 0 * wide.reshape(*x.shape, -1).sum(axis=-1)
