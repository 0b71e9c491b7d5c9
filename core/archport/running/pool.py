"""Hidden rows to vectors: pooling modes, Dense layers, dimensions, unit length. Knows nothing of how rows were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from archport.contract import Dense, EmbeddingHead, PoolingMode
from archport.contract.model import Activation

_ACTIVATIONS: dict[Activation, Callable[[mx.array], mx.array]] = {
    "identity": lambda x: x,
    "tanh": mx.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "sigmoid": mx.sigmoid,
}


@dataclass(frozen=True, slots=True)
class VectorHead:
    """An EmbeddingHead with its weights.

    Args:
        head: the declared pipeline.
        weights: (weight (out, in), bias (out,) or None) of each Dense layer.
    """

    head: EmbeddingHead
    weights: tuple[tuple[mx.array, mx.array | None], ...] = ()

    def __call__(self, hidden: mx.array, lengths: Sequence[int], prompt_tokens: int = 0) -> mx.array:
        """Vectors (B, D') in float32 of hidden states (B, L, D), before `dimensions` and unit length."""
        skip = 0 if self.head.include_prompt else prompt_tokens
        rows = pool(hidden, lengths, self.head.pooling, skip)
        for dense, (weight, bias) in zip(self.head.dense, self.weights, strict=True):
            rows = _dense(rows, dense, weight, bias)
        return rows

    def finish(self, rows: mx.array, *, dimensions: int | None, normalize: bool | None) -> mx.array:
        """Cut to the leading dimensions and scale to unit length.

        Args:
            dimensions: asked for by the caller: cut first, then scaled, as models trained that way (Matryoshka) want.
                None takes the number stored with the model, which its pipeline cuts last, after its own scaling.
            normalize: None scales where the model's pipeline does; True always, False never.
        """
        if dimensions is None:
            if self.head.normalize and normalize is not False:
                rows = unit_length(rows)
            rows = rows[:, : self.head.dimensions]
        else:
            rows = rows[:, :dimensions]
            normalize = self.head.normalize if normalize is None else normalize
        return unit_length(rows) if normalize else rows


def unit_length(rows: mx.array) -> mx.array:
    """Rows (B, D) scaled to L2 norm 1; a zero row stays zero."""
    return rows / mx.maximum(mx.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def pool(hidden: mx.array, lengths: Sequence[int], modes: Sequence[PoolingMode], skip: int = 0) -> mx.array:
    """One float32 row per sequence, (B, D x modes), from right-padded hidden states (B, L, D).

    Args:
        lengths: real tokens per row.
        modes: pooled one by one and concatenated in this order.
        skip: leading tokens left out of every mode (a prompt's); a row no longer than that keeps its final token.
    """
    B, L, _ = hidden.shape
    ends = mx.array(list(lengths))[:, None]
    starts = mx.minimum(skip, ends - 1)
    position = mx.arange(L)[None]
    real = ((position >= starts) & (position < ends))[..., None]
    x = hidden.astype(mx.float32)
    zeroed = mx.where(real, x, 0.0)
    batch = mx.arange(B)

    def one(mode: PoolingMode) -> mx.array:
        if mode == "cls":
            return x[batch, starts[:, 0]]
        if mode == "last":
            return x[batch, ends[:, 0] - 1]
        if mode == "max":
            return mx.where(real, x, -mx.inf).max(axis=1)
        if mode == "weighted_mean":
            # A prompt that is left out still counts as positions passed.
            weights = mx.where(real, (position + 1)[..., None].astype(mx.float32), 0.0)
            return (zeroed * weights).sum(axis=1) / weights.sum(axis=1)
        count = (ends - starts).astype(mx.float32)
        return zeroed.sum(axis=1) / (mx.sqrt(count) if mode == "mean_sqrt_len" else count)

    return mx.concatenate([one(mode) for mode in modes], axis=-1)


def _dense(x: mx.array, dense: Dense, weight: mx.array, bias: mx.array | None) -> mx.array:
    y = x @ weight.astype(mx.float32).T
    if bias is not None:
        y = y + bias.astype(mx.float32)
    y = _ACTIVATIONS[dense.activation](y)
    return x + y if dense.residual else y
