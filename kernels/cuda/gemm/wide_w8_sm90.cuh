// Product of many tokens for sm_90a, both operands e4m3: out[t, i] = x_scale[t] * w_scale[i] * sum_k x[t, k] * w[i, k].
//
// wide_sm90.cuh with boxes of 128 k: as many bytes, twice the products. Scales of rows multiply the finished sums.
//
// Scales of blocks (x: of 128 columns of a token, w: of 128 x 128) multiply the sums of each box on their way into f32 registers, as in
// DeepGEMM (MIT); a tile of 128 rows of w, or of 64 gates and 64 ups, lies in one row of blocks.
//
// The tensor core itself keeps some 14 bits of a sum of e4m3 products; vLLM's kernels do without more as well ("fast accumulation").
#pragma once
#include "../ptx/wgmma_w8.cuh"
#include "wide_sm90.cuh"

namespace pagoda {

template <int kTokens, int kWRows, WideShare kShared, bool kGate, bool kScaleBlocks> struct WideW8Sm90 : WideSm90<kTokens, kWRows, kShared, kGate, false> {
  using Base = WideSm90<kTokens, kWRows, kShared, kGate, false>;
  static constexpr int kBoxCols = 2 * kBoxK;
  static constexpr bool kScaled = !kScaleBlocks, kBlockScales = kScaleBlocks;
  static_assert(!kBlockScales || (kWRows == 128 && kTokens == 128), "sums are held twice");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  __device__ __forceinline__ static void multiply(float (&d)[Base::kTiles][4], uint64_t a, uint64_t b) { ptx::multiply_e4m3(d, a, b); }
#endif
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Scales of a box: of this lane's two tokens, and of the tile's first and last 64 rows of w.
struct BoxScales {
  float x[2], w[2];
};

template <typename T> __device__ __forceinline__ BoxScales load_scales(const pagoda_wide_w8_params &p, const WideTile &tile, int first_row, int box, int lane) {
  const int num_boxes = (p.gemm.k + 127) / 128;
  BoxScales s;
#pragma unroll
  for (int h = 0; h < 2; ++h) s.x[h] = __ldcg(p.x_scales + static_cast<int64_t>(box) * p.ld_x_scales + min(first_row + lane / 4 + 8 * h, tile.row_end - 1));
  s.w[0] = __ldg(p.w_scales + min(tile.w_row, p.gemm.n - 1) / 128 * num_boxes + box);
  s.w[1] = T::kGated ? __ldg(p.w_scales + min(tile.up_row, p.gemm.n - 1) / 128 * num_boxes + box) : s.w[0];
  return s;
}

// The consumers of scales of blocks.
template <typename T>
__device__ __forceinline__ void wide_w8_consume_blocks(const pagoda_wide_w8_params &p, const GroupUnits &groups, uint32_t ring, uint32_t out_smem, uint32_t full, uint32_t empty) {
  const int lane = threadIdx.x % kWarpSize, warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const int num_boxes = (p.gemm.k + T::kBoxCols - 1) / T::kBoxCols;
  WideTiles<T> tiles(p.gemm, groups);
  WideTile tile;
  RingSlot slot;
  while (tiles.next(tile)) {
    const int first_row = tile.row + warp / 4 * (T::kRows / 2) + warp % 4 * 16;
    if (tile.row + warp / 4 * (T::kRows / 2) >= tile.row_end) {
      wide_skip<T>(num_boxes, slot, full, empty, lane);
      continue;
    }
    WideSums<T> total = {};
    BoxScales scales = load_scales<T>(p, tile, first_row, 0, lane);
    for (int box = 0; box < num_boxes; ++box) {
      const BoxScales next = load_scales<T>(p, tile, first_row, min(box + 1, num_boxes - 1), lane);
      WideSums<T> acc = {};
      wide_multiply<T>(acc, 1, slot, ring, full, empty, warp / 4, lane);
#pragma unroll
      for (int t = 0; t < T::kTiles; ++t) {
        const float w = scales.w[t >= T::kTiles / 2];
#pragma unroll
        for (int e = 0; e < 4; ++e) total[t][e] = fmaf(acc[t][e], scales.x[e / 2] * w, total[t][e]);
      }
      scales = next;
    }
    wide_store<T>(p.gemm, WideScales{}, total, tile, out_smem + warp * T::kWarpOutBytes, warp, lane);
  }
}

#endif

template <typename T>
__global__ void __launch_bounds__(T::kThreads, 1)
    wide_w8_sm90_kernel(const __grid_constant__ pagoda_wide_w8_params p, const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wide_run<T>(p.gemm, &w_map, &x_map, [&](const GroupUnits &groups, uint32_t ring, uint32_t out_smem, uint32_t full, uint32_t empty) {
    if constexpr (T::kBlockScales) wide_w8_consume_blocks<T>(p, groups, ring, out_smem, full, empty);
    else wide_consume<T>(p.gemm, WideScales{p.x_scales, p.w_scales}, groups, ring, out_smem, full, empty);
  });
#endif
}

} // namespace pagoda
