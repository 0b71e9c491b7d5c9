"""Rows that lie behind one another in one: where each token stands in its own, and pooling each by itself.

On CUDA a kernel pools all rows at once; elsewhere each is pooled as a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from archport.contract import PoolingMode
from archport.running.pool import Pooling

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
    """Position (tokens,) int32 of each token in its own row; 0 of what lies behind the rows, which every model has."""
    found = np.zeros(tokens, dtype=np.int32)
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    found[: starts[-1]] = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1], lengths)
    return found


@cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="archport_pool_rows", input_names=["x", "starts", "bounds"], output_names=["pooled"], source=SOURCE
    )


@cache
def _cuda() -> bool:
    return mx.cuda.is_available()


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
        if mx.default_device().type == mx.DeviceType.gpu and _cuda():
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
