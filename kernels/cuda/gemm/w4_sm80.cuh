// Product with 4-bit weights for every GPU from sm_80 on, up to 64 tokens: out[t, i] = sum_c x[t, c] * w[i, c], w in tiles of 16 x 64 (pagoda_w4.h).
//
// A CTA walks over tile rows. Its warps share the columns of one: warp v takes those of turn 0, 1, ... at v kSteps .. of every
// kWarps * kSteps, codes in registers one turn ahead, x straight from L2. Their sums are added in order of warp: the order of additions of
// an output depends on k alone.
//
//   turn:  | warp 0: kSteps tiles | warp 1: kSteps tiles | ...
//
// The fallback: no ring, and x is read again for each tile row.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/mma.cuh"
#include "w4_factors.cuh"
#include "w4_output.cuh"

namespace pagoda {

template <int kTiles, W4Scaling kScale> struct W4Sm80 {
  static constexpr int kTokenTiles = kTiles; // of 8 tokens
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kSteps = 4; // tiles a warp has under way
  static constexpr W4Scaling kScaling = kScale;
  static constexpr int kSumStride = W4Tile::kRows + 4; // floats of a token; the 4 keeps a warp's stores in different banks
  static constexpr int kSumBytes = kWarps * 8 * kTokenTiles * kSumStride * 4;
};

// One warp: sums += the tile at column `col` times x, straight from L2.
template <typename Kernel>
__device__ __forceinline__ void w4_sm80_multiply(float (&sums)[Kernel::kTokenTiles][4], const pagoda_w4_gemm_params &p, const W4Lane<Kernel::kScaling> &mine, const uint8_t *tile_gmem,
                                                 uint4 codes, int col, int lane) {
  constexpr int kTokenTiles = Kernel::kTokenTiles, kSteps = kScaledSteps<Kernel::kScaling>;
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  const bf16 *x_gmem = static_cast<const bf16 *>(p.x) + col * W4Tile::kCols + lane % 4 * 2;
#pragma unroll
  for (int first = 0; first < 4; first += kSteps) {
    const W4LaneFactors<Kernel::kScaling> factors = mine.factors(tile_gmem, first);
    float part[kTokenTiles][4] = {};
#pragma unroll
    for (int j = first; j < first + kSteps; ++j) {
      uint32_t a[4];
      mine.decode(a, words[j], factors);
#pragma unroll
      for (int q = 0; q < kTokenTiles; ++q) {
        const bf16 *row_gmem = x_gmem + static_cast<int64_t>(min(q * 8 + lane / 4, p.num_tokens - 1)) * p.w.k + j * 16;
        ptx::mma_bf16(part[q], a[0], a[1], a[2], a[3], ptx::load_4b(row_gmem), ptx::load_4b(row_gmem + 8));
      }
    }
#pragma unroll
    for (int q = 0; q < kTokenTiles; ++q) factors.add(sums[q], part[q]);
  }
}

// One warp: sums += its columns of tile row `row` times x.
template <typename Kernel>
__device__ __forceinline__ void w4_sm80_walk(float (&sums)[Kernel::kTokenTiles][4], const pagoda_w4_gemm_params &p, const W4Lane<Kernel::kScaling> &mine, const W4Tile &tile, int row, int warp,
                                             int lane) {
  constexpr int kSteps = Kernel::kSteps, kTurn = Kernel::kWarps * kSteps;
  auto at = [&](int col) { return static_cast<const uint8_t *>(p.w.tiles) + tile.offset(row, col); };
  auto load = [&](int col) { return col < tile.num_cols ? ptx::load_16b(at(col) + lane * 16) : make_uint4(0, 0, 0, 0); };
  uint4 next[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) next[s] = load(warp * kSteps + s);
  for (int turn = 0; turn < tile.num_cols; turn += kTurn) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int col = turn + warp * kSteps + s;
      const uint4 codes = next[s];
      next[s] = load(col + kTurn);
      if (col < tile.num_cols) w4_sm80_multiply<Kernel>(sums, p, mine, at(col), codes, col, lane);
    }
  }
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) w4_sm80_kernel(const __grid_constant__ pagoda_w4_gemm_params p, const __grid_constant__ W4Book book) {
  extern __shared__ __align__(128) unsigned char table_smem[];
  float *sums_smem = reinterpret_cast<float *>(table_smem + kPairTableBytes);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  constexpr int kTokens = 8 * Kernel::kTokenTiles, kStride = Kernel::kSumStride;
  fill_pair_table<Kernel::kWarps>(table_smem, book, warp, lane);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  __syncthreads();
  const W4Tile tile(p.w);
  const W4Lane<Kernel::kScaling> mine(tile, table_smem, lane);
  const int rows = p.gated ? 8 : W4Tile::kRows;
  for (int tile_row = blockIdx.x; tile_row < w4_row_tiles(p.w); tile_row += gridDim.x) {
    float sums[Kernel::kTokenTiles][4] = {};
    w4_sm80_walk<Kernel>(sums, p, mine, tile, tile_row, warp, lane);
#pragma unroll
    for (int q = 0; q < Kernel::kTokenTiles; ++q) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums_smem[(warp * kTokens + q * 8 + lane % 4 * 2 + e % 2) * kStride + lane / 4 + e / 2 * 8] = sums[q][e];
    }
    __syncthreads();
    for (int j = threadIdx.x; j < rows * p.num_tokens; j += Kernel::kThreads) {
      const int row = j % rows, token = j / rows;
      float sum = 0.0f, up_sum = 0.0f;
#pragma unroll
      for (int v = 0; v < Kernel::kWarps; ++v) {
        sum += sums_smem[(v * kTokens + token) * kStride + row];
        if (p.gated) up_sum += sums_smem[(v * kTokens + token) * kStride + row + 8];
      }
      W4Output out;
      out.place(p, tile_row, row, token);
      out.read(p);
      out.write(p, sum * book.factor, up_sum * book.factor);
    }
    __syncthreads(); // the sums have been read
  }
}

} // namespace pagoda
