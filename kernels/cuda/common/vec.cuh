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

// Eight elements, 16 bytes of a 16-bit type, as f32: what kernels hold that read and write different types.
constexpr int kOctet = 8;

template <typename T> __device__ __forceinline__ void load_octet(float (&v)[kOctet], const T *base_gmem, int64_t octet_idx) {
  using V = Vec<T>;
#pragma unroll
  for (int i = 0; i < kOctet / V::kSize; ++i) {
    const V part = V::load(base_gmem, octet_idx * (kOctet / V::kSize) + i);
#pragma unroll
    for (int e = 0; e < V::kSize; ++e) v[i * V::kSize + e] = to_f32(part.elems[e]);
  }
}

template <typename T> __device__ __forceinline__ void store_octet(T *base_gmem, int64_t octet_idx, const float (&v)[kOctet]) {
  using V = Vec<T>;
#pragma unroll
  for (int i = 0; i < kOctet / V::kSize; ++i) {
    V part;
#pragma unroll
    for (int e = 0; e < V::kSize; ++e) part.elems[e] = from_f32<T>(v[i * V::kSize + e]);
    part.store(base_gmem, octet_idx * (kOctet / V::kSize) + i);
  }
}

} // namespace pagoda
