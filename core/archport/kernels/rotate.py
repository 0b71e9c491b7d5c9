"""Turning the halves of each head by angles, in float32: the inner step of rotary embeddings over several axes.

On a GPU the passes over the arrays are compiled into one, on CUDA heads are turned in place of a merged product. Knows
nothing of where angles come from.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from archport.kernels.launches import cuda


def turn(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of x's last axis.

    Args:
        x: (..., Dh).
        cos, sin: float32, broadcast against (..., Dh / 2).

    Returns:
        The same shape and type as x.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        return _turn(x, cos, sin)
    return _compiled()(x, cos, sin)


def _turn(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    first, second = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@cache
def _compiled() -> Any:
    return mx.compile(_turn)


# One warp per token and head; heads after the first Turned are copied.
WARPS = 8
SOURCE = """
  constexpr int kPairs = Dh / 2;
  const int W = x_shape[2], heads = W / Dh, lane = threadIdx.x % 32;
  const long long tokens = static_cast<long long>(x_shape[0]) * x_shape[1];
  const long long job = static_cast<long long>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (job >= tokens * heads) return;
  const long long token = job / heads;
  const int head = job % heads;
  const auto* from = x + token * W + head * Dh;
  auto* into = y + token * W + head * Dh;
  for (int i = lane; i < kPairs; i += 32) {
    const float a = static_cast<float>(from[i]), b = static_cast<float>(from[i + kPairs]);
    const bool turned = head < Turned;
    const float c = turned ? cosines[token * kPairs + i] : 1.0f, s = turned ? sines[token * kPairs + i] : 0.0f;
    into[i] = static_cast<Out>(a * c - b * s);
    into[i + kPairs] = static_cast<Out>(b * c + a * s);
  }
"""


@cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="archport_turn_heads", input_names=["x", "cosines", "sines"], output_names=["y"], source=SOURCE
    )


def turn_heads(product: mx.array, cos: mx.array, sin: mx.array, *, turned: int, head_dim: int) -> mx.array:
    """The first `turned` heads of a merged product (B, L, W) rotated, the others as they are.

    Args:
        cos, sin: (B, L, head_dim / 2) float32.
    """
    B, L, W = product.shape
    if mx.default_device().type == mx.DeviceType.gpu and cuda():
        jobs = B * L * (W // head_dim)
        return _kernel()(
            inputs=[product, cos, sin],
            template=[("Out", product.dtype), ("Dh", head_dim), ("Turned", turned), ("kWarps", WARPS)],
            grid=(-(-jobs // WARPS) * WARPS * 32, 1, 1),
            threadgroup=(WARPS * 32, 1, 1),
            output_shapes=[(B, L, W)],
            output_dtypes=[product.dtype],
        )[0]
    width = turned * head_dim
    heads = turn(product[..., :width].reshape(B, L, turned, head_dim), cos[:, :, None], sin[:, :, None])
    return mx.concatenate([heads.reshape(B, L, width), product[..., width:]], axis=-1)
