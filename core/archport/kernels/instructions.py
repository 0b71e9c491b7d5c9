"""CUDA text that several kernels begin with: instructions that a host has not, as functions.

Tests run kernels on a host with functions of the same names in place of these.
"""

from __future__ import annotations

ADDRESS = """
__device__ __forceinline__ unsigned int shared_address(const void* place) {
  return static_cast<unsigned int>(__cvta_generic_to_shared(place));
}
"""

# A product of one warp.
MULTIPLY = """
// sum (16 x 8) += a (16 x 16) b (16 x 8)
template <bool Brain>
__device__ __forceinline__ void multiply(
    float (&sum)[4], const unsigned int (&a)[4], unsigned int b0, unsigned int b1) {
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

# What a softmax needs.
POWERS = """
// Two elements in one word, the first in its low half.
template <bool Brain>
__device__ __forceinline__ unsigned int both(float first, float second) {
  unsigned int word;
  if constexpr (Brain) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  }
  return word;
}
__device__ __forceinline__ float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
__device__ __forceinline__ float reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}
"""
