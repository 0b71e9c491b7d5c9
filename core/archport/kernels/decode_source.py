"""The CUDA text of attention of few queries on long caches: keys divided among blocks of threads, then merged.

Keys and values go from memory to registers in the order in which they lie there, sixteen bytes a thread; the products
are transposed (keys times queries, values times weights) so that eight rows of queries fill a matrix unit. Tests run
both texts on a host with functions of the same names in place of `INSTRUCTIONS`.
"""

from __future__ import annotations

from archport.kernels.instructions import MULTIPLY, POWERS

INSTRUCTIONS = (
    MULTIPLY
    + POWERS
    + """
struct __align__(16) Words { unsigned int word[4]; };
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
// Sixteen bytes that are read once.
__device__ __forceinline__ Words load(const void* from) {
  Words words;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3]) : "l"(from));
  return words;
}
// The low halves of two words in one, and the high halves.
__device__ __forceinline__ unsigned int low_halves(unsigned int first, unsigned int second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ __forceinline__ unsigned int high_halves(unsigned int first, unsigned int second) {
  return __byte_perm(first, second, 0x7632);
}
// A matrix of 8 x 8 elements, two of a row per lane, with rows and columns exchanged.
__device__ __forceinline__ unsigned int transposed(unsigned int two) {
  unsigned int exchanged;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(exchanged) : "r"(two));
  return exchanged;
}
"""
)

# Over the eight lanes that hold one query.
HEADER = """
__device__ __forceinline__ float most_of_query(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
}
__device__ __forceinline__ float sum_of_query(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 4);
  x += __shfl_xor_sync(0xffffffffu, x, 8);
  return x + __shfl_xor_sync(0xffffffffu, x, 16);
}
// Eight elements in a row, wherever they lie.
template <typename T>
__device__ __forceinline__ Words gather(const T* from, long long step, bool aligned) {
  if (aligned) return load(from);
  Words words;
  T* into = reinterpret_cast<T*>(words.word);
  for (int i = 0; i < 8; ++i) into[i] = from[i * step];
  return words;
}
"""

# `divided` holds the number of shares and how far left and right a query sees, `lengths` the keys of every row of the
# batch, or -1 for all of them. A block of threads takes one share of a row's keys, one head of keys, and eight rows of
# queries: row r is query r % L of head r / L among those that share the keys. Its warps take turns of 16 x kGroups
# keys, and merge at the end.
SHARES = """
  constexpr int kTurn = 16 * kGroups, kPieces = Dh / 32, kBlocks = Dh / 64;
  constexpr bool kBrain = Brain != 0;
  const float nothing = __int_as_float(0xff800000);  // minus infinity
  DYNAMIC_SHARED(memory);
  float* const warp_sums = reinterpret_cast<float*>(memory);      // (warps, 8, Dh)
  float* const warp_stats = warp_sums + kWarps * 8 * Dh;          // (warps, 8, 2)

  const int shares = divided[0], left = divided[1], right = divided[2];
  const int L = q_shape[2], heads = q_shape[1] / k_shape[1], rows = heads * L, row_tiles = (rows + 7) / 8;
  const int share = blockIdx.x % shares, row_tile = blockIdx.x / shares % row_tiles;
  const int kv = blockIdx.x / shares / row_tiles % k_shape[1], batch = blockIdx.x / shares / row_tiles / k_shape[1];
  const int length = lengths[batch] < 0 ? k_shape[2] : lengths[batch];
  const int begin = max(0, length - L - left);
  const int each = ((length - begin + shares - 1) / shares + kTurn - 1) / kTurn * kTurn;
  const int from = begin + share * each, to = min(length, from + each);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Out* const keys = k + batch * k_strides[0] + kv * k_strides[1];
  const Out* const values = v + batch * v_strides[0] + kv * v_strides[1];
  const bool k_aligned =
      k_strides[3] == 1 && k_strides[2] % 8 == 0 && reinterpret_cast<size_t>(keys) % 16 == 0;
  const bool v_aligned =
      v_strides[3] == 1 && v_strides[2] % 8 == 0 && reinterpret_cast<size_t>(values) % 16 == 0;

  // Queries: row g of the tile, and which keys rows 2t and 2t + 1 see.
  Words query[kPieces];
  {
    const int row = row_tile * 8 + g, head = kv * heads + min(row, rows - 1) / L, at = min(row, rows - 1) % L;
    const Out* const mine = q + batch * q_strides[0] + head * q_strides[1] + at * q_strides[2];
    const bool aligned = q_strides[3] == 1 && reinterpret_cast<size_t>(mine) % 16 == 0;
    #pragma unroll
    for (int i = 0; i < kPieces; ++i) query[i] = gather(mine + (i * 32 + t * 8) * q_strides[3], q_strides[3], aligned);
  }
  int lowest[2], highest[2];
  #pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = row_tile * 8 + 2 * t + j, position = length - L + row % L;
    highest[j] = row < rows ? position + right : -1;
    lowest[j] = position - left;
  }

  const float to_power = Cap ? 1.44269504f * numbers[1] : fabsf(numbers[0]) * 1.44269504f;
  const float to_cap = Cap ? 2.0f * 1.44269504f * numbers[0] / numbers[1] : 0.0f;
  float sum[kBlocks * 4][4], most[2] = {nothing, nothing}, total[2] = {0.0f, 0.0f};
  #pragma unroll
  for (int i = 0; i < kBlocks * 4; ++i) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
  Words key[kGroups][2][kPieces], value[kGroups][4][kBlocks];

  const auto load_keys = [&](int at) {
    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      #pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Out* const row = keys + min(at + group * 16 + half * 8 + g, length - 1) * k_strides[2];
        #pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          key[group][half][i] = gather(row + (i * 32 + t * 8) * k_strides[3], k_strides[3], k_aligned);
        }
      }
    }
  };

  int at = from + warp * kTurn;
  if (at < to) load_keys(at);
  for (; at < to; at += kWarps * kTurn) {
    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      #pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int which = min(at + group * 16 + 2 * t + i % 2 + i / 2 * 8, length - 1);
        const Out* const row = values + which * v_strides[2];
        #pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          value[group][i][block] = gather(row + (block * 64 + g * 8) * v_strides[3], v_strides[3], v_aligned);
        }
      }
    }
    float score[kGroups][4];
    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      score[group][0] = score[group][1] = score[group][2] = score[group][3] = 0.0f;
      #pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        #pragma unroll
        for (int half = 0; half < 2; ++half) {
          const unsigned int four[4] = {key[group][0][i].word[2 * half], key[group][1][i].word[2 * half],
                                        key[group][0][i].word[2 * half + 1], key[group][1][i].word[2 * half + 1]};
          multiply<kBrain>(score[group], four, query[i].word[2 * half], query[i].word[2 * half + 1]);
        }
      }
    }
    if (at + kWarps * kTurn < to) load_keys(at + kWarps * kTurn);

    float largest[2] = {most[0], most[1]};
    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      #pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int which = at + group * 16 + j / 2 * 8 + g;
        float& x = score[group][j];
        // The largest score is looked for before it is scaled.
        if (!Cap && numbers[0] < 0.0f) x = -x;
        if (Cap) x = 1.0f - 2.0f * reciprocal(1.0f + power_of_two(x * to_cap));
        if (which >= to || which < lowest[j % 2] || which > highest[j % 2]) x = nothing;
        largest[j % 2] = fmaxf(largest[j % 2], x);
      }
    }
    float base[2];
    #pragma unroll
    for (int j = 0; j < 2; ++j) {
      largest[j] = most_of_query(largest[j]);
      // A row that has seen nothing yet.
      base[j] = largest[j] == nothing ? 0.0f : largest[j] * to_power;
      const float shrink = power_of_two(most[j] * to_power - base[j]);
      most[j] = largest[j];
      total[j] *= shrink;
      #pragma unroll
      for (int i = 0; i < kBlocks * 4; ++i) {
        sum[i][j] *= shrink;
        sum[i][j + 2] *= shrink;
      }
    }
    #pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      #pragma unroll
      for (int j = 0; j < 4; ++j) {
        score[group][j] = power_of_two(score[group][j] * to_power - base[j % 2]);
        total[j % 2] += score[group][j];
      }
      const unsigned int first = transposed(both<kBrain>(score[group][0], score[group][1]));
      const unsigned int second = transposed(both<kBrain>(score[group][2], score[group][3]));
      #pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Words(&four)[4][kBlocks] = value[group];
          const unsigned int a[4] = {low_halves(four[0][block].word[i], four[1][block].word[i]),
                                     high_halves(four[0][block].word[i], four[1][block].word[i]),
                                     low_halves(four[2][block].word[i], four[3][block].word[i]),
                                     high_halves(four[2][block].word[i], four[3][block].word[i])};
          multiply<kBrain>(sum[block * 4 + i], a, first, second);
        }
      }
    }
  }

  #pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float all = sum_of_query(total[j]);
    if (g == 0) {
      warp_stats[(warp * 8 + 2 * t + j) * 2] = most[j];
      warp_stats[(warp * 8 + 2 * t + j) * 2 + 1] = all;
    }
    #pragma unroll
    for (int i = 0; i < kBlocks * 4; ++i) {
      float* const into = warp_sums + (warp * 8 + 2 * t + j) * Dh + i / 4 * 64 + g * 8 + i % 4 * 2;
      into[0] = sum[i][j];
      into[1] = sum[i][j + 2];
    }
  }
  __syncthreads();
  // Each warp merges a row.
  for (int row = warp; row < 8; row += kWarps) {
    float largest = nothing, all = 0.0f;
    for (int i = 0; i < kWarps; ++i) largest = fmaxf(largest, warp_stats[(i * 8 + row) * 2]);
    const float base = largest == nothing ? 0.0f : largest * to_power;
    float merged[Dh / 32];
    #pragma unroll
    for (int i = 0; i < Dh / 32; ++i) merged[i] = 0.0f;
    for (int i = 0; i < kWarps; ++i) {
      const float weight = power_of_two(warp_stats[(i * 8 + row) * 2] * to_power - base);
      all += weight * warp_stats[(i * 8 + row) * 2 + 1];
      #pragma unroll
      for (int j = 0; j < Dh / 32; ++j) merged[j] += weight * warp_sums[(i * 8 + row) * Dh + j * 32 + lane];
    }
    const long long place = static_cast<long long>(blockIdx.x) * 8 + row;
    #pragma unroll
    for (int j = 0; j < Dh / 32; ++j) sums[place * Dh + j * 32 + lane] = merged[j];
    if (lane == 0) {
      stats[place * 2] = largest == nothing ? nothing : largest * to_power;
      stats[place * 2 + 1] = all;
    }
  }
"""

# A block of threads takes one head of one query of one row of the batch, a thread one element of it.
MERGE = """
  constexpr bool kBrain = Brain != 0;
  const float nothing = __int_as_float(0xff800000);
  // sums (B, K, row tiles, shares, 8, Dh)
  const int shares = sums_shape[3], kv_heads = sums_shape[1], heads = Heads / kv_heads;
  const int head = blockIdx.x % Heads, query = blockIdx.x / Heads % Queries, batch = blockIdx.x / Heads / Queries;
  const int row = head % heads * Queries + query;
  const long long first =
      ((static_cast<long long>(batch) * kv_heads + head / heads) * sums_shape[2] + row / 8) * shares * 8 + row % 8;
  float largest = nothing, total = 0.0f, merged = 0.0f;
  for (int i = 0; i < shares; ++i) largest = fmaxf(largest, stats[(first + i * 8) * 2]);
  const float base = largest == nothing ? 0.0f : largest;
  for (int i = 0; i < shares; ++i) {
    const float weight = power_of_two(stats[(first + i * 8) * 2] - base);
    total += weight * stats[(first + i * 8) * 2 + 1];
    merged += weight * sums[(first + i * 8) * Dh + threadIdx.x];
  }
  const float result = total > 0.0f ? merged / total : 0.0f;
  const float other = __shfl_xor_sync(0xffffffffu, result, 1);
  if (threadIdx.x % 2 == 0) {
    Out* const into = out + ((static_cast<long long>(batch) * Queries + query) * Heads + head) * Dh + threadIdx.x;
    *reinterpret_cast<unsigned int*>(into) = both<kBrain>(result, other);
  }
"""
