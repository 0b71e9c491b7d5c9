"""What turns a pooled row into scores of labels, and a hidden row into logits of the vocabulary, per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.contract import ArchSpec, label_count
from archport.layers import activation, settle_head

Act = Callable[[mx.array], mx.array]


class Dense(nn.Module):
    """One linear layer with an activation; parameters `dense`.

    Args:
        out: width of its output, where it is not that of its input.
    """

    def __init__(self, width: int, act: Act, *, bias: bool = True, out: int | None = None) -> None:
        super().__init__()
        self._act = act
        self.dense = nn.Linear(width, out or width, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self._act(self.dense(x))


class DenseOut(Dense):
    """RoBERTa's classifier, and with another activation ELECTRA's: dense, tanh, `out_proj` to the labels."""

    def __init__(self, width: int, labels: int, act: Act = mx.tanh) -> None:
        super().__init__(width, act)
        self.out_proj = nn.Linear(width, labels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out_proj(super().__call__(x))


class DenseNorm(Dense):
    """ModernBERT's prediction head: dense, activation, `norm`."""

    def __init__(self, width: int, act: Act, eps: float, *, bias: bool, norm_bias: bool) -> None:
        super().__init__(width, act, bias=bias)
        self.norm = nn.LayerNorm(width, eps=eps, bias=norm_bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(super().__call__(x))


class MaskedHead(Dense):
    """BERT's and RoBERTa's masked-LM head: dense, activation, `layer_norm`, the word embeddings, `bias`.

    `decoder` stands in for the word embeddings where a checkpoint has a matrix of its own.

    Args:
        out: width of the word embeddings, where it is not that of the blocks.
    """

    def __init__(self, width: int, vocabulary: int, act: Act, eps: float, *, out: int | None = None) -> None:
        super().__init__(width, act, out=out)
        self.layer_norm = nn.LayerNorm(out or width, eps=eps)
        self.bias = mx.zeros((vocabulary,))

    def logits(self, hidden: mx.array, words: nn.Embedding) -> mx.array:
        x = self.layer_norm(self(hidden))
        return (self.decoder(x) if "decoder" in self else words.as_linear(x)) + self.bias

    def settle(self, weights: dict[str, mx.array], path: str, words: str, *, tied: bool) -> dict[str, mx.array]:
        """Take the matrix and the bias that the checkpoint's decoder has; returns the tensors that fill this head.

        Args:
            path, words: of this head, and of the word embeddings, in `weights`.
            tied: what the config says.
        """
        weights, own = settle_head(weights, f"{path}.decoder", words, tied=tied)
        if own:
            self.decoder = nn.Linear(self.dense.weight.shape[0], self.bias.shape[0], bias=False)
        # Saved under two names, which are one parameter of a tied model; an untied one reads the decoder's.
        bias = weights.pop(f"{path}.decoder.bias", None)
        if bias is not None:
            weights[f"{path}.bias"] = bias
        elif not tied:
            weights.pop(f"{path}.bias", None)
        return weights


class Bias(nn.Module):
    """A bias on its own, of a decoder that is tied to the word embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = mx.zeros((width,))


def heads(
    spec: ArchSpec,
    config: Mapping[str, Any],
    *,
    words: str,
    eps: float,
    width: int | None = None,
    labels: str = "tanh",
    pooled: bool,
) -> dict[str, nn.Module]:
    """The heads of a checkpoint's tasks, by name: `lm_head` for `fill_mask`, `classifier` for `tag` and `classify`, and
    for the latter a `pooler` in front of it where `pooled`.

    Args:
        words, labels: activations of the masked-LM head, and of what stands in front of a text's labels.
        eps: of the norms.
        width: of the word embeddings, where it is not that of the blocks.
        pooled: whether a text's labels are one matrix after a pooler (BERT), or a classifier of two (RoBERTa).
    """
    D, count = spec.hidden_size, label_count(config)
    named: dict[str, nn.Module] = {}
    if "fill_mask" in spec.tasks:
        named["lm_head"] = MaskedHead(D, spec.vocab_size, activation(words), eps, out=width)
    if "classify" in spec.tasks and pooled:
        named["pooler"] = Dense(D, activation(labels))
    if "tag" in spec.tasks or "pooler" in named:
        named["classifier"] = nn.Linear(D, count)
    elif "classify" in spec.tasks:
        named["classifier"] = DenseOut(D, count, activation(labels))
    return named
