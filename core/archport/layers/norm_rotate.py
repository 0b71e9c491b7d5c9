"""q/k norm, rotation and the transposition of heads as one CUDA kernel over the merged projection.

As separate operations they take a third of a layer's time on an H200 (a norm of 128-wide rows runs at a tenth of the
memory's speed there). Knows nothing of attention; elsewhere the separate operations run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from archport.layers.rotary import Rotary

WARPS = 8
# Tokens below which the host binds and one launch more or less is all that counts.
FEWEST_TOKENS = 512

HEADER = """
// The sum over a warp; every thread gets it.
__device__ __forceinline__ float sum_of_warp(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 16);
  value += __shfl_xor_sync(0xffffffffu, value, 8);
  value += __shfl_xor_sync(0xffffffffu, value, 4);
  value += __shfl_xor_sync(0xffffffffu, value, 2);
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value;
}
"""

# One warp per token and head. A thread holds kMine elements of the first half and the ones they are rotated with.
SOURCE = """
  constexpr int kPairs = Dh / 2, kMine = kPairs / 32, kHeads = Hq + Hk;
  const int L = x_shape[1], W = x_shape[2];
  const long long tokens = static_cast<long long>(x_shape[0]) * L;
  const int lane = threadIdx.x % 32;
  const long long job = static_cast<long long>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const bool real = job < tokens * kHeads;
  const long long token = real ? job / kHeads : 0;
  const int head = real ? job % kHeads : 0, row = token / L, place = token % L;

  const auto* from = x + token * W + head * Dh + lane * kMine;
  const auto* weight = (head < Hq ? q_weight : k_weight) + lane * kMine;
  float first[kMine], second[kMine], squares = 0.0f;
  #pragma unroll
  for (int i = 0; i < kMine; ++i) {
    first[i] = static_cast<float>(from[i]);
    second[i] = static_cast<float>(from[i + kPairs]);
    squares += first[i] * first[i] + second[i] * second[i];
  }
  const float norm = rsqrtf(sum_of_warp(squares) / Dh + settings[0]) * settings[1];
  const float position = (starts[row] + place) * settings[2];

  auto* into = head < Hq
      ? q + ((static_cast<long long>(row) * Hq + head) * L + place) * Dh + lane * kMine
      : k + ((static_cast<long long>(row) * Hk + head - Hq) * L + place) * Dh + lane * kMine;
  #pragma unroll
  for (int i = 0; i < kMine; ++i) {
    float sine, cosine;
    sincosf(position / periods[lane * kMine + i], &sine, &cosine);
    const float a = first[i] * norm * static_cast<float>(weight[i]);
    const float b = second[i] * norm * static_cast<float>(weight[i + kPairs]);
    if (real) {
      into[i] = static_cast<Out>(a * cosine - b * sine);
      into[i + kPairs] = static_cast<Out>(b * cosine + a * sine);
    }
  }
"""


@cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="archport_norm_rotate",
        input_names=["x", "q_weight", "k_weight", "periods", "starts", "settings"],
        output_names=["q", "k"],
        source=SOURCE,
        header=HEADER,
    )


@cache
def _cuda() -> bool:
    return mx.cuda.is_available()


@lru_cache(maxsize=256)
def _numbers(dtype: mx.Dtype, *values: float) -> mx.array:
    """A few numbers on the device, made once: every layer asks for the same."""
    made = mx.array(values, dtype)
    mx.eval(made)
    return made


Turn = Callable[[mx.array, "int | mx.array"], "tuple[mx.array, mx.array]"]


class NormRotate:
    """Normalises and rotates q and k out of one merged product.

    Args:
        n_heads, n_kv_heads, head_dim: of the layer.
        rotary: over all of head_dim.
    """

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, rotary: Rotary) -> None:
        self._heads, self._kv_heads, self._head_dim, self._rotary = n_heads, n_kv_heads, head_dim, rotary

    @staticmethod
    def of(n_heads: int, n_kv_heads: int, head_dim: int, norms: tuple[Any, Any], rotary: Any) -> NormRotate | None:
        """The block for a layer, None for one that it does not fit: other norms, positions or widths."""
        plain = type(rotary) is Rotary and rotary.dims == head_dim and not rotary.interleaved
        if not plain or head_dim % 64 or head_dim > 256 or any(type(norm) is not nn.RMSNorm for norm in norms):
            return None
        return NormRotate(n_heads, n_kv_heads, head_dim, rotary)

    def worthwhile(self, x: mx.array) -> bool:
        """Whether the kernel runs here and gains something for a product x (B, L, W)."""
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        return on_gpu and x.shape[0] * x.shape[1] >= FEWEST_TOKENS and _cuda()

    def turn(self, q_norm: nn.RMSNorm, k_norm: nn.RMSNorm) -> Turn:
        """A function (merged product (B, L, W), offset) -> (q (B, H, L, Dh), k (B, K, L, Dh)).

        The product holds q's heads, then k's; what is behind them is not read.
        """

        def run(x: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array]:
            B, L, _ = x.shape
            starts = _numbers(mx.int32, *[offset] * B) if isinstance(offset, int) else offset.astype(mx.int32)
            rotary = self._rotary
            jobs = B * L * (self._heads + self._kv_heads)
            q, k = _kernel()(
                inputs=[
                    x,
                    q_norm.weight,
                    k_norm.weight,
                    rotary.periods,
                    starts,
                    _numbers(mx.float32, q_norm.eps, rotary.gain, rotary.scale),
                ],
                template=[
                    ("Out", x.dtype),
                    ("Hq", self._heads),
                    ("Hk", self._kv_heads),
                    ("Dh", self._head_dim),
                    ("kWarps", WARPS),
                ],
                grid=(-(-jobs // WARPS) * WARPS * 32, 1, 1),
                threadgroup=(WARPS * 32, 1, 1),
                output_shapes=[(B, self._heads, L, self._head_dim), (B, self._kv_heads, L, self._head_dim)],
                output_dtypes=[x.dtype, x.dtype],
            )
            return q, k

        return run
