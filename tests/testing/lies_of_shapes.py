"""Lies that need a certain shape to be seen: many rows, rows unlike each other, round lengths, cached tokens, turns."""

from collections import Counter
from dataclasses import replace

import mlx.core as mx
import toy
from lies import DECODER, Backend, no_lengths
from toy_model import Toy


def mixing(rows):
    """A trunk that subtracts the mean over the batch where `rows(B)`."""

    class Mixes(Toy):
        def enter(self, ids, ctx):
            x = super().enter(ids, ctx)
            return x - 0.2 * x.mean(axis=0, keepdims=True) if rows(len(ids)) else x

    return Mixes


def special(length):
    """A trunk that leaves rows of one length without their last layer."""

    class Special(Toy):
        def blocks(self, x, ctx):
            if x.shape[1] != length:
                return super().blocks(x, ctx)
            return self.layers[1](self.layers[0](1.01 * x, ctx), ctx)

    return Special


class AddsTheTokenBefore(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x + 0.3 * mx.pad(x[:, :-1], [(0, 0), (1, 0), (0, 0)])


def unlike(call):
    rows = call.lengths
    return "" if rows and call.B > 1 and max(rows) - min(rows) > 64 else "rows that are unlike only"


def cached_apart(call):
    return "" if call.B > 1 and call.q_lengths and call.q_lengths != call.lengths else "cached rows only"


def of_documents(call):
    return "" if call.mask == "documents" and call.B == 1 and len(call.lengths) > 1 else "documents only"


def one_document(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")


NEIGHBOURLY = Backend("neighbourly", 0.0, unlike, no_lengths)
FROM_ZERO = Backend("from zero", 0.0, cached_apart, no_lengths)
RUNS_ON = Backend("runs on", 0.0, of_documents, one_document)


def claims_in_turn():
    """archport_claim of the toy, which names the architecture another way every second time."""
    asked = Counter()

    def archport_claim(config):
        spec = toy.archport_claim(config)
        asked["claim"] += 1
        return spec and replace(spec, arch=("toy", "plaything")[asked["claim"] % 2])

    return archport_claim


def examples_in_turn():
    asked = Counter()

    def archport_examples():
        asked["examples"] += 1
        return [replace(DECODER, name=f"decoder {asked['examples']}")]

    return archport_examples


def nowhere(call):
    return "nowhere" if call.B == 3 and call.q_len == 24 else None
