"""The CUDA text of flash attention for wide heads: one body, and two ways to multiply matrices.

`WARPGROUP` multiplies with wgmma (compute capability 9.0), `WARP` with mma.sync (8.0 and later). Both keep a thread's
share of a product in the same registers, so that masks, softmax and output are written once. Tests run the body on a
host with functions of the same names in place of `INSTRUCTIONS` and of the products.
"""

from __future__ import annotations

from archport.kernels.instructions import ADDRESS, POWERS

# What a host has no instructions for, whatever multiplies.
INSTRUCTIONS = (
    ADDRESS
    + POWERS
    + """
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
// Sixteen bytes from global to shared memory, on their way until copies_done; zeros where `real` is not set.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all copies but those of the last `Open` commits are there.
template <int Open>
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_group %0;" :: "n"(Open) : "memory"); }
"""
)

# Tiles in shared memory are blocks of 64 columns, a row of a block 128 bytes; the eight pieces of 16 bytes of row r
# lie at (piece ^ r % 8). That is the 128-byte swizzle which wgmma reads, and what keeps ldmatrix free of conflicts.
LAYOUT = """
// Rows of elements in global memory, as far as one head of one batch row goes.
template <typename T>
struct Rows {
  const T* first;
  long long stride, step;
  // Whether sixteen bytes at a time may be copied.
  bool aligned;

  template <typename Strides>
  __device__ __forceinline__ Rows(const T* array, const Strides& strides, int batch, int head, long long token)
      : first(array + batch * strides[0] + head * strides[1] + token * strides[2]), stride(strides[2]),
        step(strides[3]),
        aligned(strides[3] == 1 && strides[2] % 8 == 0 && reinterpret_cast<size_t>(first) % 16 == 0) {}

  // `Count` rows from `row` on, `real` of them and then zeros, to a tile in shared memory.
  template <int Width, int Count, int Threads>
  __device__ __forceinline__ void copy(T* to, int row, int real) const {
    constexpr int kPass = Threads / 8;
    const int lane_row = threadIdx.x / 8, piece = threadIdx.x % 8;
    T* into = to + lane_row * 64 + (piece ^ lane_row % 8) * 8;
    #pragma unroll
    for (int i = 0; i < (Count + kPass - 1) / kPass; ++i) {
      const int at = i * kPass + lane_row;
      if (Count % kPass != 0 && at >= Count) break;
      const T* from = first + static_cast<long long>(at < real ? row + at : 0) * stride;
      if (aligned) {
        #pragma unroll
        for (int block = 0; block < Width / 64; ++block) {
          copy_async(into + block * Count * 64 + i * kPass * 64, from + block * 64 + piece * 8, at < real);
        }
      } else {
        for (int block = 0; block < Width / 64; ++block) {
          for (int j = 0; j < 8; ++j) {
            into[block * Count * 64 + i * kPass * 64 + j] =
                at < real ? from[(block * 64 + piece * 8 + j) * step] : T(0);
          }
        }
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

# Products of one warp: 16 rows of queries with a tile of keys, and their weights with a tile of values.
WARP_INSTRUCTIONS = """
__device__ __forceinline__ void load_matrices(unsigned int (&into)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned int (&into)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"(shared_address(row)) : "memory");
}
// sum (16 x 8) += a (16 x 16) b (16 x 8)
template <bool Brain>
__device__ __forceinline__ void add_product(float* sum, const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
  if constexpr (Brain) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};" : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};" : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
"""
WARP = """
// Element (row, column) of a tile of `Count` rows, where column is a multiple of eight.
template <int Count, typename T>
__device__ __forceinline__ const T* element(const T* tile, int row, int column) {
  return tile + column / 64 * Count * 64 + row * 64 + (column / 8 % 8 ^ row % 8) * 8;
}
template <bool Brain, int Width, int Queries, int Keys, typename T>
__device__ __forceinline__ void start_scores(float (&score)[Keys / 2], const T* queries, const T* keys) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  #pragma unroll
  for (int i = 0; i < Keys / 2; ++i) score[i] = 0.0f;
  #pragma unroll
  for (int step = 0; step < Width / 16; ++step) {
    unsigned int query[4];
    load_matrices(query, element<Queries>(queries, warp * 16 + lane % 16, step * 16 + lane / 16 * 8));
    #pragma unroll
    for (int group = 0; group < Keys / 16; ++group) {
      unsigned int key[4];
      load_matrices(key, element<Keys>(keys, group * 16 + lane % 8 + lane / 16 * 8, step * 16 + lane / 8 % 2 * 8));
      add_product<Brain>(score + group * 8, query, key[0], key[1]);
      add_product<Brain>(score + group * 8 + 4, query, key[2], key[3]);
    }
  }
}
template <bool Brain, int Width, int Keys, typename T>
__device__ __forceinline__ void start_values(float (&sum)[Width / 2], const unsigned int (&weight)[Keys / 4],
                                             const T* values) {
  const int lane = threadIdx.x % 32;
  #pragma unroll
  for (int group = 0; group < Keys / 16; ++group) {
    const unsigned int four[4] = {weight[group * 4], weight[group * 4 + 1], weight[group * 4 + 2],
                                  weight[group * 4 + 3]};
    #pragma unroll
    for (int step = 0; step < Width / 16; ++step) {
      unsigned int value[4];
      load_transposed(value, element<Keys>(values, group * 16 + lane % 16, step * 16 + lane / 16 * 8));
      add_product<Brain>(sum + step * 8, four, value[0], value[1]);
      add_product<Brain>(sum + step * 8 + 4, four, value[2], value[3]);
    }
  }
}
// These products are done when the function is.
template <int Open, int Count>
__device__ __forceinline__ void products_done(float (&sum)[Count]) {}
__device__ __forceinline__ void shared_is_written() {}
"""


def _wgmma(kind: str, columns: int, a_registers: bool) -> str:
    """One instruction: 64 x `columns` in float32 += (64 x 16) (16 x `columns`)."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    if a_registers:
        a, b, more = ", ".join(f"%{count + i}" for i in range(4)), count + 4, "1, 1, 1"
        a, inputs = f"{{{a}}}", '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more)'
    else:
        a, b, more = f"%{count}", count + 1, "1, 1, 0, 0"
        inputs = '"l"(a), "l"(b), "r"(more)'
    outputs = ", ".join(f'"+f"(sum[{i}])' for i in range(count))
    return (
        f'    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{b + 1}, 0; "\n'
        f'      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "\n'
        f'      "{{{sums}}}, {a}, %{b}, p, {more}; }}"\n'
        f"      : {outputs} : {inputs});\n"
    )


def _both_types(columns: int, a_registers: bool) -> str:
    return (
        "  if constexpr (Brain) {\n"
        + _wgmma("bf16", columns, a_registers)
        + "  } else {\n"
        + _wgmma("f16", columns, a_registers)
        + "  }\n"
    )


def warpgroup_instructions(head_dim: int, keys: int) -> str:
    """The instructions of `WARPGROUP` for one head dim and number of keys per tile."""
    return (
        """
template <int Count>
__device__ __forceinline__ void keep(float (&sum)[Count]) {
  #pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(sum[i]) :: "memory");
}
// Where a matrix begins and how far its groups lie apart, in bytes, as wgmma reads it under the 128-byte swizzle.
__device__ __forceinline__ unsigned long long matrix(const void* place, unsigned leading, unsigned stride) {
  return static_cast<unsigned long long>((shared_address(place) & 0x3ffff) >> 4) |
         static_cast<unsigned long long>(leading >> 4) << 16 | static_cast<unsigned long long>(stride >> 4) << 32 |
         1ull << 62;
}
__device__ __forceinline__ void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until `sum` is there; the products of the last `Open` commits may not be.
template <int Open, int Count>
__device__ __forceinline__ void products_done(float (&sum)[Count]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(Open) : "memory");
  keep(sum);
}
// Makes what this thread wrote to shared memory visible to wgmma.
__device__ __forceinline__ void shared_is_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <bool Brain>
__device__ __forceinline__ void multiply_rows(
    float (&sum)["""
        + f"{keys // 2}], unsigned long long a, unsigned long long b, int more) {{\n"
        + _both_types(keys, a_registers=False)
        + "}\ntemplate <bool Brain>\n__device__ __forceinline__ void multiply_columns(\n"
        + f"    float (&sum)[{head_dim // 2}], const unsigned int* a, unsigned long long b, int more) {{\n"
        + _both_types(head_dim, a_registers=True)
        + "}\n"
    )


# Products of four warps: 64 rows of queries, which lie in shared memory like keys and values.
WARPGROUP = """
template <bool Brain, int Width, int Queries, int Keys, typename T>
__device__ __forceinline__ void start_scores(float (&score)[Keys / 2], const T* queries, const T* keys) {
  const T* mine = queries + threadIdx.x / 128 * 64 * 64;
  keep(score);
  open_products();
  #pragma unroll
  for (int step = 0; step < Width / 16; ++step) {
    const int block = step / 4, column = step % 4 * 16;
    multiply_rows<Brain>(score, matrix(mine + block * Queries * 64 + column, 16, 1024),
                         matrix(keys + block * Keys * 64 + column, 16, 1024), step != 0);
  }
  commit_products();
  keep(score);
}
template <bool Brain, int Width, int Keys, typename T>
__device__ __forceinline__ void start_values(float (&sum)[Width / 2], const unsigned int (&weight)[Keys / 4],
                                             const T* values) {
  keep(sum);
  open_products();
  #pragma unroll
  for (int group = 0; group < Keys / 16; ++group) {
    multiply_columns<Brain>(sum, weight + group * 4, matrix(values + group * 16 * 64, Keys * 128, 1024), 1);
  }
  commit_products();
  keep(sum);
}
"""

# A block of threads takes one tile of queries and one head; `tiles` says per tile: row of the batch, first query and
# number of queries in that row, first key and number of keys, position of the first query from the first key, the keys
# [from, to) that any of its queries sees, and how far left and right one sees. While one tile of values is multiplied,
# the scores of the next are made into weights, and the tiles after that are on their way.
SOURCE = """
  constexpr int kWarps = kQueries / 16, kThreads = kWarps * 32;
  constexpr bool kBrain = Brain != 0;
  const float nothing = __int_as_float(0xff800000);  // minus infinity
  DYNAMIC_SHARED(memory);
  Out* const q_tile = reinterpret_cast<Out*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  Out* const k_tiles = q_tile + kQueries * Dh;
  Out* const v_tiles = k_tiles + 2 * kKeys * Dh;

  const int heads = q_shape[1], head = blockIdx.x % heads, kv = head / (heads / k_shape[1]);
  const int* const tile = tiles + blockIdx.x / heads * 10;
  const int batch = tile[0], first = tile[1], count = tile[2], length = tile[4], position = tile[5];
  const int from = tile[6], to = tile[7], left = tile[8], right = tile[9];
  const Rows<Out> queries(q, q_strides, batch, head, first);
  const Rows<Out> keys(k, k_strides, batch, kv, tile[3]), values(v, v_strides, batch, kv, tile[3]);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp * 16 + lane / 4;  // and the row eight further down
  // Exponents are powers of two; a cap makes c * tanh(x / c) of the scores first.
  const float to_power = Cap ? 1.44269504f * numbers[1] : fabsf(numbers[0]) * 1.44269504f;
  const float to_cap = Cap ? 2.0f * 1.44269504f * numbers[0] / numbers[1] : 0.0f;
  float sum[Dh / 2], most[2] = {nothing, nothing}, total[2] = {0.0f, 0.0f};
  unsigned int weight[kKeys / 4];
  #pragma unroll
  for (int i = 0; i < Dh / 2; ++i) sum[i] = 0.0f;

  // Weights of the scores of keys from `at` on, and by how much what is summed so far shrinks.
  const auto weigh = [&](float (&score)[kKeys / 2], int at, float (&shrink)[2]) {
    if (Cap) {
      #pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        score[i] = 1.0f - 2.0f * reciprocal(1.0f + power_of_two(score[i] * to_cap));
      }
    }
    if (!Cap && numbers[0] < 0.0f) {
      // The largest score is looked for before it is scaled.
      #pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) score[i] = -score[i];
    }
    const int top = position + warp * 16;
    const bool whole = at + kKeys <= length && at >= top + 15 - left && at + kKeys - 1 <= top + right;
    if (!whole) {
      #pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = at + i / 4 * 8 + lane % 4 * 2 + i % 2, mine = position + row + i / 2 % 2 * 8;
        if (key >= length || key < mine - left || key > mine + right) score[i] = nothing;
      }
    }
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = most[half];
      #pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        largest = fmaxf(largest, fmaxf(score[4 * i + 2 * half], score[4 * i + 2 * half + 1]));
      }
      largest = most_of_row(largest);
      // A row that has seen nothing yet.
      const float base = largest == nothing ? 0.0f : largest * to_power;
      shrink[half] = power_of_two(most[half] * to_power - base);
      most[half] = largest;
      total[half] *= shrink[half];
      #pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        #pragma unroll
        for (int j = 4 * i + 2 * half; j < 4 * i + 2 * half + 2; ++j) {
          score[j] = power_of_two(score[j] * to_power - base);
          total[half] += score[j];
        }
      }
    }
  };
  const auto pack = [&](const float (&score)[kKeys / 2]) {
    #pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) weight[i] = both<kBrain>(score[2 * i], score[2 * i + 1]);
  };

  if (from < to) {
    queries.template copy<Dh, kQueries, kThreads>(q_tile, 0, count);
    keys.template copy<Dh, kKeys, kThreads>(k_tiles, from, length - from);
    commit_copies();
    values.template copy<Dh, kKeys, kThreads>(v_tiles, from, length - from);
    if (from + kKeys < to) {
      keys.template copy<Dh, kKeys, kThreads>(k_tiles + kKeys * Dh, from + kKeys, length - from - kKeys);
    }
    commit_copies();
    copies_done<1>();
    shared_is_written();
    __syncthreads();
    {
      float score[kKeys / 2], shrink[2];
      start_scores<kBrain, Dh, kQueries, kKeys>(score, q_tile, k_tiles);
      products_done<0>(score);
      weigh(score, from, shrink);
      pack(score);
    }
    int stage = 0;
    for (int at = from + kKeys; at < to; at += kKeys, stage ^= 1) {
      copies_done<0>();
      shared_is_written();
      __syncthreads();
      const int next = at + kKeys;
      float score[kKeys / 2], shrink[2];
      start_scores<kBrain, Dh, kQueries, kKeys>(score, q_tile, k_tiles + (stage ^ 1) * kKeys * Dh);
      start_values<kBrain, Dh, kKeys>(sum, weight, v_tiles + stage * kKeys * Dh);
      // After the products are under way, for which threads would wait otherwise.
      if (next < to) keys.template copy<Dh, kKeys, kThreads>(k_tiles + stage * kKeys * Dh, next, length - next);
      values.template copy<Dh, kKeys, kThreads>(v_tiles + (stage ^ 1) * kKeys * Dh, at, length - at);
      commit_copies();
      products_done<1>(score);
      weigh(score, at, shrink);
      products_done<0>(sum);
      #pragma unroll
      for (int i = 0; i < Dh / 2; ++i) sum[i] *= shrink[i / 2 % 2];
      pack(score);
    }
    copies_done<0>();
    shared_is_written();
    __syncthreads();
    start_values<kBrain, Dh, kKeys>(sum, weight, v_tiles + stage * kKeys * Dh);
    products_done<0>(sum);
  }

  #pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int mine = row + half * 8;
    const float all = sum_of_row(total[half]), share = all > 0.0f ? 1.0f / all : 0.0f;
    if (mine < count) {
      const long long token = static_cast<long long>(batch) * q_shape[2] + first + mine;
      Out* into = out + (token * heads + head) * Dh + lane % 4 * 2;
      #pragma unroll
      for (int i = 0; i < Dh / 8; ++i) {
        *reinterpret_cast<unsigned int*>(into + i * 8) =
            both<kBrain>(sum[4 * i + 2 * half] * share, sum[4 * i + 2 * half + 1] * share);
      }
    }
  }
"""


def header(units: str, head_dim: int, keys: int) -> str:
    """Everything before the body: instructions, layout and products."""
    if units == "wgmma":
        return INSTRUCTIONS + LAYOUT + warpgroup_instructions(head_dim, keys) + WARPGROUP
    return INSTRUCTIONS + LAYOUT + WARP_INSTRUCTIONS + WARP
