"""Hidden rows to vectors: pooling modes, Dense layers, dimensions, unit length. How rows were made is not known here.

Packed rows are pooled by a kernel on CUDA, all at once; elsewhere each is pooled as a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import Dense, EmbeddingHead, PoolingMode
from archport.contract.heads import Activation
from archport.device import evaluation
from archport.kernels.launches import cuda

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


THREADS = 128
# One thread per row and column, down the row's tokens.
SOURCE = """
  const int column = blockIdx.x * blockDim.x + threadIdx.x, D = x_shape[2];
  if (column >= D) return;
  const int begin = bounds[2 * blockIdx.y], end = bounds[2 * blockIdx.y + 1], first = starts[blockIdx.y];
  const auto* from = x + static_cast<long long>(first) * D + column;
  float found = Largest ? static_cast<float>(from[static_cast<long long>(begin) * D]) : 0.0f;
  #pragma unroll 4
  for (int i = begin; i < end; ++i) {
    const float value = static_cast<float>(from[static_cast<long long>(i) * D]);
    // What is no number stays, where a maximum would drop it.
    found = Largest ? (value > found || value != value ? value : found) : found + (Weighted ? value * (i + 1) : value);
  }
  pooled[static_cast<long long>(blockIdx.y) * D + column] = found;
"""


def packed_positions(lengths: Sequence[int], tokens: int) -> np.ndarray:
    """Position (tokens,) int32 of each token in its own row; 0 of what lies after the rows, which every model has."""
    found = np.zeros(tokens, dtype=np.int32)
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    found[: starts[-1]] = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1], lengths)
    return found


@cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="archport_pool_rows", input_names=["x", "starts", "bounds"], output_names=["pooled"], source=SOURCE
    )


class PackedPooling:
    """Pools the rows of one packed row, which comes in one step; as Pooling otherwise.

    Args:
        lengths, modes, skip: as Pooling takes them.
    """

    def __init__(self, lengths: Sequence[int], modes: Sequence[PoolingMode], skip: int = 0) -> None:
        self._lengths, self._modes, self._skip = tuple(lengths), tuple(modes), skip
        self._starts = np.cumsum([0, *lengths[:-1]], dtype=np.int32)
        self._hidden: mx.array | None = None

    def add(self, hidden: mx.array, start: int = 0) -> None:
        """Take in hidden states (1, L, D) of all tokens."""
        assert not start, "a packed row is not run in steps"
        self._hidden = hidden

    def evaluate(self, hidden: mx.array) -> None:
        """Nothing: there is one step."""

    def rows(self) -> mx.array:
        """The pooled rows (B, D x modes) float32."""
        hidden = self._hidden
        assert hidden is not None
        if mx.default_device().type == mx.DeviceType.gpu and cuda():
            pooled = Pooling(self._lengths, self._modes, self._skip)
            pooled.take({mode: self._taken(hidden, mode) for mode in dict.fromkeys(self._modes)})
            return pooled.rows()
        found: list[mx.array] = []
        for start, length in zip(self._starts.tolist(), self._lengths, strict=True):
            one = Pooling((length,), self._modes, self._skip)
            one.add(hidden[:, start : start + length])
            found.append(one.rows())
        return mx.concatenate(found)

    def _taken(self, hidden: mx.array, mode: PoolingMode) -> mx.array:
        """What one mode takes from every row, before it is divided."""
        ends = np.array(self._lengths, np.int32)
        begins = np.minimum(self._skip, ends - 1)
        if mode in ("cls", "last"):
            return hidden[0, mx.array(self._starts + (begins if mode == "cls" else ends - 1))].astype(mx.float32)
        D = hidden.shape[2]
        return _kernel()(
            inputs=[hidden, mx.array(self._starts), mx.array(np.stack([begins, ends], axis=1).astype(np.int32))],
            template=[("Largest", int(mode == "max")), ("Weighted", int(mode == "weighted_mean"))],
            grid=(-(-D // THREADS) * THREADS, len(ends), 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[(len(ends), D)],
            output_dtypes=[mx.float32],
        )[0]
