"""The gated delta rule as one kernel that walks the tokens: on CUDA archport's own, on Metal mlx-lm's.

Shapes as in `gated_delta`; q, k and v in any one float type, gates and state in float32. Knows nothing of when a kernel
is worth it: plans decide that.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import mlx.core as mx

# A block of THREADS owns 16 or 32 columns of one value head's state; LANES threads share one column or two, each with
# key_dim / LANES rows. Two columns a thread halve what is read of keys, where blocks are left for most multiprocessors.
LANES, THREADS, BLOCKS = 8, 128, 96

HEADER = """
// The sum over the eight threads that share columns; every thread gets it.
__device__ __forceinline__ float sum_of_lanes(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 4);
  value += __shfl_xor_sync(0xffffffffu, value, 2);
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value;
}
// Halves what a thread holds: sums of the first half go to lanes whose `bit` is 0, of the second to the others.
template <int Half, int Bit>
__device__ __forceinline__ void share_sums(float* sums, int lane) {
  const bool upper = lane & Bit;
  #pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float given = upper ? sums[i] : sums[i + Half];
    sums[i] = (upper ? sums[i + Half] : sums[i]) + __shfl_xor_sync(0xffffffffu, given, Bit);
  }
}
template <typename T>
struct __align__(4 * sizeof(T)) Four {
  T at[4];
};
template <typename T>
__device__ __forceinline__ Four<T> read_four(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}
template <typename T>
__device__ __forceinline__ void write_four(float* to, Four<T> four, bool real) {
  const float4 wide = {static_cast<float>(four.at[0]), static_cast<float>(four.at[1]), static_cast<float>(four.at[2]),
                       static_cast<float>(four.at[3])};
  const float4 none = {0.0f, 0.0f, 0.0f, 0.0f};
  *reinterpret_cast<float4*>(to) = real ? wide : none;
}
__device__ __forceinline__ float add_products(float4 a, float4 b, float sum) {
  return a.x * b.x + (a.y * b.y + (a.z * b.z + (a.w * b.w + sum)));
}
// A thread's share of an inner product of two rows of `Quads` floats of four a lane.
template <int Quads>
__device__ __forceinline__ float inner_product(const float* a, const float* b, int lane) {
  float sum = 0.0f;
  #pragma unroll
  for (int m = 0; m < Quads; ++m) {
    const int at = (m * 8 + lane) * 4;
    sum = add_products(*reinterpret_cast<const float4*>(a + at), *reinterpret_cast<const float4*>(b + at), sum);
  }
  return sum_of_lanes(sum);
}
"""

# Four tokens at a time: all products with the state before them are summed at once, so they wait for one reduction.
# With G(t) the decays up to t and D(j, t) those after j:
#   u(t) = beta(t) (v(t) - G(t) S'k(t) - sum over j < t of D(j, t) k(j).k(t) u(j)),
#   y(t) = G(t) S'q(t) + sum over j <= t of D(j, t) k(j).q(t) u(j),    S <- G(4) S + sum of D(j, 4) k(j) u(j)'.
# Decays are multiplied, never divided, so that one of 0 is exact. The next tile is read while this one is worked on.
SOURCE = """
  constexpr int kLanes = 8, kColumns = 16 * Columns, kTile = 16, kSteps = kTile / 4, kThreads = 16 * kLanes;
  constexpr int kRows = Dk / kLanes, kQuads = kRows / 4, kLoads = kTile * Dk / 4 / kThreads;
  constexpr int kValueLoads = kTile * kColumns / kThreads;

  __shared__ __align__(16) float keys[kTile][Dk];
  __shared__ __align__(16) float queries[kTile][Dk];
  __shared__ float values[kTile][kColumns];
  __shared__ __align__(16) float decays[kTile], betas[kTile];
  // Of each step: G; D(j, 4); by rows t and columns j what u(j) is multiplied with, G(t) beta(t) on the first diagonal.
  __shared__ __align__(16) float before[kSteps][4], after[kSteps][4];
  __shared__ __align__(16) float with_key[kSteps][4][4], with_query[kSteps][4][4];

  const int T = q_shape[1];
  const int thread = threadIdx.x, lane = thread % kLanes, mine = thread / kLanes;
  const int row = blockIdx.y / Hv, head = blockIdx.y % Hv, key_head = head / (Hv / Hk);
  const int first = blockIdx.x * kColumns;
  const size_t tokens = static_cast<size_t>(row) * T;

  float state[Columns][kRows];
  const size_t corner = (static_cast<size_t>(row) * Hv + head) * Dk * Dv + first + mine * Columns;
  #pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const size_t at = corner + static_cast<size_t>(((i / 4) * kLanes + lane) * 4 + i % 4) * Dv;
    #pragma unroll
    for (int c = 0; c < Columns; ++c) {
      state[c][i] = state_in[at + c];
    }
  }
  // The columns beyond the diagonal stay 0.
  if (thread < kSteps * 16) {
    (&with_query[0][0][0])[thread] = 0.0f;
  }

  decltype(read_four(q)) next_queries[kLoads];
  decltype(read_four(k)) next_keys[kLoads];
  float next_values[kValueLoads], next_decay = 1.0f, next_beta = 0.0f;
  auto read = [&](int start) {
    #pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      // Beyond the last token the last one is read, and not written.
      const int index = (i * kThreads + thread) * 4, token = min(start + index / Dk, T - 1);
      const size_t at = ((tokens + token) * Hk + key_head) * Dk + index % Dk;
      next_keys[i] = read_four(k + at);
      next_queries[i] = read_four(q + at);
    }
    #pragma unroll
    for (int i = 0; i < kValueLoads; ++i) {
      const int index = i * kThreads + thread, token = start + index / kColumns;
      const size_t at = ((tokens + token) * Hv + head) * Dv + first + index % kColumns;
      next_values[i] = token < T ? static_cast<float>(v[at]) : 0.0f;
    }
    if (thread < kTile) {
      const bool real = start + thread < T;
      const size_t at = (tokens + start + thread) * Hv + head;
      // In double, because fast-math's expf is off by what a thousand slow decays add up to.
      next_decay = real ? static_cast<float>(exp(static_cast<double>(log_decay[at]))) : 1.0f;
      next_beta = real ? beta[at] : 0.0f;
    }
  };

  read(0);
  for (int start = 0; start < T; start += kTile) {
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = (i * kThreads + thread) * 4, t = index / Dk;
      write_four(&keys[t][index % Dk], next_keys[i], start + t < T);
      write_four(&queries[t][index % Dk], next_queries[i], start + t < T);
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
      // Sixteen groups of lanes, one for each token: four inner products, of pairs that no other group of its step has.
      const int step = mine / 4, t = mine % 4, base = step * 4;
      const int low = min(t, (t + 1) % 4), high = max(t, (t + 1) % 4), even = t % 2;
      const float self = inner_product<kQuads>(keys[mine], queries[mine], lane);
      const float key_pair = inner_product<kQuads>(keys[base + low], keys[base + high], lane);
      const float query_pair = inner_product<kQuads>(keys[base + low], queries[base + high], lane);
      const float* other = t < 2 ? keys[base + even + 2] : queries[base + even + 2];
      const float far_pair = inner_product<kQuads>(keys[base + even], other, lane);
      if (lane == 0) {
        const float4 decay = *reinterpret_cast<const float4*>(&decays[base]);
        const auto between = [&](int from, int to) {
          return (from < 0 ? decay.x : 1.0f) * (from < 1 && to > 0 ? decay.y : 1.0f) *
                 (from < 2 && to > 1 ? decay.z : 1.0f) * (from < 3 && to > 2 ? decay.w : 1.0f);
        };
        const float whole = between(-1, t);
        before[step][t] = whole;
        after[step][t] = between(t, 3);
        with_key[step][t][t] = betas[mine] * whole;
        with_query[step][t][t] = self;
        with_key[step][high][low] = betas[base + high] * between(low, high) * key_pair;
        with_query[step][high][low] = between(low, high) * query_pair;
        const float far = between(even, even + 2) * far_pair;
        if (t < 2) {
          with_key[step][even + 2][even] = betas[base + even + 2] * far;
        } else {
          with_query[step][even + 2][even] = far;
        }
      }
    }
    __syncthreads();
    if (start + kTile < T) {
      read(start + kTile);
    }
    #pragma unroll 1
    for (int step = 0; step < kSteps && start + step * 4 < T; ++step) {
      float4 key[4][kQuads];
      float read_key[Columns][4], read_query[Columns * 4];
      #pragma unroll
      for (int i = 0; i < Columns * 4; ++i) {
        read_key[i / 4][i % 4] = read_query[i] = 0.0f;
      }
      #pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        #pragma unroll
        for (int t = 0; t < 4; ++t) {
          key[t][m] = *reinterpret_cast<const float4*>(&keys[step * 4 + t][(m * kLanes + lane) * 4]);
          const float4 query = *reinterpret_cast<const float4*>(&queries[step * 4 + t][(m * kLanes + lane) * 4]);
          #pragma unroll
          for (int c = 0; c < Columns; ++c) {
            const float* own = state[c] + 4 * m;
            const float4 quad = {own[0], own[1], own[2], own[3]};
            read_key[c][t] = add_products(quad, key[t][m], read_key[c][t]);
            read_query[c * 4 + t] = add_products(quad, query, read_query[c * 4 + t]);
          }
        }
      }
      float update[Columns][4];
      #pragma unroll
      for (int t = 0; t < 4; ++t) {
        #pragma unroll
        for (int c = 0; c < Columns; ++c) {
          float sum = betas[step * 4 + t] * values[step * 4 + t][mine * Columns + c];
          sum -= with_key[step][t][t] * sum_of_lanes(read_key[c][t]);
          #pragma unroll
          for (int j = 0; j < t; ++j) {
            sum -= with_key[step][t][j] * update[c][j];
          }
          update[c][t] = sum;
        }
      }
      // Columns lane ends with the sum of one token, and of one column where a thread has two.
      if (Columns == 2) {
        share_sums<Columns * 2, 4>(read_query, lane);
      } else {
        #pragma unroll
        for (int t = 0; t < 4; ++t) {
          read_query[t] += __shfl_xor_sync(0xffffffffu, read_query[t], 4);
        }
      }
      share_sums<2, 2>(read_query, lane);
      share_sums<1, 1>(read_query, lane);
      {
        const int t = lane % 4, column = Columns == 2 ? lane / 4 : 0, token = start + step * 4 + t;
        float answer = before[step][t] * read_query[0];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
          answer += with_query[step][t][j] * (column == 0 ? update[0][j] : update[Columns - 1][j]);
        }
        if (token < T && lane < Columns * 4) {
          y[((tokens + token) * Hv + head) * Dv + first + mine * Columns + column] = static_cast<Out>(answer);
        }
      }
      const float kept = before[step][3];
      #pragma unroll
      for (int c = 0; c < Columns; ++c) {
        #pragma unroll
        for (int t = 0; t < 4; ++t) {
          update[c][t] *= after[step][t];
        }
        #pragma unroll
        for (int m = 0; m < kQuads; ++m) {
          float* own = state[c] + 4 * m;
          float4 sum = {kept * own[0], kept * own[1], kept * own[2], kept * own[3]};
          #pragma unroll
          for (int t = 0; t < 4; ++t) {
            sum.x += key[t][m].x * update[c][t];
            sum.y += key[t][m].y * update[c][t];
            sum.z += key[t][m].z * update[c][t];
            sum.w += key[t][m].w * update[c][t];
          }
          own[0] = sum.x, own[1] = sum.y, own[2] = sum.z, own[3] = sum.w;
        }
      }
    }
  }

  #pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const size_t at = corner + static_cast<size_t>(((i / 4) * kLanes + lane) * 4 + i % 4) * Dv;
    #pragma unroll
    for (int c = 0; c < Columns; ++c) {
      state_out[at + c] = state[c][i];
    }
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


def columns_of_a_thread(heads: int, key_dim: int, value_dim: int) -> int:
    """Columns of the state that a thread owns, 1 or 2, with `heads` value heads of all rows together."""
    block = 2 * THREADS // LANES
    # Wider keys leave no registers for a second column.
    return 2 if key_dim <= 128 and value_dim % block == 0 and heads * value_dim // block >= BLOCKS else 1


def cuda(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """One launch over all tokens; key_dim a multiple of 32 up to 256, value_dim a multiple of 16.

    Returns:
        y (B, T, Hv, Dv) in v's type, and the state after the last token.
    """
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    columns = columns_of_a_thread(B * Hv, Dk, Dv)
    answers = _cuda_kernel()(
        inputs=[q, k, v, log_decay, beta, state],
        template=[("Out", v.dtype), ("Hk", Hk), ("Hv", Hv), ("Dk", Dk), ("Dv", Dv), ("Columns", columns)],
        grid=(Dv * LANES // columns, B * Hv, 1),
        threadgroup=(THREADS, 1, 1),
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
