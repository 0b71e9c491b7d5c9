"""Lies about the way from hidden states to words: heads, tied matrices, tensors that nobody reads, decoded tokens."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import toy
from lies import Backend
from toy_model import Toy

from archport.layers import head_rows

GENERATOR = toy.archport_examples()[2]
TIED = replace(GENERATOR, name="generator, tied", config={**toy.GENERATOR, "tie_word_embeddings": True}, seed=3)


class NoLogits(Toy):
    def logits(self, hidden):
        return mx.zeros((*hidden.shape[:-1], self.embed.weight.shape[0]))


class WrongMatrix(Toy):
    def logits(self, hidden):
        return self.embed.as_linear(hidden)


class WrongMatrixThroughout(WrongMatrix):
    @property
    def head(self):
        return self.embed


class RowsReversed(Toy):
    def head_rows(self, ids):
        return super().head_rows(ids)[::-1]


class RowsSorted(Toy):
    def head_rows(self, ids):
        return super().head_rows(sorted(ids))


class LogitsScaled(Toy):
    def logits(self, hidden):
        return super().logits(hidden) * 0.5


class LastLogitsApart(Toy):
    def logits(self, hidden):
        found = super().logits(hidden)
        return found[..., ::-1] if hidden.shape[1] == 1 else found


class TiresOfWords(Toy):
    """The token that it said last is less likely."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        said = []

        def logits(hidden):
            found = Toy.logits(self, hidden)
            if hidden.shape[1] > 1:
                return found
            if said and len(said[-1]) == len(found):
                found = found - 1.0 * (mx.arange(found.shape[-1]) == said[-1][:, None, None])
            said.append(found.argmax(axis=-1)[:, 0])
            return found

        self._logits = logits

    def logits(self, hidden):
        return self._logits(hidden)


class OwnHead(Toy):
    """A head of its own, whatever is declared."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)


class NoHead(Toy):
    """The embedding is the head, whatever is declared."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.pop("lm_head", None)


class SpareNorm(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.spare_norm = nn.RMSNorm(spec.hidden_size)


class NoPlaces(Toy):
    def enter(self, ids, ctx):
        return self.embed(ids) + 0 * self.place(ctx.positions)


class ReadsHeadWeight(Toy):
    def logits(self, hidden):
        return hidden @ self.head.weight.T

    def head_rows(self, ids):
        return head_rows(self.head, ids)


# Decoding.


class OneTooFar(Toy):
    def positions(self, ids, ctx):
        at = ctx.positions
        return mx.minimum(at + (at > 100), self.place.weight.shape[0] - 1) if ids.shape[1] == 1 else at


class MixesDecoded(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x - 0.2 * x.mean(axis=0, keepdims=True) if ids.shape[1] == 1 and len(ids) >= 4 else x


class DecodesAtTheFirst(Toy):
    def positions(self, ids, ctx):
        at = ctx.positions
        return mx.broadcast_to(at[:1], at.shape) if ids.shape[1] == 1 else at


def last_keys(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k[:, :, -200:], v[:, :, -200:], scale=scale)


def everything(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)


SHORT_MEMORY = Backend(
    "short memory",
    0.0,
    lambda call: "" if call.q_len == 1 and call.kv_len > 256 and call.mask == "none" else "decoding only",
    last_keys,
)
# Rows that are decoded together end at one column; a mask hides what stands in front of short ones.
FRONTLESS = Backend(
    "frontless",
    0.0,
    lambda call: "" if call.q_len == 1 and call.mask == "dense" else "decoding of uneven rows only",
    everything,
)
