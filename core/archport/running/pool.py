"""Hidden rows to vectors: pooling modes, Dense layers, dimensions, unit length. Knows nothing of how rows were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import Dense, EmbeddingHead, PoolingMode
from archport.contract.heads import Activation
from archport.device import evaluation

# torch's modules of these names with their default arguments.
_ACTIVATIONS: dict[Activation, Callable[[mx.array], mx.array]] = {
    "identity": lambda x: x,
    "tanh": mx.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "sigmoid": mx.sigmoid,
    "silu": nn.silu,
    "relu6": nn.relu6,
    "leakyrelu": nn.leaky_relu,
    "elu": nn.elu,
    "selu": nn.selu,
    "celu": nn.celu,
    "mish": nn.mish,
    # Linear from 20 on, as torch has it; the difference is beyond float32.
    "softplus": nn.softplus,
    "softsign": nn.softsign,
    "hardtanh": lambda x: mx.clip(x, -1.0, 1.0),
    "hardsigmoid": lambda x: mx.clip(x / 6 + 0.5, 0.0, 1.0),
    "hardswish": nn.hardswish,
    "logsigmoid": nn.log_sigmoid,
    "tanhshrink": lambda x: x - mx.tanh(x),
    "softshrink": nn.softshrink,
    "hardshrink": lambda x: mx.where(mx.abs(x) > 0.5, x, 0.0),
    "softmax": lambda x: mx.softmax(x, axis=-1),
    "logsoftmax": nn.log_softmax,
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
        # Lengths are known here, and each operation spared on the device is time where the host binds.
        self._ends = np.array(lengths, np.int32)
        self._starts = np.minimum(skip, self._ends - 1)
        self._so_far: dict[PoolingMode, mx.array] = {}

    def add(self, hidden: mx.array, start: int = 0) -> None:
        """Take in hidden states (B, L, D) of the tokens from `start` on."""
        for mode in dict.fromkeys(self._modes):
            if mode in ("cls", "last"):
                self._pick(mode, hidden, start)
            else:
                self._gather(mode, hidden, start)

    def _pick(self, mode: PoolingMode, hidden: mx.array, start: int) -> None:
        """One token of each row, where it is among these."""
        index = (self._starts if mode == "cls" else self._ends - 1) - start
        here = (index >= 0) & (index < hidden.shape[1])
        before = self._so_far.get(mode)
        if not here.any():
            if before is None:
                self._so_far[mode] = mx.zeros((hidden.shape[0], hidden.shape[2]))
            return
        index = np.where(here, index, 0)
        alike = (index == index[0]).all()
        picked = hidden[:, int(index[0])] if alike else hidden[mx.arange(len(index)), mx.array(index)]
        picked = picked.astype(mx.float32)
        if not here.all():
            picked = mx.where(_bools(here)[:, None], picked, 0.0 if before is None else before)
        self._so_far[mode] = picked

    def _gather(self, mode: PoolingMode, hidden: mx.array, start: int) -> None:
        """The largest or the sum of each row's tokens, real ones only."""
        position = start + np.arange(hidden.shape[1], dtype=np.int32)
        real = (position >= self._starts[:, None]) & (position < self._ends[:, None])
        x, before = hidden.astype(mx.float32), self._so_far.get(mode)
        if not real.all():
            x = mx.where(_bools(real)[..., None], x, -mx.inf if mode == "max" else 0.0)
        if mode == "max":
            x = x.max(axis=1)
            self._so_far[mode] = x if before is None else mx.maximum(before, x)
            return
        if mode == "weighted_mean":
            # A prompt that is left out still counts as positions passed.
            x = x * mx.array((position + 1).astype(np.float32))[:, None]
        x = x.sum(axis=1)
        self._so_far[mode] = x if before is None else before + x

    def take(self, found: dict[PoolingMode, mx.array]) -> None:
        """Take in what each mode took from all tokens, (B, D) float32, somewhere else."""
        self._so_far = found

    def evaluate(self, hidden: mx.array) -> None:
        """Finish what was added, and `hidden` itself where nothing of it is pooled, so that both can be released."""
        evaluation.finish(*self._so_far.values(), hidden)

    def rows(self) -> mx.array:
        """The pooled rows (B, D x modes)."""
        first, last = self._starts.astype(np.float32), self._ends.astype(np.float32)
        divisor = {
            "mean": last - first,
            "mean_sqrt_len": np.sqrt(last - first),
            # The sum of first + 1 .. last.
            "weighted_mean": (last * (last + 1) - first * (first + 1)) / 2,
        }
        pooled = [
            self._so_far[mode] / mx.array(divisor[mode])[:, None] if mode in divisor else self._so_far[mode]
            for mode in self._modes
        ]
        return pooled[0] if len(pooled) == 1 else mx.concatenate(pooled, axis=-1)


def _bools(found: np.ndarray) -> mx.array:
    # MLX's stubs know no numpy bools.
    return mx.array(cast(Any, found))


def activated(x: mx.array, name: Activation) -> mx.array:
    """An activation of rows (..., D); those over several numbers are over the last axis."""
    return _ACTIVATIONS[name](x)


def _dense(x: mx.array, dense: Dense, weight: mx.array, bias: mx.array | None) -> mx.array:
    x = unit_length(x) if dense.unit_input else x
    y = x @ weight.astype(mx.float32).T
    # Below the matrix lies the one that projects x, unless it is part of it.
    stacked = weight.shape[0] != dense.out_features
    if stacked:
        y, x = y[:, : dense.out_features], y[:, dense.out_features :]
    if bias is not None:
        y = y + bias.astype(mx.float32)
    y = activated(y, dense.activation)
    return x + y if stacked or (dense.residual and not dense.projects_residual) else y
