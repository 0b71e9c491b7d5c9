"""CUDA functions around the instructions of tensor cores and asynchronous copies, as source for kernels."""

# What a host has no instructions for; tests put functions of the same names in their place.
INSTRUCTIONS = """
__device__ __forceinline__ unsigned int shared_address(const void* place) {
  return static_cast<unsigned int>(__cvta_generic_to_shared(place));
}
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
  float found;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}
"""
