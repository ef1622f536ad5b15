// The end of every product with 4-bit weights: factor, bias, gate, residual, rounding, store.
#pragma once
#include "../common/vec.cuh"
#include "../quant/w4_tile.cuh"
#include "skinny_output.cuh"

namespace pagoda {

constexpr int kMaxW4Tokens = 64;

// Of any product with tiles, as the functions below: fields of one meaning have one name.
template <typename Params> __host__ __device__ __forceinline__ int w4_out_cols(const Params &p) { return p.gated ? p.w.n / 2 : p.w.n; }

// One output: where it goes and what is added to it.
struct W4Output {
  int64_t offset = -1; // in out; negative: there is no such output
  float bias = 0.0f, up_bias = 0.0f, residual = 0.0f;

  // Row `row` of tile `tile`; when gated, row + 8 is its `up`. May come before the wait for earlier kernels.
  template <typename Params> __device__ __forceinline__ void place(const Params &p, int tile, int row, int token) {
    const int col = w4_matrix_row(p.w, tile, row);
    if (tile >= w4_row_tiles(p.w) || col >= p.w.n) return;
    offset = static_cast<int64_t>(token) * p.ld_out + col;
    if (p.bias) bias = p.bias[col];
    if (p.bias && p.gated) up_bias = p.bias[p.w.n / 2 + col];
  }
  // After it.
  template <typename Params> __device__ __forceinline__ void read(const Params &p) {
    if (!p.residual || offset < 0) return;
    residual = p.out_dtype == PAGODA_F32 ? load_fresh(static_cast<const float *>(p.residual) + offset) : to_f32(load_fresh(static_cast<const bf16 *>(p.residual) + offset));
  }
  // Without the residual.
  template <typename Params> __device__ __forceinline__ float value(const Params &p, float sum, float up_sum) const {
    return p.gated ? silu(sum + bias) * (up_sum + up_bias) : sum + bias;
  }
  template <typename Params> __device__ __forceinline__ void write(const Params &p, float sum, float up_sum) const {
    if (offset < 0) return;
    const float v = value(p, sum, up_sum) + residual;
    if (p.out_dtype == PAGODA_F32) static_cast<float *>(p.out)[offset] = v;
    else static_cast<bf16 *>(p.out)[offset] = from_f32<bf16>(v);
  }
};

// Whether four outputs of neighbouring rows of a tile, from a multiple of four on, can be stored at once everywhere in this product.
__device__ __forceinline__ bool w4_stores_fours(const pagoda_w4_gemm_params &p) {
  const uint64_t align = p.out_dtype == PAGODA_F32 ? 16 : 8;
  return p.w.n % 4 == 0 && p.ld_out % 4 == 0 && (reinterpret_cast<uint64_t>(p.out) | reinterpret_cast<uint64_t>(p.residual)) % align == 0;
}

// Four outputs, rows `row` .. `row` + 3 of a tile.
__device__ __forceinline__ void w4_write4(const pagoda_w4_gemm_params &p, int tile, int row, int token, const float (&sum)[4], const float (&up_sum)[4], bool whole) {
  W4Output out[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) out[e].place(p, tile, row + e, token);
  if (!whole) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      out[e].read(p);
      out[e].write(p, sum[e], up_sum[e]);
    }
    return;
  }
  if (out[0].offset < 0) return;
  if (p.out_dtype == PAGODA_F32) {
    uint4 residual = make_uint4(0, 0, 0, 0);
    if (p.residual) residual = ptx::load_16b(static_cast<const float *>(p.residual) + out[0].offset);
    const uint32_t bits[4] = {residual.x, residual.y, residual.z, residual.w};
    uint32_t v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = __float_as_uint(out[e].value(p, sum[e], up_sum[e]) + __uint_as_float(bits[e]));
    ptx::store_16b(static_cast<float *>(p.out) + out[0].offset, make_uint4(v[0], v[1], v[2], v[3]));
    return;
  }
  uint2 residual = make_uint2(0, 0);
  if (p.residual) residual = ptx::load_8b(static_cast<const bf16 *>(p.residual) + out[0].offset);
  const float r[4] = {low_f32(residual.x), high_f32(residual.x), low_f32(residual.y), high_f32(residual.y)};
  float v[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = out[e].value(p, sum[e], up_sum[e]) + r[e];
  *reinterpret_cast<uint2 *>(static_cast<bf16 *>(p.out) + out[0].offset) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

} // namespace pagoda
