"""Run archport's CUDA kernels on a CPU, thread by thread, to check what they compute where there is no GPU.

Every CUDA thread of a block has a stack of its own, and at a barrier or a shuffle the next one goes on: exact, and
without a thread of the host for each. A kernel whose threads wait for one that has ended is ended with a message.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

SHIM = """
#include <algorithm>
#include <bit>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
using std::max;
using std::min;
using std::exp;
static float __int_as_float(unsigned int bits) { return std::bit_cast<float>(bits); }
#define __expf std::exp
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };
static uint3 threadIdx, blockIdx;
constexpr int kBlock = THREADS;
constexpr uint3 blockDim = {kBlock, 1, 1};
struct Lane {
  ucontext_t begin;
  jmp_buf here;
  bool begun, done;
};
constexpr std::size_t kStack = 256 << 10;
static Lane lanes[kBlock];
static jmp_buf all_done;
static std::function<void()> work;
// Jumps back with the signal mask untouched, which swapcontext asks the kernel for at every switch.
[[noreturn]] static void enter(unsigned lane) {
  threadIdx.x = lane;
  if (lanes[lane].begun) _longjmp(lanes[lane].here, 1);
  lanes[lane].begun = true;
  setcontext(&lanes[lane].begin);
  std::abort();
}
// The next of `count` lanes from `first` on that has not ended; this one where all others have.
static unsigned next_lane(unsigned first, unsigned count) {
  for (unsigned step = 1; step < count; ++step) {
    const unsigned lane = first + (threadIdx.x - first + step) % count;
    if (!lanes[lane].done) return lane;
  }
  return threadIdx.x;
}
static void run_lane() {
  work();
  lanes[threadIdx.x].done = true;
  const unsigned lane = next_lane(0, kBlock);
  if (lane == threadIdx.x) _longjmp(all_done, 1);
  enter(lane);
}
struct Barrier {
  unsigned first, count, arrived, passed;
  __attribute__((noinline)) void arrive_and_wait() {
    const unsigned before = passed;
    if (++arrived == count) {
      arrived = 0, ++passed;
      return;
    }
    while (static_cast<volatile unsigned&>(passed) == before) {
      const unsigned lane = next_lane(first, count);
      if (lane == threadIdx.x) {
        std::fputs("a barrier waits for CUDA threads that have ended\\n", stderr);
        std::abort();
      }
      if (_setjmp(lanes[threadIdx.x].here) == 0) enter(lane);
    }
  }
};
static Barrier block_barrier = {0, kBlock};
static Barrier warp_barriers[kBlock / 32];
static float exchange[kBlock];
// What the lanes of a warp show each other.
static unsigned int shown[kBlock][8];
static const unsigned short* rows_shown[kBlock];
static Barrier& warp_barrier() { return warp_barriers[threadIdx.x / 32]; }
static void __syncthreads() { block_barrier.arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float value, int mask) {
  Barrier& warp = warp_barrier();
  exchange[threadIdx.x] = value;
  warp.arrive_and_wait();
  const float other = exchange[threadIdx.x ^ mask];
  warp.arrive_and_wait();
  return other;
}
"""

# The instructions of kernels/varlen.py, for elements of 16 bits in unsigned shorts.
TENSOR_CORES = """
static void copy_async(void* to, const void* from, bool real) {
  if (real) std::memcpy(to, from, 16); else std::memset(to, 0, 16);
}
static void copies_done() {}
static void load_matrices(unsigned int (&into)[4], const unsigned short* row, bool transposed = false) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  rows_shown[threadIdx.x] = row;
  warp_barrier().arrive_and_wait();
  for (int i = 0; i < 4; ++i) {
    const unsigned short* const* matrix = rows_shown + first + 8 * i;
    const int major = lane / 4, minor = lane % 4 * 2;
    const unsigned int low = transposed ? matrix[minor][major] : matrix[major][minor];
    const unsigned int high = transposed ? matrix[minor + 1][major] : matrix[major][minor + 1];
    into[i] = low | high << 16;
  }
  warp_barrier().arrive_and_wait();
}
static void load_transposed(unsigned int (&into)[4], const unsigned short* row) { load_matrices(into, row, true); }
template <bool Brain>
static float wide(unsigned int bits) {
  bits &= 0xffff;
  return Brain ? std::bit_cast<float>(bits << 16)
               : static_cast<float>(std::bit_cast<_Float16>(static_cast<unsigned short>(bits)));
}
template <bool Brain>
static unsigned int narrow(float x) {
  if (!Brain) return std::bit_cast<unsigned short>(static_cast<_Float16>(x));
  const unsigned int bits = std::bit_cast<unsigned int>(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
template <bool Brain>
static unsigned int both(float first, float second) { return narrow<Brain>(first) | narrow<Brain>(second) << 16; }
static float power_of_two(float x) { return std::exp2(x); }
template <bool Brain>
static void multiply(float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  unsigned int* mine = shown[threadIdx.x];
  for (int i = 0; i < 4; ++i) mine[i] = a[i];
  mine[4] = b0, mine[5] = b1;
  warp_barrier().arrive_and_wait();
  const auto part = [](unsigned int word, int which) { return wide<Brain>(which ? word >> 16 : word); };
  for (int j = 0; j < 4; ++j) {
    const int column = lane % 4 * 2 + j % 2;
    for (int k = 0; k < 16; ++k) {
      const float left = part(shown[first + lane / 4 * 4 + k % 8 / 2][j / 2 + k / 8 * 2], k % 2);
      sum[j] += left * part(shown[first + column * 4 + k % 8 / 2][4 + k / 8], k % 2);
    }
  }
  warp_barrier().arrive_and_wait();
}
"""

# The instructions of kernels/flash_source.py, and wgmma by its rules: where the elements of a matrix lie under the
# 128-byte swizzle, with rows or with columns next to each other, and which thread holds what.
FLASH = """
alignas(1024) static unsigned char dynamic_memory[232448];
#define DYNAMIC_SHARED(name) unsigned char* const name = dynamic_memory
static unsigned int shared_address(const void* place) {
  return static_cast<const unsigned char*>(place) - dynamic_memory;
}
static float reciprocal(float x) { return 1.0f / x; }
static void commit_copies() {}
template <int Open>
static void copies_done() {}
template <bool Brain>
static void add_product(float* sum, const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
  multiply<Brain>(*reinterpret_cast<float(*)[4]>(sum), a, b0, b1);
}
"""
WARPGROUP = """
template <int Count>
static void keep(float (&)[Count]) {}
static unsigned long long matrix(const void* place, unsigned long long leading, unsigned long long stride) {
  return (shared_address(place) & 0x3ffff) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1ull << 62;
}
static void open_products() {}
static void commit_products() {}
template <int Open, int Count>
static void products_done(float (&)[Count]) {}
static void shared_is_written() {}
template <bool Brain>
static float in_matrix(unsigned long long at, int row, int k, bool columns) {
  const unsigned start = (at & 0x3fff) << 4, leading = (at >> 16 & 0x3fff) << 4, stride = (at >> 32 & 0x3fff) << 4;
  unsigned byte = columns ? start + row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2
                          : start + row / 8 * stride + row % 8 * 128 + k * 2;
  byte ^= (byte >> 7 & 7) << 4;
  unsigned short bits;
  std::memcpy(&bits, dynamic_memory + byte, 2);
  return wide<Brain>(bits);
}
template <bool Brain, int Count>
static void multiply_rows(float (&sum)[Count], unsigned long long a, unsigned long long b, int more) {
  const int lane = threadIdx.x % 32, top = threadIdx.x % 128 / 32 * 16 + lane / 4;
  for (int i = 0; i < Count; ++i) {
    const int row = top + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (!more) sum[i] = 0;
    for (int k = 0; k < 16; ++k) sum[i] += in_matrix<Brain>(a, row, k, false) * in_matrix<Brain>(b, column, k, false);
  }
}
template <bool Brain, int Count>
static void multiply_columns(float (&sum)[Count], const unsigned int* a, unsigned long long b, int more) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  for (int i = 0; i < 4; ++i) shown[threadIdx.x][i] = a[i];
  warp_barrier().arrive_and_wait();
  for (int i = 0; i < Count; ++i) {
    const int half = i / 2 % 2, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (!more) sum[i] = 0;
    for (int k = 0; k < 16; ++k) {
      const unsigned int word = shown[first + lane / 4 * 4 + k % 8 / 2][half + k / 8 * 2];
      sum[i] += wide<Brain>(k % 2 ? word >> 16 : word) * in_matrix<Brain>(b, column, k, true);
    }
  }
  warp_barrier().arrive_and_wait();
}
"""

# The instructions of kernels/decode_source.py that TENSOR_CORES lacks.
DECODE = """
struct alignas(16) Words { unsigned int word[4]; };
alignas(1024) static unsigned char dynamic_memory[232448];
#define DYNAMIC_SHARED(name) unsigned char* const name = dynamic_memory
static Words load(const void* from) {
  Words words;
  std::memcpy(&words, from, 16);
  return words;
}
static unsigned int low_halves(unsigned int first, unsigned int second) { return first & 0xffff | second << 16; }
static unsigned int high_halves(unsigned int first, unsigned int second) { return first >> 16 | second & 0xffff0000; }
static unsigned int transposed(unsigned int two) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane, row = lane / 4, column = lane % 4 * 2;
  shown[threadIdx.x][0] = two;
  warp_barrier().arrive_and_wait();
  const auto at = [&](int i, int j) { return shown[first + i * 4 + j / 2][0] >> j % 2 * 16 & 0xffff; };
  const unsigned int exchanged = at(column, row) | at(column + 1, row) << 16;
  warp_barrier().arrive_and_wait();
  return exchanged;
}
static float reciprocal(float x) { return 1.0f / x; }
"""

LAUNCH = """
extern "C" void launch(PARAMETERS, int blocks_x, int blocks_y) {
  for (unsigned i = 0; i < kBlock / 32; ++i) warp_barriers[i] = {32 * i, 32};
  char* const stacks = static_cast<char*>(std::malloc(kBlock * kStack));
  work = [=] { kernel(ARGUMENTS); };
  for (int by = 0; by < blocks_y; ++by)
    for (int bx = 0; bx < blocks_x; ++bx) {
      blockIdx = {static_cast<unsigned>(bx), static_cast<unsigned>(by), 0};
      for (unsigned t = 0; t < kBlock; ++t) {
        Lane& lane = lanes[t];
        getcontext(&lane.begin);
        lane.begin.uc_stack.ss_sp = stacks + t * kStack;
        lane.begin.uc_stack.ss_size = kStack;
        makecontext(&lane.begin, run_lane, 0);
        lane.begun = lane.done = false;
      }
      if (_setjmp(all_done) == 0) enter(0);
    }
  std::free(stacks);
}
"""


def build(
    folder: Path,
    source: str,
    header: str,
    names: list[str],
    constants: dict[str, int],
    threads: int,
    *,
    shape_of: str = "q",
    whole: tuple[str, ...] = (),
    halves: tuple[str, ...] = (),
):
    """A function (arrays by name, shape, blocks) that runs a kernel over float32 arrays.

    Args:
        shape_of: the input whose shape the kernel reads.
        whole: names of int32 arrays, and of int64 arrays that end in `_strides`.
        halves: names of arrays of 16 bits; with any, outputs are such arrays.
    """
    shape = f"{shape_of}_shape"
    kinds = {name: "long long" if name.endswith("_strides") else "int" for name in whole}
    kinds |= dict.fromkeys(halves, "unsigned short")
    parameters = ", ".join([*(f"{kinds.get(name, 'float')}* {name}" for name in names), f"const int* {shape}"])
    fixed = "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items())
    fixed += f"using Out = {'unsigned short' if halves else 'float'};\n"
    code = SHIM.replace("THREADS", str(threads)) + fixed + header
    code += f"static void kernel({parameters}) {{\n{source}\n}}\n"
    launch = LAUNCH.replace("PARAMETERS", parameters).replace("ARGUMENTS", ", ".join([*names, shape]))
    (folder / "kernel.cpp").write_text(code + launch)
    library = folder / "kernel.so"
    command = ["g++", "-std=c++20", "-O1", "-w", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o", library]
    subprocess.run([*command, folder / "kernel.cpp"], check=True, capture_output=True, text=True)
    launch_c = ctypes.CDLL(str(library)).launch

    def run(arrays: dict[str, np.ndarray], q_shape: tuple[int, ...], blocks: tuple[int, int]) -> None:
        pointers = [arrays[name].ctypes.data_as(ctypes.c_void_p) for name in names]
        launch_c(*pointers, (ctypes.c_int * len(q_shape))(*q_shape), *blocks)

    return run


def bits_of(x: np.ndarray, brain: bool) -> np.ndarray:
    """Numbers as the bits of bfloat16 (`brain`) or float16."""
    if not brain:
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def value_of(bits: np.ndarray, brain: bool) -> np.ndarray:
    """Those bits as float64."""
    if not brain:
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
