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

    def skipped(self, prompt_tokens: int) -> int:
        """Leading tokens that pooling leaves out."""
        return 0 if self.head.include_prompt else prompt_tokens

    def project(self, pooled: mx.array) -> mx.array:
        """Pooled rows (B, D x modes) through the Dense layers, float32."""
        return project(pooled, self.head.dense, self.weights)

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


def project(rows: mx.array, layers: Sequence[Dense], weights: Sequence[tuple[mx.array, mx.array | None]]) -> mx.array:
    """Rows (..., D) float32 through Dense layers of these weights and biases."""
    for dense, (weight, bias) in zip(layers, weights, strict=True):
        rows = _dense(rows, dense, weight, bias)
    return rows


def unit_length(rows: mx.array) -> mx.array:
    """Rows (..., D) scaled to L2 norm 1; a zero row stays zero."""
    return rows / mx.maximum(mx.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


class Pooling:
    """Pools right-padded hidden states as they come, step by step, into one float32 row per sequence.

    Args:
        lengths: real tokens per row.
        modes: pooled one by one and concatenated in this order.
        skip: leading tokens left out of every mode (a prompt's); a row no longer than that keeps its final token.
    """

    def __init__(self, lengths: Sequence[int], modes: Sequence[PoolingMode], skip: int = 0) -> None:
        self._modes = tuple(modes)
        self._ends = mx.array(list(lengths))[:, None]
        self._starts = mx.minimum(skip, self._ends - 1)
        self._so_far: dict[PoolingMode, mx.array] = {}

    def add(self, hidden: mx.array, start: int = 0) -> None:
        """Take in hidden states (B, L, D) of the tokens from `start` on."""
        position = start + mx.arange(hidden.shape[1])[None]
        real = ((position >= self._starts) & (position < self._ends))[..., None]
        for mode in dict.fromkeys(self._modes):
            self._so_far[mode] = self._pooled(mode, hidden, position, real)

    def _pooled(self, mode: PoolingMode, hidden: mx.array, position: mx.array, real: mx.array) -> mx.array:
        before = self._so_far.get(mode)
        if mode in ("cls", "last"):
            index = (self._starts if mode == "cls" else self._ends - 1)[:, 0] - position[0, 0]
            here = (index >= 0) & (index < hidden.shape[1])
            picked = hidden[mx.arange(len(index)), mx.where(here, index, 0)].astype(mx.float32)
            return mx.where(here[:, None], picked, 0.0 if before is None else before)
        x = hidden.astype(mx.float32)
        if mode == "max":
            highest = mx.where(real, x, -mx.inf).max(axis=1)
            return highest if before is None else mx.maximum(before, highest)
        x = mx.where(real, x, 0.0)
        if mode == "weighted_mean":
            # A prompt that is left out still counts as positions passed.
            x = x * (position + 1)[..., None].astype(mx.float32)
        return x.sum(axis=1) if before is None else before + x.sum(axis=1)

    def evaluate(self) -> None:
        """Finish what was added, so that the hidden states can be released."""
        mx.eval(self._so_far)

    def rows(self) -> mx.array:
        """The pooled rows (B, D x modes)."""
        first, last = self._starts.astype(mx.float32), self._ends.astype(mx.float32)
        divisor = {
            "mean": last - first,
            "mean_sqrt_len": mx.sqrt(last - first),
            # The sum of first + 1 .. last.
            "weighted_mean": (last * (last + 1) - first * (first + 1)) / 2,
        }
        return mx.concatenate([self._so_far[mode] / divisor.get(mode, 1.0) for mode in self._modes], axis=-1)


def _dense(x: mx.array, dense: Dense, weight: mx.array, bias: mx.array | None) -> mx.array:
    y = x @ weight.astype(mx.float32).T
    if bias is not None:
        y = y + bias.astype(mx.float32)
    y = _ACTIVATIONS[dense.activation](y)
    return x + y if dense.residual and not dense.projects_residual else y
