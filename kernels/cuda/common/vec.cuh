// 16 bytes of one element type: the unit in which elementwise kernels read and write global memory.
#pragma once
#include "../ptx/memory.cuh"
#include "types.cuh"

namespace pagoda {

constexpr int kVecBytes = 16;

template <typename T> struct Vec {
  static constexpr int kSize = kVecBytes / sizeof(T);
  alignas(kVecBytes) T elems[kSize];

  // Element offsets are 64 bit: rows times columns passes 2^31.
  __device__ __forceinline__ static Vec load(const T *base_gmem, int64_t vec_idx) {
    Vec v;
    *reinterpret_cast<uint4 *>(v.elems) = ptx::load_16b(base_gmem + vec_idx * kSize);
    return v;
  }
  __device__ __forceinline__ void store(T *base_gmem, int64_t vec_idx) const {
    ptx::store_16b(base_gmem + vec_idx * kSize, *reinterpret_cast<const uint4 *>(elems));
  }
};

// One element that an earlier kernel may have written (common/launch.cuh, rule 3).
__device__ __forceinline__ float load_fresh(const float *gmem) { return __uint_as_float(ptx::load_4b(gmem)); }
__device__ __forceinline__ bf16 load_fresh(const bf16 *gmem) { return __ushort_as_bfloat16(ptx::load_2b(gmem)); }

} // namespace pagoda
