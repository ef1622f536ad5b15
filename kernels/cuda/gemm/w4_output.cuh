// The end of every product with 4-bit weights: factor, bias, gate, residual, rounding, store.
#pragma once
#include "../common/vec.cuh"
#include "../quant/w4_tile.cuh"
#include "skinny_output.cuh"

namespace pagoda {

constexpr int kMaxW4Tokens = 64;

__host__ __device__ __forceinline__ int w4_out_cols(const pagoda_w4_gemm_params &p) { return p.gated ? p.w.n / 2 : p.w.n; }

// One output: where it goes and what is added to it. What earlier kernels do not write may be read before the wait for them, the residual not.
struct W4Output {
  int64_t offset = -1; // in out; negative: there is no such output
  float bias = 0.0f, up_bias = 0.0f, residual = 0.0f;

  // Of row `row` of tile `tile`; when gated, row + 8 is its `up`.
  __device__ __forceinline__ void read(const pagoda_w4_gemm_params &p, int tile, int row, int token) {
    const int col = w4_matrix_row(p.w, tile, row);
    if (tile >= w4_row_tiles(p.w) || col >= p.w.n) return;
    offset = static_cast<int64_t>(token) * p.ld_out + col;
    if (p.bias) bias = p.bias[col];
    if (p.bias && p.gated) up_bias = p.bias[p.w.n / 2 + col];
    if (!p.residual) return;
    residual = p.out_dtype == PAGODA_F32 ? load_fresh(static_cast<const float *>(p.residual) + offset) : to_f32(load_fresh(static_cast<const bf16 *>(p.residual) + offset));
  }
  __device__ __forceinline__ void write(const pagoda_w4_gemm_params &p, float sum, float up_sum) const {
    if (offset < 0) return;
    float v = sum + bias;
    if (p.gated) v = silu(v) * (up_sum + up_bias);
    v += residual;
    if (p.out_dtype == PAGODA_F32) static_cast<float *>(p.out)[offset] = v;
    else static_cast<bf16 *>(p.out)[offset] = from_f32<bf16>(v);
  }
};

} // namespace pagoda
