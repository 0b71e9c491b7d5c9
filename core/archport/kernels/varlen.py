"""The CUDA kernel of attention over documents that lie one after another in one row: flash attention on tensor cores.

A document reads nothing but itself, so neither masks nor padding exist. Knows nothing of calls, prices or plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from archport.kernels.instructions import ADDRESS, MULTIPLY, POWERS
from archport.kernels.launches import numbers

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np


# What a host has no instructions for; tests put functions of the same names in their place.
INSTRUCTIONS = (
    ADDRESS
    + MULTIPLY
    + POWERS
    + """
// Sixteen bytes from global to shared memory, on their way until copies_done; zeros where `real` is not set.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0));
}
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Four matrices of 8 x 8 elements, a row of one of them at each lane's address, as the operands of `multiply`.
__device__ __forceinline__ void load_matrices(unsigned int (&into)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(shared_address(row)));
}
__device__ __forceinline__ void load_transposed(unsigned int (&into)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(shared_address(row)));
}
"""
)


# Queries of one block of threads; each of its warps takes sixteen.
QUERIES = 64
THREADS = 128
# Shared memory that a block has without asking for more.
SHARED = 48 << 10

HEADER = """
constexpr int kQueries = 64, kThreads = 128;

// Rows of elements in global memory, as far as one head of one document goes.
template <typename T>
struct Rows {
  const T* first;
  long long stride, step;
  // Whether sixteen bytes at a time may be copied.
  bool aligned;

  template <typename Strides>
  __device__ __forceinline__ Rows(const T* array, const Strides& strides, int head, long long token)
      : first(array + head * strides[1] + token * strides[2]), stride(strides[2]), step(strides[3]),
        aligned(strides[3] == 1 && strides[2] % 8 == 0 && reinterpret_cast<size_t>(first) % 16 == 0) {}

  // Rows from `row` on, `real` of them and then zeros, to rows of Dh + 8 in shared memory.
  template <int Dh, int Count>
  __device__ __forceinline__ void copy(T* to, int row, int real) const {
    constexpr int kPieces = Dh / 8;
    #pragma unroll
    for (int i = 0; i < (Count * kPieces + kThreads - 1) / kThreads; ++i) {
      const int piece = i * kThreads + threadIdx.x, at = piece / kPieces, column = piece % kPieces * 8;
      if (Count * kPieces % kThreads != 0 && at >= Count) continue;
      const T* from = first + (at < real ? row + at : 0) * stride;
      T* into = to + at * (Dh + 8) + column;
      if (aligned) {
        copy_async(into, from + column, at < real);
      } else {
        for (int j = 0; j < 8; ++j) into[j] = at < real ? from[(column + j) * step] : T(0);
      }
    }
  }
};
// Over the four lanes that hold one row.
__device__ __forceinline__ float most_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
"""

# A block of threads takes the queries of one tile and head. Rows in shared memory are eight elements longer than they
# need be, so that the eight rows of a matrix lie in different banks. While one tile of keys and values is multiplied,
# the next one is on its way.
SOURCE = """
  constexpr int kPitch = Dh + 8, kParts = Dh / 16, kGroups = kKeys / 16;
  const float nothing = __int_as_float(0xff800000);  // minus infinity
  // How far a query sees, -1 without a limit.
  constexpr int kLeft = Left - 1, kRight = Right - 1;
  constexpr bool kBrain = Brain != 0;
  __shared__ __align__(16) Out k_tiles[2][kKeys * kPitch], v_tiles[2][kKeys * kPitch];
  const int begin = tiles[3 * blockIdx.x], length = tiles[3 * blockIdx.x + 1], first = tiles[3 * blockIdx.x + 2];
  const int head = blockIdx.y, kv = head / (Hq / Hk);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Rows<Out> queries(q, q_strides, head, begin);
  const Rows<Out> keys(k, k_strides, kv, begin), values(v, v_strides, kv, begin);

  // Queries pass through the memory of the tiles into registers.
  Out* staged = &k_tiles[0][0];
  unsigned int query[kParts][4];
  queries.template copy<Dh, kQueries>(staged, first, length - first);
  copies_done();
  __syncthreads();
  #pragma unroll
  for (int part = 0; part < kParts; ++part) {
    load_matrices(query[part], staged + (warp * 16 + lane % 16) * kPitch + part * 16 + lane / 16 * 8);
  }
  __syncthreads();

  // Keys that any query of the tile sees. A thread has two rows, eight apart.
  const int from = kLeft < 0 ? 0 : max(0, first - kLeft) / kKeys * kKeys;
  const int to = kRight < 0 ? length : min(length, first + kQueries + kRight);
  const int row = first + warp * 16 + lane / 4;
  const bool idle = first + warp * 16 >= length;
  const float to_power = scale[0] * 1.44269504f;
  float sum[Dh / 8][4], most[2] = {nothing, nothing}, total[2] = {0.0f, 0.0f};
  #pragma unroll
  for (int i = 0; i < Dh / 8; ++i) {
    sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
  }

  keys.template copy<Dh, kKeys>(k_tiles[0], from, length - from);
  values.template copy<Dh, kKeys>(v_tiles[0], from, length - from);
  for (int at = from, stage = 0; at < to; at += kKeys, stage ^= 1) {
    copies_done();
    __syncthreads();
    const int next = at + kKeys;
    if (next < to) {
      keys.template copy<Dh, kKeys>(k_tiles[stage ^ 1], next, length - next);
      values.template copy<Dh, kKeys>(v_tiles[stage ^ 1], next, length - next);
    }
    if (idle) continue;

    float score[kKeys / 8][4];
    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      float (&low)[4] = score[2 * group], (&high)[4] = score[2 * group + 1];
      low[0] = low[1] = low[2] = low[3] = high[0] = high[1] = high[2] = high[3] = 0.0f;
      const Out* rows = k_tiles[stage] + (group * 16 + lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8;
      #pragma unroll
      for (int part = 0; part < kParts; ++part) {
        unsigned int key[4];
        load_matrices(key, rows + part * 16);
        multiply<kBrain>(low, query[part], key[0], key[1]);
        multiply<kBrain>(high, query[part], key[2], key[3]);
      }
    }
    const bool whole = next <= length && (kLeft < 0 || at >= first + kQueries - 1 - kLeft) &&
                       (kRight < 0 || next - 1 <= first + kRight);
    if (!whole) {
      #pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = at + i * 8 + lane % 4 * 2 + j % 2, mine = row + j / 2 * 8;
          const bool seen = key < length && (kLeft < 0 || key >= mine - kLeft) && (kRight < 0 || key <= mine + kRight);
          if (!seen) score[i][j] = nothing;
        }
      }
    }

    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = most[half];
      #pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        largest = fmaxf(largest, fmaxf(score[i][2 * half], score[i][2 * half + 1]));
      }
      largest = most_of_row(largest);
      // A row that has seen nothing yet.
      const float base = largest == nothing ? 0.0f : largest * to_power;
      const float shrink = power_of_two(most[half] * to_power - base);
      most[half] = largest;
      total[half] *= shrink;
      #pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        #pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) {
          score[i][j] = power_of_two(score[i][j] * to_power - base);
          total[half] += score[i][j];
        }
      }
      #pragma unroll
      for (int i = 0; i < Dh / 8; ++i) {
        sum[i][2 * half] *= shrink;
        sum[i][2 * half + 1] *= shrink;
      }
    }

    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const float (&low)[4] = score[2 * group], (&high)[4] = score[2 * group + 1];
      const unsigned int weight[4] = {both<kBrain>(low[0], low[1]), both<kBrain>(low[2], low[3]),
                                      both<kBrain>(high[0], high[1]), both<kBrain>(high[2], high[3])};
      const Out* rows = v_tiles[stage] + (group * 16 + lane % 16) * kPitch + lane / 16 * 8;
      #pragma unroll
      for (int part = 0; part < kParts; ++part) {
        unsigned int value[4];
        load_transposed(value, rows + part * 16);
        multiply<kBrain>(sum[2 * part], weight, value[0], value[1]);
        multiply<kBrain>(sum[2 * part + 1], weight, value[2], value[3]);
      }
    }
  }

  #pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int mine = row + half * 8;
    const float all = sum_of_row(total[half]), share = all > 0.0f ? 1.0f / all : 0.0f;
    if (mine < length) {
      Out* into = out + (static_cast<long long>(begin + mine) * Hq + head) * Dh + lane % 4 * 2;
      #pragma unroll
      for (int i = 0; i < Dh / 8; ++i) {
        *reinterpret_cast<unsigned int*>(into + i * 8) =
            both<kBrain>(sum[i][2 * half] * share, sum[i][2 * half + 1] * share);
      }
    }
  }
"""


def keys_per_tile(head_dim: int) -> int:
    """Keys that a block of threads holds at once, with their values, twice."""
    return 64 if 4 * 64 * (head_dim + 8) * 2 <= SHARED else 32


def tiles(lengths: Sequence[int], tokens: int) -> np.ndarray:
    """(n, 3) int32: first token and length of a document, and the first query of a tile in it.

    What lies after the documents in a row of so many tokens is taken for one more, so that it comes out finite.
    """
    import numpy as np

    whole = [*lengths, tokens - sum(lengths)]
    ends = np.cumsum(whole)
    counts = -(-np.array(whole) // QUERIES)
    document = np.repeat(np.arange(len(whole)), counts)
    tile = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths_of = np.array(whole)[document]
    return np.stack([ends[document] - lengths_of, lengths_of, tile * QUERIES], axis=1).astype(np.int32)


@cache
def _kernel() -> Any:
    import mlx.core as mx

    return mx.fast.cuda_kernel(
        name="archport_varlen_attention",
        input_names=["q", "k", "v", "tiles", "scale"],
        output_names=["out"],
        source=SOURCE,
        header=INSTRUCTIONS + HEADER,
        ensure_row_contiguous=False,
    )


def attend(
    q: mx.array, k: mx.array, v: mx.array, table: mx.array, *, scale: float, reach: tuple[int | None, int | None]
) -> mx.array:
    """Attention of every document on itself.

    Args:
        q, k, v: (1, H, L, Dh), (1, K, L, Dh), (1, K, L, Dh) in 16 bits, in any memory order.
        table: what `tiles` says of the documents.
        reach: keys seen to the left and right, None without a limit.

    Returns:
        (1, H, L, Dh), the heads of a token next to each other in memory.
    """
    import mlx.core as mx

    _, heads, tokens, width = q.shape
    left, right = (0 if each is None else each + 1 for each in reach)
    out = _kernel()(
        inputs=[q, k, v, table, numbers(scale)],
        template=[
            ("Out", q.dtype),
            ("Dh", width),
            ("Hq", heads),
            ("Hk", k.shape[1]),
            ("Left", left),
            ("Right", right),
            ("Brain", int(q.dtype == mx.bfloat16)),
            ("kKeys", keys_per_tile(width)),
        ],
        grid=(table.shape[0] * THREADS, heads, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(1, tokens, heads, width)],
        output_dtypes=[q.dtype],
    )[0]
    return out.transpose(0, 2, 1, 3)
