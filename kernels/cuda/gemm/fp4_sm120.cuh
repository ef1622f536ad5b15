// Product of many tokens in NVFP4, compute capability 12.x: out[t, i] = act(sum_c x[t, c] * w[i, c] + bias[i]) + residual[t, i].
//
// Operand a of mma.m16n8k64 is a tile of 16 rows of w and 64 columns (pagoda_w4.h, quant/fp4_fragment.cuh), operand b are 8 tokens. A CTA has
// 8 tile rows and 128 tokens, a warp two tile rows and half of the tokens. 64 columns at a time come through a ring in shared memory:
//
//   stage:  | 8 tiles: 640 bytes each | columns 0..32 of 128 tokens: 16 bytes each | columns 32..64 | scales: 4 bytes a token |
//
// Scales of w are an eighth of the f16 in the tiles, so that the largest is below 256; the factor of the sums makes up for it.
//
// No GPU has run it. Layouts of operands and scales as in CUTLASS's SM120_16x8x64_TN_VS (BSD-3-Clause). Roof: the tensor core; for 64 columns
// a warp loads 2 tiles and 64 tokens from shared memory and issues 16 mma. 128 registers and 38 KB: two CTAs a multiprocessor.
#pragma once
#include "../common/launch.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/mma.cuh"
#include "../quant/fp4_fragment.cuh"
#include "codes_w8.cuh"
#include "w4_output.cuh"

namespace pagoda {

struct Fp4Gemm {
  static constexpr int kThreads = 256;
  static constexpr int kRowTiles = 8, kTokens = 128; // of a CTA
  static constexpr int kWarpTiles = 2, kWarpTokens = 64;
  static constexpr int kStages = 4;
  static constexpr int kScales = 4; // of a row in a tile
  static constexpr int kTileBytes = W4Tile::kCodeBytes + kScales * W4Tile::kRows * 2;
  static constexpr int kCopyBytes = 16; // half of a token's codes
  static constexpr int kCodesOffset = kRowTiles * kTileBytes;
  static constexpr int kScalesOffset = kCodesOffset + 2 * kTokens * kCopyBytes;
  static constexpr int kStageBytes = kScalesOffset + kTokens * 4;
  static_assert(kStages * kStageBytes <= 48 << 10, "static shared memory, by which `has_body` knows that there is a body");
  static_assert(kTileBytes % kCopyBytes == 0 && kStageBytes % kCopyBytes == 0, "whole copies");
  static_assert(kThreads / 32 == kRowTiles / kWarpTiles * (kTokens / kWarpTokens), "every warp has tiles and tokens");

  // What the scales of w are divided by.
  static constexpr float kScaleUnit = 8.0f;
};

#ifdef PAGODA_HAS_MMA_FP4

// Copies of 64 columns to a stage, zeros for rows and tokens that do not exist.
__device__ __forceinline__ void fp4_fill(uint32_t stage_smem, const pagoda_fp4_gemm_params &p, const W4Tile &tile, int first_tile, int first_token, int col) {
  using K = Fp4Gemm;
  constexpr int kTileCopies = K::kTileBytes / K::kCopyBytes;
  if (col < tile.num_cols) {
    for (int i = threadIdx.x; i < K::kRowTiles * kTileCopies; i += K::kThreads) {
      const int row = first_tile + i / kTileCopies;
      const bool exists = row < w4_row_tiles(p.w);
      const uint8_t *tile_gmem = static_cast<const uint8_t *>(p.w.tiles) + tile.offset(exists ? row : 0, col);
      ptx::copy_16b_async(stage_smem + i * K::kCopyBytes, tile_gmem + i % kTileCopies * K::kCopyBytes, exists);
    }
    for (int i = threadIdx.x; i < 2 * K::kTokens; i += K::kThreads) {
      const int token = first_token + i / 2, half = i % 2;
      const bool exists = token < p.num_tokens;
      const uint8_t *codes_gmem = p.codes + static_cast<int64_t>(exists ? token : 0) * (p.w.k / 2) + col * 32 + half * K::kCopyBytes;
      ptx::copy_16b_async(stage_smem + K::kCodesOffset + (half * K::kTokens + i / 2) * K::kCopyBytes, codes_gmem, exists);
    }
    if (threadIdx.x < K::kTokens / 4) {
      const int token = first_token + threadIdx.x * 4;
      const bool exists = token < p.num_tokens; // up to three behind the last one are never stored
      const uint8_t *scales_gmem = p.scales + (static_cast<int64_t>(col) * p.ld_scales + (exists ? token : 0)) * 4;
      ptx::copy_16b_async(stage_smem + K::kScalesOffset + threadIdx.x * K::kCopyBytes, scales_gmem, exists);
    }
  }
  ptx::commit_copies();
}

// Operand a and its scales, of a tile in shared memory.
__device__ __forceinline__ uint32_t fp4_load_tile(uint32_t (&a)[4], const unsigned char *tile_smem, int lane) {
  constexpr uint32_t kAll = 0xffffffffu;
  const int t = lane % 4;
  const uint4 words = *reinterpret_cast<const uint4 *>(tile_smem + lane * 16);
  const uint2 given = fp4_given(words, t);
  fp4_operand(a, words, make_uint2(__shfl_xor_sync(kAll, given.x, 2), __shfl_xor_sync(kAll, given.y, 2)), t);
  // Group t of rows g and g + 8.
  const uint32_t halves = *reinterpret_cast<const uint32_t *>(tile_smem + W4Tile::kCodeBytes + t * W4Tile::kRows * 2 + lane / 4 * 4);
  const float2 scales = __half22float2(*reinterpret_cast<const __half2 *>(&halves));
  const uint32_t codes = e4m3_pair(scales.x / Fp4Gemm::kScaleUnit, scales.y / Fp4Gemm::kScaleUnit);
  const uint32_t pair = fp4_scale_pair(codes, __shfl_xor_sync(kAll, codes, 1), t);
  return pair | __shfl_xor_sync(kAll, pair, 2) << 16; // used where t is 0 or 1
}

// One warp: sums += 64 columns of its tiles times its tokens.
__device__ __forceinline__ void fp4_multiply(float (&sums)[Fp4Gemm::kWarpTiles][Fp4Gemm::kWarpTokens / 8][4], const unsigned char *stage_smem, int warp_tile, int warp_token, int lane) {
  using K = Fp4Gemm;
  uint32_t a[K::kWarpTiles][4], a_scales[K::kWarpTiles];
#pragma unroll
  for (int m = 0; m < K::kWarpTiles; ++m) a_scales[m] = fp4_load_tile(a[m], stage_smem + (warp_tile + m) * K::kTileBytes, lane);
  const uint32_t codes_smem = ptx::smem_address(stage_smem + K::kCodesOffset);
#pragma unroll
  for (int q = 0; q < K::kWarpTokens / 8; q += 2) {
    // Halves of 8 tokens, then of the next 8.
    const int token = warp_token + q * 8 + lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
    uint32_t b[4];
    ptx::load_matrix_x4(b, codes_smem + (half * K::kTokens + token) * K::kCopyBytes);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t b_scales = *reinterpret_cast<const uint32_t *>(stage_smem + K::kScalesOffset + (warp_token + (q + e) * 8 + lane / 4) * 4);
#pragma unroll
      for (int m = 0; m < K::kWarpTiles; ++m) ptx::mma_fp4(sums[m][q + e], a[m], b[2 * e], b[2 * e + 1], a_scales[m], b_scales);
    }
  }
}

// One lane: rows g and g + 8 of a tile, two tokens of every eight.
__device__ __forceinline__ void fp4_store(const pagoda_fp4_gemm_params &p, const float (&sums)[Fp4Gemm::kWarpTokens / 8][4], int tile_row, int first_token, int lane) {
  const float w_factor = p.w.scale_factor * Fp4Gemm::kScaleUnit;
#pragma unroll
  for (int q = 0; q < Fp4Gemm::kWarpTokens / 8; ++q) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = first_token + q * 8 + lane % 4 * 2 + e;
      if (token >= p.num_tokens) continue;
      const float factor = load_fresh(p.factors + token) * w_factor;
      const float sum[2] = {sums[q][e] * factor, sums[q][e + 2] * factor};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && p.gated) continue; // the `up` of the first
        W4Output out;
        out.place(p, tile_row, lane / 4 + half * 8, token);
        out.read(p);
        out.write(p, sum[half], sum[1]);
      }
    }
  }
}

#endif

// Grid: blocks of tokens along x, so that those running at once share tiles; of tile rows along y.
__global__ void __launch_bounds__(Fp4Gemm::kThreads, 2) fp4_sm120_kernel(const __grid_constant__ pagoda_fp4_gemm_params p) {
#ifdef PAGODA_HAS_MMA_FP4
  using K = Fp4Gemm;
  __shared__ __align__(128) unsigned char ring_smem[K::kStages * K::kStageBytes];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kTileWarps = K::kRowTiles / K::kWarpTiles;
  const int warp_tile = warp % kTileWarps * K::kWarpTiles, warp_token = warp / kTileWarps * K::kWarpTokens;
  const int first_tile = blockIdx.y * K::kRowTiles, first_token = blockIdx.x * K::kTokens;
  const W4Tile tile(p.w);
  wait_then_allow_next();
  auto fill = [&](int col) { fp4_fill(ptx::smem_address(ring_smem + col % K::kStages * K::kStageBytes), p, tile, first_tile, first_token, col); };
  float sums[K::kWarpTiles][K::kWarpTokens / 8][4] = {};
  for (int col = 0; col < K::kStages - 1; ++col) fill(col);
  for (int col = 0; col < tile.num_cols; ++col) {
    ptx::wait_copies<K::kStages - 2>();
    __syncthreads(); // the stage is there, and all have read the one before
    fill(col + K::kStages - 1);
    fp4_multiply(sums, ring_smem + col % K::kStages * K::kStageBytes, warp_tile, warp_token, lane);
  }
#pragma unroll
  for (int m = 0; m < K::kWarpTiles; ++m) fp4_store(p, sums[m], first_tile + warp_tile + m, first_token + warp_token, lane);
#endif
}

} // namespace pagoda
