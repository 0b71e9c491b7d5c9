"""A causal depthwise convolution over a few tokens, exact across steps, documents and padding.

Computed as one product per tap: every tap is masked and carried on its own, which a convolution call can't do. Knows
nothing of what the channels mean.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from archport.contract import Segments
from archport.device.tracing import traced
from archport.layers.activations import silu


class ShortConv(nn.Module):
    """`silu(sum of weight[:, K - 1 - d] * x[t - d])` per channel; parameter `weight` (C, K, 1), oldest tap first."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, taps, 1))

    @property
    def taps(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: mx.array, tail: mx.array | None, segments: Segments) -> tuple[mx.array, mx.array]:
        """Convolve one step.

        Args:
            x: (B, L, C).
            tail: (B, K - 1, C), the real inputs before this step; None at the start of a row.
            segments: documents and padding of the step.

        Returns:
            (B, L, C) in x's dtype, and the tail of the next step in float32.
        """
        B, L, C = x.shape
        back = self.taps - 1
        before = mx.zeros((B, back, C), dtype=x.dtype) if tail is None else tail.astype(x.dtype)
        rows = mx.concatenate([before, x], axis=1)
        weights = self.weight[..., 0].T
        taps = [rows[:, at : at + L] for at in range(back + 1)]
        if segments.age is not None:
            taps = [
                tap if at == back else mx.where((segments.age >= back - at)[..., None], tap, 0)
                for at, tap in enumerate(taps)
            ]
        fused = mx.default_device().type != mx.DeviceType.cpu and not traced(x)
        mixed = _compiled(weights, *taps) if fused else silu(_weighted(weights, *taps)).astype(x.dtype)
        return mixed, _last(rows, back, segments.real)


def _weighted(weights: mx.array, *taps: mx.array) -> mx.array:
    """The taps' weighted sum in float32."""
    first, *others = (weights[at].astype(mx.float32) * tap.astype(mx.float32) for at, tap in enumerate(taps))
    return sum(others, start=first)


@mx.compile
def _compiled(weights: mx.array, *taps: mx.array) -> mx.array:
    """One kernel instead of a dozen. On a CPU compiling needs a compiler on the machine, and gains less."""
    return nn.silu(_weighted(weights, *taps)).astype(taps[0].dtype)


def _last(rows: mx.array, back: int, real: mx.array | None) -> mx.array:
    """The last `back` real inputs of each row, as an array that holds nothing else alive."""
    if real is None:
        return mx.contiguous(rows[:, rows.shape[1] - back :]).astype(mx.float32)
    at = real.sum(axis=1)[:, None] + mx.arange(back)[None]
    return mx.take_along_axis(rows, at[..., None], axis=1).astype(mx.float32)
