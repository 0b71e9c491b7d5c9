"""The layer norm of a sum as one CUDA kernel: a block's input and output are read once, and no sum is written.

For 32,768 rows of 768 on an H200 it takes 49 us, and the two operations 129. Elsewhere, and for other norms, those run.
Knows nothing of the blocks around it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from archport.kernels.launches import cuda, enough, numbers

WARPS = 4
# Rows of one warp, which keeps weight and bias in registers for them.
ROWS = 4
# Elements below which the host binds, and widths above which a row does not fit the registers of a warp.
FEWEST, WIDEST = 1 << 20, 2048

HEADER = """
template <typename T, int Count>
struct __align__(16) Piece { T at[Count]; };

__device__ __forceinline__ float sum_of_warp(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 16);
  value += __shfl_xor_sync(0xffffffffu, value, 8);
  value += __shfl_xor_sync(0xffffffffu, value, 4);
  value += __shfl_xor_sync(0xffffffffu, value, 2);
  return value + __shfl_xor_sync(0xffffffffu, value, 1);
}
"""

# One warp per row; a thread takes every 32nd piece of sixteen bytes. The sum is rounded as if it were written.
SOURCE = """
  constexpr int kEach = 16 / sizeof(Out), kPieces = D / kEach, kMine = (kPieces + 31) / 32;
  using Sixteen = Piece<Out, kEach>;
  const int lane = threadIdx.x % 32;
  const long long rows = static_cast<long long>(x_shape[0]) * x_shape[1];
  const long long first = (static_cast<long long>(blockIdx.x) * kWarps + threadIdx.x / 32) * kRows;
  Sixteen scales[kMine], shifts[kMine];
  #pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int piece = i * 32 + lane;
    if (kPieces % 32 == 0 || piece < kPieces) {
      scales[i] = reinterpret_cast<const Sixteen*>(weight)[piece];
      if (Shift) shifts[i] = reinterpret_cast<const Sixteen*>(bias)[piece];
    }
  }
  #pragma unroll
  for (int turn = 0; turn < kRows; ++turn) {
    const long long row = first + turn;
    if (row >= rows) break;
    const Sixteen* left = reinterpret_cast<const Sixteen*>(x + row * D);
    const Sixteen* right = reinterpret_cast<const Sixteen*>(update + row * D);
    float value[kMine][kEach], sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int piece = i * 32 + lane;
      const bool real = kPieces % 32 == 0 || piece < kPieces;
      const Sixteen a = left[real ? piece : 0], b = right[real ? piece : 0];
      #pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const Out together = static_cast<Out>(static_cast<float>(a.at[j]) + static_cast<float>(b.at[j]));
        value[i][j] = real ? static_cast<float>(together) : 0.0f;
        sum += value[i][j];
      }
    }
    const float mean = sum_of_warp(sum) / D;
    float squares = 0.0f;
    #pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const bool real = kPieces % 32 == 0 || i * 32 + lane < kPieces;
      #pragma unroll
      for (int j = 0; j < kEach; ++j) {
        value[i][j] -= mean;
        squares += real ? value[i][j] * value[i][j] : 0.0f;
      }
    }
    const float norm = rsqrtf(sum_of_warp(squares) / D + eps[0]);
    Sixteen* into = reinterpret_cast<Sixteen*>(y + row * D);
    #pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int piece = i * 32 + lane;
      if (kPieces % 32 == 0 || piece < kPieces) {
        Sixteen made;
        #pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const float shift = Shift ? static_cast<float>(shifts[i].at[j]) : 0.0f;
          made.at[j] = static_cast<Out>(value[i][j] * norm * static_cast<float>(scales[i].at[j]) + shift);
        }
        into[piece] = made;
      }
    }
  }
"""


@cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="archport_sum_norm",
        input_names=["x", "update", "weight", "bias", "eps"],
        output_names=["y"],
        source=SOURCE,
        header=HEADER,
    )


def sum_norm(norm: nn.Module, x: mx.array, update: mx.array) -> mx.array:
    """`norm(x + update)` for x, update (B, L, D)."""
    if not worthwhile(norm, x, update):
        return cast(Any, norm)(x + update)
    made, D = cast(Any, norm), x.shape[-1]
    weight = made.weight
    per_block = WARPS * ROWS
    (y,) = _kernel()(
        inputs=[x, update, weight, made.bias if "bias" in made else weight, numbers(made.eps)],
        template=[
            ("Out", x.dtype), ("D", D), ("kWarps", WARPS), ("kRows", ROWS), ("Shift", int("bias" in made)),
        ],
        grid=(-(-x.shape[0] * x.shape[1] // per_block) * WARPS * 32, 1, 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )  # fmt: skip
    return y


def worthwhile(norm: nn.Module, x: mx.array, update: mx.array) -> bool:
    """Whether the kernel runs here and gains something."""
    if mx.default_device().type == mx.DeviceType.cpu or type(norm) is not nn.LayerNorm or "weight" not in norm:
        return False
    D = x.shape[-1]
    if not enough(x.size, FEWEST) or D > WIDEST or D * x.itemsize % 16 or x.ndim != 3 or x.shape != update.shape:
        return False
    parts = [update, norm["weight"], *([norm["bias"]] if "bias" in norm else [])]
    return x.dtype != mx.float32 and all(part.dtype == x.dtype for part in parts) and cuda()
