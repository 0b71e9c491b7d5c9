"""q/k norm where there is one, rotation and the transposition of heads as one CUDA kernel over the merged projection.

As separate operations they take a third of a layer's time on an H200 (a norm of 128-wide rows runs at a tenth of the
memory's speed there). Knows nothing of attention; elsewhere the separate operations run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from archport.kernels.launches import cuda, enough, numbers
from archport.layers.rotary import Rotary, SectionedRotary

WARPS = 8
# Elements of the product below which the host binds, and a kernel of one's own takes it longer than MLX's operations.
FEWEST = 1 << 23

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
  const auto* weight = (head < Hq ? q_weight : k_weight) + (Norm ? lane * kMine : 0);
  float first[kMine], second[kMine], squares = 0.0f;
  #pragma unroll
  for (int i = 0; i < kMine; ++i) {
    first[i] = static_cast<float>(from[i]);
    second[i] = static_cast<float>(from[i + kPairs]);
    squares += first[i] * first[i] + second[i] * second[i];
  }
  const float norm = Norm ? rsqrtf(sum_of_warp(squares) / Dh + eps[0]) : 1.0f;

  const int mine = head < Hq ? head : head - Hq, heads = head < Hq ? Hq : Hk;
  const long long at = HeadsFirst ? (static_cast<long long>(row) * heads + mine) * L + place : token * heads + mine;
  auto* into = (head < Hq ? q : k) + at * Dh + lane * kMine;
  const long long turn = (RowsAlike ? place : token) * kPairs + lane * kMine;
  #pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const float cosine = cosines[turn + i], sine = sines[turn + i];
    const float a = first[i] * norm * (Norm ? static_cast<float>(weight[i]) : 1.0f);
    const float b = second[i] * norm * (Norm ? static_cast<float>(weight[i + kPairs]) : 1.0f);
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
        input_names=["x", "q_weight", "k_weight", "cosines", "sines", "eps"],
        output_names=["q", "k"],
        source=SOURCE,
        header=HEADER,
    )


class NormRotate:
    """Normalises and rotates q and k out of one merged product (B, L, W): q's heads, then k's, then what is not read.

    What a context's `rotate` calls: (product, offset) -> (q (B, H, L, Dh), k (B, K, L, Dh)).

    Args:
        q_norm, k_norm: over head_dim; both None for none.
        n_heads, n_kv_heads, head_dim: of the layer.
        rotary: over all of head_dim.
    """

    def __init__(
        self,
        q_norm: nn.RMSNorm | None,
        k_norm: nn.RMSNorm | None,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        rotary: Rotary,
    ) -> None:
        self._q_norm, self._k_norm, self._rotary = q_norm, k_norm, rotary
        self._heads, self._kv_heads, self._head_dim = n_heads, n_kv_heads, head_dim

    @staticmethod
    def of(
        q_norm: Any, k_norm: Any, n_heads: int, n_kv_heads: int, head_dim: int, rotary: Rotary | None
    ) -> NormRotate | None:
        """The block for a layer, None for one that it does not fit: other norms, positions or widths."""
        if rotary is None or type(rotary) not in (Rotary, SectionedRotary):
            return None
        if rotary.dims != head_dim or rotary.interleaved or head_dim % 64 or head_dim > 256:
            return None
        if {type(q_norm), type(k_norm)} not in ({nn.RMSNorm}, {type(None)}):
            return None
        return NormRotate(q_norm, k_norm, n_heads, n_kv_heads, head_dim, rotary)

    def worthwhile(self, product: mx.array) -> bool:
        """Whether the kernel runs here and gains something."""
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        return on_gpu and enough(product.size, FEWEST) and cuda()

    def __call__(self, product: mx.array, offset: int | mx.array) -> tuple[mx.array, mx.array]:
        return self.turned(product, self.angles(offset, product.shape[1], {}))

    def angles(
        self, offset: int | mx.array, tokens: int, known: dict[object, tuple[mx.array, mx.array]]
    ) -> tuple[mx.array, mx.array]:
        """Cosines and sines of tokens from `offset` on: see Rotary.tables."""
        return self._rotary.tables(offset, tokens, known)

    def along(
        self, offset: int | mx.array, tokens: int, known: dict[object, tuple[mx.array, mx.array]]
    ) -> Callable[[mx.array], tuple[mx.array, mx.array]]:
        """The same for tokens from `offset` on, with tables that the layers of a step share: see Rotary.tables."""
        turns = self.angles(offset, tokens, known)
        return lambda product: self.turned(product, turns)

    def at(
        self, positions: mx.array, known: dict[object, tuple[mx.array, mx.array]] | None = None
    ) -> Callable[[mx.array], tuple[mx.array, mx.array]]:
        """The same for tokens that stand at positions (axes, B, L); `known` as in SectionedRotary."""
        turns = cast(SectionedRotary, self._rotary).shared(positions, known)
        return lambda product: self.turned(product, turns)

    def turned(self, product: mx.array, turns: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
        """(q, k) out of the product, by the cosines and sines in `turns`."""
        B, L, _ = product.shape
        jobs = B * L * (self._heads + self._kv_heads)
        # cuDNN takes heads in any order and answers in that of q: one after the other, the output projection reads them
        # as they are. Everything else multiplies matrices, which want the heads first.
        heads_first = product.dtype == mx.float32 or self._head_dim > 128
        shapes = [(B, L, count, self._head_dim) for count in (self._heads, self._kv_heads)]
        if heads_first:
            shapes = [(B, count, L, self._head_dim) for count in (self._heads, self._kv_heads)]
        eps, weights = 0.0, [numbers(1.0)] * 2
        if self._q_norm is not None and self._k_norm is not None:
            eps, weights = self._q_norm.eps, [self._q_norm.weight, self._k_norm.weight]
        answers = _kernel()(
            inputs=[product, *weights, *turns, numbers(eps)],
            template=[
                ("Out", product.dtype),
                ("Hq", self._heads),
                ("Hk", self._kv_heads),
                ("Dh", self._head_dim),
                ("kWarps", WARPS),
                ("Norm", int(self._q_norm is not None)),
                ("RowsAlike", int(turns[0].shape[0] == 1)),
                ("HeadsFirst", int(heads_first)),
            ],
            grid=(-(-jobs // WARPS) * WARPS * 32, 1, 1),
            threadgroup=(WARPS * 32, 1, 1),
            output_shapes=shapes,
            output_dtypes=[product.dtype, product.dtype],
        )
        if not heads_first:
            answers = [each.transpose(0, 2, 1, 3) for each in answers]
        return cast("tuple[mx.array, mx.array]", tuple(answers))
