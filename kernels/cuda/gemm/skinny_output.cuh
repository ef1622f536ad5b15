// The end of every skinny product: bias, gate, residual, rounding, store. Shared by the three kernels, so that they round alike.
#pragma once
#include "../common/types.cuh"
#include "pagoda.h"

namespace pagoda {

constexpr int kMaxSkinnyTokens = 128;

__host__ __device__ __forceinline__ int skinny_out_cols(const pagoda_skinny_gemm_params &p) { return p.gated ? p.n / 2 : p.n; }

__host__ __device__ __forceinline__ int wide_out_cols(const pagoda_wide_gemm_params &p) { return p.gated ? p.n / 2 : p.n; }

__device__ __forceinline__ float silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }

// Turns the sums of output column i (and, when gated, of its `up` row) into the value before the rounding.
__device__ __forceinline__ float skinny_value(const pagoda_skinny_gemm_params &p, int i, float sum, float up_sum) {
  if (p.bias) sum += p.bias[i];
  if (!p.gated) return sum;
  if (p.bias) up_sum += p.bias[p.n / 2 + i];
  return silu(sum) * up_sum;
}

template <typename T> __device__ __forceinline__ void skinny_store(const pagoda_skinny_gemm_params &p, int64_t offset, float v) {
  if (p.residual) v += to_f32(static_cast<const T *>(p.residual)[offset]);
  static_cast<T *>(p.out)[offset] = from_f32<T>(v);
}

// One output.
__device__ __forceinline__ void skinny_finish(const pagoda_skinny_gemm_params &p, int token, int i, float sum, float up_sum) {
  const float v = skinny_value(p, i, sum, up_sum);
  const int64_t offset = static_cast<int64_t>(token) * p.ld_out + i;
  if (p.out_dtype == PAGODA_F32) skinny_store<float>(p, offset, v);
  else skinny_store<bf16>(p, offset, v);
}

// Four outputs side by side; `whole` says that all four exist and that their address allows one access.
__device__ __forceinline__ void skinny_finish4(const pagoda_skinny_gemm_params &p, int token, int i, float4 sums, float4 up_sums, bool whole) {
  const float sum[4] = {sums.x, sums.y, sums.z, sums.w};
  const float up[4] = {up_sums.x, up_sums.y, up_sums.z, up_sums.w};
  if (!whole) {
    const int cols = skinny_out_cols(p);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (i + e < cols) skinny_finish(p, token, i + e, sum[e], up[e]);
    return;
  }
  float v[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = skinny_value(p, i + e, sum[e], up[e]);
  const int64_t offset = static_cast<int64_t>(token) * p.ld_out + i;
  if (p.out_dtype == PAGODA_F32) {
    if (p.residual) {
      const float4 r = *reinterpret_cast<const float4 *>(static_cast<const float *>(p.residual) + offset);
      v[0] += r.x, v[1] += r.y, v[2] += r.z, v[3] += r.w;
    }
    *reinterpret_cast<float4 *>(static_cast<float *>(p.out) + offset) = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
  union Four {
    uint2 bits;
    bf16 elems[4];
    __device__ Four() : bits() {}
  } r, o;
  if (p.residual) r.bits = *reinterpret_cast<const uint2 *>(static_cast<const bf16 *>(p.residual) + offset);
#pragma unroll
  for (int e = 0; e < 4; ++e) o.elems[e] = from_f32<bf16>(p.residual ? v[e] + to_f32(r.elems[e]) : v[e]);
  *reinterpret_cast<uint2 *>(static_cast<bf16 *>(p.out) + offset) = o.bits;
}

// Whether groups of four outputs can be stored at once everywhere in this product.
__device__ __forceinline__ bool skinny_stores_fours(const pagoda_skinny_gemm_params &p) {
  const uint64_t align = p.out_dtype == PAGODA_F32 ? 16 : 8;
  const uint64_t addresses = reinterpret_cast<uint64_t>(p.out) | reinterpret_cast<uint64_t>(p.residual);
  return p.ld_out % 4 == 0 && addresses % align == 0;
}

} // namespace pagoda
