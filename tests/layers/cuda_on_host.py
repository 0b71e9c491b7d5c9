"""Run archport's CUDA kernels on a CPU, thread by thread, to check what they compute where there is no GPU.

Every CUDA thread of a block is a thread of the host; barriers and shuffles are barriers. Slow, and exact.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

SHIM = """
#include <barrier>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>
#include <algorithm>
using std::min;
using std::exp;
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };
static thread_local uint3 threadIdx, blockIdx;
constexpr int kBlock = THREADS;
static std::barrier<> block_barrier(kBlock);
static std::vector<std::barrier<>*> warp_barriers;
static float exchange[kBlock];
static void __syncthreads() { block_barrier.arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float value, int mask) {
  std::barrier<>& warp = *warp_barriers[threadIdx.x / 32];
  exchange[threadIdx.x] = value;
  warp.arrive_and_wait();
  const float other = exchange[threadIdx.x ^ mask];
  warp.arrive_and_wait();
  return other;
}
"""

LAUNCH = """
extern "C" void launch(PARAMETERS, int blocks_x, int blocks_y) {
  for (int i = 0; i < kBlock / 32; ++i) warp_barriers.push_back(new std::barrier<>(32));
  for (int by = 0; by < blocks_y; ++by)
    for (int bx = 0; bx < blocks_x; ++bx) {
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < kBlock; ++t)
        threads.emplace_back([=] {
          threadIdx = {t, 0, 0};
          blockIdx = {static_cast<unsigned>(bx), static_cast<unsigned>(by), 0};
          kernel(ARGUMENTS);
        });
      for (auto& thread : threads) thread.join();
    }
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
):
    """A function (arrays by name, shape, blocks) that runs a kernel over float32 arrays.

    Args:
        shape_of: the input whose shape the kernel reads.
        whole: names of int32 arrays.
    """
    shape = f"{shape_of}_shape"
    parameters = ", ".join(
        [*(f"{'int' if name in whole else 'float'}* {name}" for name in names), f"const int* {shape}"]
    )
    fixed = "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items())
    code = SHIM.replace("THREADS", str(threads)) + fixed + "using Out = float;\n" + header
    code += f"static void kernel({parameters}) {{\n{source}\n}}\n"
    launch = LAUNCH.replace("PARAMETERS", parameters).replace("ARGUMENTS", ", ".join([*names, shape]))
    (folder / "kernel.cpp").write_text(code + launch)
    library = folder / "kernel.so"
    command = ["g++", "-std=c++20", "-O1", "-w", "-pthread", "-shared", "-fPIC", "-o", library, folder / "kernel.cpp"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    launch_c = ctypes.CDLL(str(library)).launch

    def run(arrays: dict[str, np.ndarray], q_shape: tuple[int, ...], blocks: tuple[int, int]) -> None:
        pointers = [arrays[name].ctypes.data_as(ctypes.c_void_p) for name in names]
        launch_c(*pointers, (ctypes.c_int * len(q_shape))(*q_shape), *blocks)

    return run
