"""A causal depthwise convolution over a few tokens, exact across steps, documents and padding.

Computed as one product per tap: every tap is masked and carried on its own, which a convolution call can't do. Knows
nothing of what the channels mean.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from archport.contract import Documents
from archport.contract.deprecation import ARGUMENT_SEGMENTS, renamed_argument
from archport.device import workers
from archport.layers.activations import Activation, host_is_faster, silu
from archport.layers.compiled import fused

# Numbers worked on at a time: they stay in a core's second-level cache.
_BLOCK = 1 << 16


class ShortConv(nn.Module):
    """`act(sum of weight[:, K - 1 - d] * x[t - d])` per channel; parameter `weight` (C, K, 1), oldest tap first."""

    def __init__(self, channels: int, taps: int, act: Activation = silu) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, taps, 1))
        # One pass with silu, which all published models have.
        self._act = None if act is silu else act

    @property
    def taps(self) -> int:
        return self.weight.shape[1]

    @renamed_argument("segments", "documents", ARGUMENT_SEGMENTS)
    def __call__(self, x: mx.array, tail: mx.array | None, documents: Documents) -> tuple[mx.array, mx.array]:
        """Convolve one step.

        Args:
            x: (B, L, C).
            tail: (B, K - 1, C), the real inputs before this step; None at the start of a row.
            documents: documents and padding of the step.

        Returns:
            (B, L, C) in x's dtype, and the tail of the next step in float32.
        """
        B, L, C = x.shape
        back = self.taps - 1
        before = mx.zeros((B, back, C), dtype=x.dtype) if tail is None else tail.astype(x.dtype)
        weights = self.weight[..., 0].T
        if documents.age is None and host_is_faster(x):
            summed = _on_host(x, before, weights, gated=self._act is None)
            last = _last_on_host(x, before, documents.real)
            return (summed if self._act is None else self._act(summed)), last
        rows = _joined(before, x)
        taps = [rows[:, at : at + L] for at in range(back + 1)]
        if documents.age is not None:
            taps = [
                tap if at == back else mx.where((documents.age >= back - at)[..., None], tap, 0)
                for at, tap in enumerate(taps)
            ]
        mixed = _mixed(weights, *taps) if self._act is None else self._act(_summed(weights, *taps)).astype(x.dtype)
        return mixed, _last(rows, back, documents.real)


@fused
def _mixed(weights: mx.array, *taps: mx.array) -> mx.array:
    """silu of the taps' weighted sum, added in float32."""
    return nn.silu(_summed(weights, *taps)).astype(taps[0].dtype)


@fused
def _summed(weights: mx.array, *taps: mx.array) -> mx.array:
    """The taps' weighted sum in float32."""
    first, *others = (weights[at].astype(mx.float32) * tap.astype(mx.float32) for at, tap in enumerate(taps))
    return sum(others, start=first)


def _joined(before: mx.array, x: mx.array) -> mx.array:
    return mx.concatenate([before, x], axis=1)


def _on_host(x: mx.array, before: mx.array, weights: mx.array, *, gated: bool) -> mx.array:
    """The taps' weighted sum in float32, `gated` by silu, a few rows at a time, so that only the answer is made."""
    B, L, C = x.shape
    mx.eval(x, before, weights)
    source, earlier, taps = np.asarray(x), np.asarray(before), np.asarray(weights)
    # Zeros that nobody else holds: the view writes into the array's own memory, so nothing is copied into MLX.
    made = mx.zeros(x.shape, dtype=mx.float32)
    mx.eval(made)
    target, step, back = np.asarray(made), max(1, _BLOCK // C), len(taps) - 1

    def work(first: int) -> None:
        row, start = divmod(first, L)
        stop = min(start + step, L)
        out = target[row, start:stop]
        np.multiply(source[row, start:stop], taps[back], out=out)
        for d in range(1, back + 1):
            inside = max(start, d)
            if inside < stop:
                out[inside - start :] += source[row, inside - d : stop - d] * taps[back - d]
            if start < inside:
                last = min(inside, stop)
                out[: last - start] += earlier[row, back + start - d : back + last - d] * taps[back - d]
        if not gated:
            return
        scale = np.negative(out)
        with np.errstate(over="ignore"):  # x / infinity is the 0 it should be
            np.exp(scale, out=scale)
        scale += np.float32(1)
        out /= scale

    jobs = [row * L + start for row in range(B) for start in range(0, L, step)]
    workers.spread(jobs, lambda: work, workers.cores())
    return made


def _last_on_host(x: mx.array, before: mx.array, real: mx.array | None) -> mx.array:
    """The last real inputs of each row, computed now: an unevaluated slice would keep all inputs alive."""
    B, L, C = x.shape
    source, earlier, back = np.asarray(x), np.asarray(before), before.shape[1]
    ends = [L] * B if real is None else np.asarray(real).sum(axis=1).tolist()
    out = np.empty((B, back, C), np.float32)
    for row, end in enumerate(ends):
        own = min(end, back)
        out[row, : back - own] = earlier[row, own:]
        out[row, back - own :] = source[row, end - own : end]
    return mx.array(out)


def _last(rows: mx.array, back: int, real: mx.array | None) -> mx.array:
    """The last `back` real inputs of each row, as an array that holds nothing else alive."""
    if real is None:
        return mx.contiguous(rows[:, rows.shape[1] - back :]).astype(mx.float32)
    at = real.sum(axis=1)[:, None] + mx.arange(back)[None]
    return mx.take_along_axis(rows, at[..., None], axis=1).astype(mx.float32)
