"""The gated delta rule as one kernel that walks the tokens: on CUDA archport's own, on Metal mlx-lm's.

Shapes as in `gated_delta`; q, k and v in any one float type, gates and state in float32. Knows nothing of when a kernel
is worth it: plans decide that.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import mlx.core as mx

# A block owns COLUMNS columns of one value head's state; LANES threads share a column, each with key_dim / LANES rows.
LANES, COLUMNS = 8, 16

HEADER = """
// The sum over the eight threads that share a column; every thread gets it.
__device__ __forceinline__ float sum_of_lanes(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 4);
  value += __shfl_xor_sync(0xffffffffu, value, 2);
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value;
}
"""

# Both products with the old state are summed at once, so a token waits for one reduction:
# u = beta (v - g S'k), y = g S'q + (k.q) u, S <- g S + k u'. The next tile is read while this one is worked on.
SOURCE = """
  constexpr int kLanes = 8, kColumns = 16, kTile = 16, kThreads = kLanes * kColumns;
  constexpr int kRows = Dk / kLanes, kQuads = kRows / 4, kLoads = kTile * Dk / kThreads;
  constexpr int kValueLoads = kTile * kColumns / kThreads;

  __shared__ __align__(16) float keys[kTile][Dk];
  __shared__ __align__(16) float queries[kTile][Dk];
  __shared__ float values[kTile][kColumns];
  __shared__ float decays[kTile], betas[kTile], dots[kTile];

  const int T = q_shape[1];
  const int thread = threadIdx.x, lane = thread % kLanes, mine = thread / kLanes;
  const int row = blockIdx.y / Hv, head = blockIdx.y % Hv, key_head = head / (Hv / Hk);
  const int first = blockIdx.x * kColumns;
  const size_t tokens = static_cast<size_t>(row) * T;

  float state[kRows];
  const size_t corner = (static_cast<size_t>(row) * Hv + head) * Dk * Dv + first + mine;
  #pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int at = ((i / 4) * kLanes + lane) * 4 + i % 4;
    state[i] = state_in[corner + static_cast<size_t>(at) * Dv];
  }

  float next_keys[kLoads], next_queries[kLoads], next_values[kValueLoads], next_decay = 0.0f, next_beta = 0.0f;
  auto read = [&](int start) {
    #pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = i * kThreads + thread, token = start + index / Dk;
      const bool real = token < T;
      const size_t at = ((tokens + token) * Hk + key_head) * Dk + index % Dk;
      next_keys[i] = real ? static_cast<float>(k[at]) : 0.0f;
      next_queries[i] = real ? static_cast<float>(q[at]) : 0.0f;
    }
    #pragma unroll
    for (int i = 0; i < kValueLoads; ++i) {
      const int index = i * kThreads + thread, token = start + index / kColumns;
      const size_t at = ((tokens + token) * Hv + head) * Dv + first + index % kColumns;
      next_values[i] = token < T ? static_cast<float>(v[at]) : 0.0f;
    }
    if (thread < kTile && start + thread < T) {
      const size_t at = (tokens + start + thread) * Hv + head;
      // In double, because fast-math's expf is off by what a thousand slow decays add up to.
      next_decay = static_cast<float>(exp(static_cast<double>(log_decay[at])));
      next_beta = beta[at];
    }
  };

  read(0);
  for (int start = 0; start < T; start += kTile) {
    const int count = min(kTile, T - start);
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = i * kThreads + thread;
      keys[index / Dk][index % Dk] = next_keys[i];
      queries[index / Dk][index % Dk] = next_queries[i];
    }
    #pragma unroll
    for (int i = 0; i < kValueLoads; ++i) {
      const int index = i * kThreads + thread;
      values[index / kColumns][index % kColumns] = next_values[i];
    }
    if (thread < kTile) {
      decays[thread] = next_decay;
      betas[thread] = next_beta;
    }
    __syncthreads();
    {
      // kColumns groups of lanes, kTile tokens: one dot product each.
      float dot = 0.0f;
      #pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        const float4 a = *reinterpret_cast<const float4*>(&keys[mine][(m * kLanes + lane) * 4]);
        const float4 c = *reinterpret_cast<const float4*>(&queries[mine][(m * kLanes + lane) * 4]);
        dot += a.x * c.x + a.y * c.y + a.z * c.z + a.w * c.w;
      }
      dot = sum_of_lanes(dot);
      if (lane == 0) {
        dots[mine] = dot;
      }
    }
    __syncthreads();
    if (start + kTile < T) {
      read(start + kTile);
    }
    for (int t = 0; t < count; ++t) {
      float4 key[kQuads];
      float with_key[2] = {0.0f, 0.0f}, with_query[2] = {0.0f, 0.0f};
      #pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        key[m] = *reinterpret_cast<const float4*>(&keys[t][(m * kLanes + lane) * 4]);
        const float4 c = *reinterpret_cast<const float4*>(&queries[t][(m * kLanes + lane) * 4]);
        with_key[0] += state[4 * m] * key[m].x + state[4 * m + 1] * key[m].y;
        with_key[1] += state[4 * m + 2] * key[m].z + state[4 * m + 3] * key[m].w;
        with_query[0] += state[4 * m] * c.x + state[4 * m + 1] * c.y;
        with_query[1] += state[4 * m + 2] * c.z + state[4 * m + 3] * c.w;
      }
      const float read_key = sum_of_lanes(with_key[0] + with_key[1]);
      const float read_query = sum_of_lanes(with_query[0] + with_query[1]);
      const float g = decays[t];
      const float update = betas[t] * (values[t][mine] - g * read_key);
      if (lane == 0) {
        const size_t at = ((tokens + start + t) * Hv + head) * Dv + first + mine;
        y[at] = static_cast<Out>(g * read_query + dots[t] * update);
      }
      #pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        state[4 * m] = g * state[4 * m] + key[m].x * update;
        state[4 * m + 1] = g * state[4 * m + 1] + key[m].y * update;
        state[4 * m + 2] = g * state[4 * m + 2] + key[m].z * update;
        state[4 * m + 3] = g * state[4 * m + 3] + key[m].w * update;
      }
    }
  }

  #pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int at = ((i / 4) * kLanes + lane) * 4 + i % 4;
    state_out[corner + static_cast<size_t>(at) * Dv] = state[i];
  }
"""


@cache
def _cuda_kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="archport_gated_delta",
        input_names=["q", "k", "v", "log_decay", "beta", "state_in"],
        output_names=["y", "state_out"],
        source=SOURCE,
        header=HEADER,
    )


def cuda(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """One launch over all tokens; key_dim a multiple of 32 up to 256, value_dim a multiple of 16.

    Returns:
        y (B, T, Hv, Dv) in v's type, and the state after the last token.
    """
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    answers = _cuda_kernel()(
        inputs=[q, k, v, log_decay, beta, state],
        template=[("Out", v.dtype), ("Hk", Hk), ("Hv", Hv), ("Dk", Dk), ("Dv", Dv)],
        grid=(Dv // COLUMNS * LANES * COLUMNS, B * Hv, 1),
        threadgroup=(LANES * COLUMNS, 1, 1),
        output_shapes=[(B, T, Hv, Dv), tuple(state.shape)],
        output_dtypes=[v.dtype, mx.float32],
    )
    return cast("tuple[mx.array, mx.array]", tuple(answers))


def metal(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """mlx-lm's kernel, which keeps states transposed; key_dim a multiple of 32, value_dim of 8. Not run by any test.

    Returns:
        y (B, T, Hv, Dv) in v's type, and the state after the last token.
    """
    from archport.device.mlx_lm import reused

    # Gates as g in float32: g = 0 is an exact reset there, too. q and v are read as one type.
    run = reused("models.gated_delta.gated_delta_kernel")
    y, after = run(q, k, v, mx.exp(log_decay), beta, mx.contiguous(state.swapaxes(-1, -2)))
    return y, after.swapaxes(-1, -2)
