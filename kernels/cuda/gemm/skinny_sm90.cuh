// Skinny product for sm_90 and later: out[t, i] = sum_k x[t, k] * w[i, k], up to 128 tokens.
//
// A CTA makes 64 or 128 rows of w against all tokens. One warp keeps a ring of shared memory full with tensor copies (boxes of 64 k, rows of 128
// bytes, swizzled), a warpgroup for every 64 rows eats it: the rows are the m side of a product, the tokens its n side. On sm_90a that is wgmma straight from
// shared memory (with mma.sync, moving 64 tokens' fragments through ldmatrix costs more than HBM does: 107 against 95 us for 37888 x 3584);
// elsewhere mma.sync. Ends of n, k and tokens arrive as zeros, so every shape takes the same path.
//
//   stage:  | w: kBoxes x [kBlockN][64] | x: kBoxes x [kTokens][64] |      full barrier: bytes; empty barrier: one arrival a warp
//   w rows of a tile:  plain  n0 .. n0 + kBlockN;   gated  kBlockN / 2 of gate, then the same of up
//
// Few rows and long k: split_k CTAs form a cluster, each takes a range of boxes, and all add the partial sums of the cluster in rank
// order through distributed shared memory. A range depends on k and split_k alone and every sum runs in order of k, so one token's
// result does not depend on the others. Many rows: split_k is 1, CTAs walk over tiles and the ring runs ahead across their ends.
//
// Rows in groups (experts) with a matrix each: tiles are counted through `offsets` on the device, a tile has up to kTokens of one group.
//
// Weights never change, so the ring is filled before waiting for the previous kernel; x follows after it. In groups both wait for the offsets.
// Bound by memory up to 64 tokens; x is read once a tile and chunk from L2 (kTokens / 64 of the bytes of w). H100, chained launches, of the
// 3150 GB/s that plain reads reach: 0.95 for 37888 x 3584 and 0.92 for 3584 x 18944 at 8 tokens, 0.90 and 0.88 at 64.
// Producer warp and ring as in CUTLASS (BSD-3) and tinygemm2 of TensorRT-LLM (Apache-2.0).
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/tensor_copy.cuh"
#include "../ptx/wgmma.cuh"
#include "groups.cuh"
#include "ring.cuh"
#include "skinny_output.cuh"

namespace pagoda {

constexpr int kSkinnyRows = 64; // of one warpgroup: the m side of its product
constexpr int kMaxSkinnyStages = 8;
constexpr int kMaxSkinnySplit = 8;

template <int kTiles, int kStageBoxes, int kWarpgroups, bool kInGroups = false> struct SkinnySm90 {
  static constexpr bool kGrouped = kInGroups;
  static constexpr int kTokenTiles = kTiles; // of 8 tokens
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kBlockN = kSkinnyRows * kWarpgroups;
  static constexpr int kBoxes = kStageBoxes;
  static constexpr int kBoxCols = kBoxK;
  static constexpr int kConsumerWarps = kBlockN / 16;
  static constexpr int kConsumers = kConsumerWarps * kWarpSize;
  static constexpr int kThreads = kConsumers + kWarpSize;
  static constexpr int kWBoxBytes = kBlockN * kBoxK * 2;
  static constexpr int kXBoxBytes = kTokens * kBoxK * 2;
  static constexpr int kStageBytes = kBoxes * (kWBoxBytes + kXBoxBytes);
  static constexpr int kAccStride = kBlockN + 4; // floats; the 4 keeps a warp's stores in different banks
  static constexpr int kAccBytes = kTokens * kAccStride * 4;
  static constexpr int kAlignment = kSwizzleAlignment;
  static_assert(kXBoxBytes % kAlignment == 0 && kWBoxBytes / 2 % kAlignment == 0, "boxes follow each other, and each starts a pattern");
  static constexpr int smem_bytes(int num_stages) { return num_stages * kStageBytes + kAccBytes + kAlignment; }
};

#if __CUDA_ARCH__ >= 900

// One tile: rows w_row .. (and up_row ..) of w, tokens x_row .. x_row + num_tokens, columns of out from `col`.
struct SkinnyTile {
  int w_row, up_row, x_row, num_tokens, col;
};

// What one CTA works on: boxes box_begin .. box_end of the tiles first_tile, first_tile + tile_stride, ... In groups, the tiles of the same
// rows of w follow each other.
template <typename Tile> struct SkinnyWork {
  const pagoda_skinny_gemm_params &p;
  const GroupUnits *groups; // in groups
  int first_tile, tile_stride, num_tiles, box_begin, box_end, num_cols;
  __device__ __forceinline__ SkinnyWork(const pagoda_skinny_gemm_params &params, const GroupUnits *units) : p(params), groups(units) {
    const int num_boxes = (p.k + Tile::kBoxCols - 1) / Tile::kBoxCols;
    const int rank = blockIdx.x % p.split_k;
    num_cols = (skinny_out_cols(p) + tile_cols() - 1) / tile_cols();
    num_tiles = Tile::kGrouped ? num_cols * groups->begin[p.num_groups] : num_cols;
    first_tile = blockIdx.x / p.split_k;
    tile_stride = gridDim.x / p.split_k;
    box_begin = num_boxes * rank / p.split_k;
    box_end = num_boxes * (rank + 1) / p.split_k;
  }
  __device__ __forceinline__ int tile_cols() const { return p.gated ? Tile::kBlockN / 2 : Tile::kBlockN; }
  __device__ __forceinline__ SkinnyTile at(int index) const {
    SkinnyTile tile = {index * tile_cols(), 0, 0, p.num_tokens, index * tile_cols()};
    if (Tile::kGrouped) {
      const int group = group_of_unit(*groups, p.num_groups, index / num_cols);
      const int local = index - groups->begin[group] * num_cols, num_units = groups->begin[group + 1] - groups->begin[group];
      tile.col = local / num_units * tile_cols();
      tile.w_row = group * p.n + tile.col;
      tile.x_row = __ldcg(p.offsets + group) + local % num_units * Tile::kTokens;
      tile.num_tokens = min(Tile::kTokens, __ldcg(p.offsets + group + 1) - tile.x_row);
    }
    tile.up_row = tile.w_row + p.n / 2;
    return tile;
  }
};

// The producer's walk over its work, one stage at a time.
template <typename Tile> struct SkinnyCursor {
  const SkinnyWork<Tile> &work;
  int tile, box;
  SkinnyTile where = {};
  __device__ __forceinline__ explicit SkinnyCursor(const SkinnyWork<Tile> &w) : work(w), tile(w.first_tile), box(w.box_begin) {
    if (w.box_begin == w.box_end) tile = w.num_tiles;
    if (!done()) where = w.at(tile);
  }
  __device__ __forceinline__ bool done() const { return tile >= work.num_tiles; }
  __device__ __forceinline__ int num_boxes() const { return min(Tile::kBoxes, work.box_end - box); }
  __device__ __forceinline__ void advance() {
    box += Tile::kBoxes;
    if (box < work.box_end) return;
    box = work.box_begin, tile += work.tile_stride;
    if (!done()) where = work.at(tile);
  }
};

// One thread: keeps the ring full.
template <typename Tile>
__device__ __forceinline__ void skinny_produce(const pagoda_skinny_gemm_params &p, const CUtensorMap *w_map, const CUtensorMap *x_map, const SkinnyWork<Tile> &work,
                                               uint32_t ring, uint32_t full, uint32_t empty) {
  const uint64_t w_policy = ptx::evict_first_policy(), x_policy = ptx::evict_last_policy();
  auto copy_w = [&](const SkinnyCursor<Tile> &at, int stage) {
    const uint32_t barrier = full + 8 * stage;
    ptx::arrive_expecting(barrier, at.num_boxes() * (Tile::kWBoxBytes + Tile::kXBoxBytes));
    for (int b = 0; b < at.num_boxes(); ++b) {
      const uint32_t smem = ring + stage * Tile::kStageBytes + b * Tile::kWBoxBytes;
      const int k = (at.box + b) * kBoxK;
      ptx::copy_box(smem, w_map, k, at.where.w_row, barrier, w_policy);
      if (p.gated) ptx::copy_box(smem + Tile::kWBoxBytes / 2, w_map, k, at.where.up_row, barrier, w_policy);
    }
  };
  auto copy_x = [&](const SkinnyCursor<Tile> &at, int stage) {
    for (int b = 0; b < at.num_boxes(); ++b) {
      const uint32_t smem = ring + stage * Tile::kStageBytes + Tile::kBoxes * Tile::kWBoxBytes + b * Tile::kXBoxBytes;
      ptx::copy_box(smem, x_map, (at.box + b) * kBoxK, at.where.x_row, full + 8 * stage, x_policy);
    }
  };
  SkinnyCursor<Tile> at(work), x_at(work);
  int num_filled = 0;
  for (; num_filled < p.num_stages && !at.done(); ++num_filled, at.advance()) copy_w(at, num_filled);
  ptx::wait_for_previous_kernel();
  for (int stage = 0; stage < num_filled; ++stage, x_at.advance()) copy_x(x_at, stage);
  for (RingSlot slot; !at.done(); at.advance(), slot.advance(p.num_stages)) {
    ptx::wait_barrier(empty + 8 * slot.stage, slot.parity);
    copy_w(at, slot.stage);
    copy_x(at, slot.stage);
  }
}

// One warp's sums: 16 rows by 8 tokens each, fragments of mma.m16n8k16.
template <typename Tile> using SkinnySums = float[Tile::kTokenTiles][4];

// One warp: acc += its 16 rows times all tokens, over the boxes of one stage. Every sum runs in order of k.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <typename Tile, int kNumBoxes> __device__ __forceinline__ void skinny_multiply_boxes(SkinnySums<Tile> &acc, uint32_t stage_smem, int group) {
  const uint32_t x_smem = stage_smem + Tile::kBoxes * Tile::kWBoxBytes;
  ptx::begin_products(acc);
#pragma unroll
  for (int b = 0; b < kNumBoxes; ++b) {
    const uint64_t w_rows = ptx::swizzled_rows(stage_smem + b * Tile::kWBoxBytes + group * kSkinnyRows * 128), x_rows = ptx::swizzled_rows(x_smem + b * Tile::kXBoxBytes);
#pragma unroll
    for (int step = 0; step < kBoxK / 16; ++step) ptx::multiply_group(acc, w_rows + 2 * step, x_rows + 2 * step);
  }
  ptx::finish_products(acc);
}

// No branch may lie between the products and their end, or the compiler adds fences.
template <typename Tile> __device__ __forceinline__ void skinny_multiply(SkinnySums<Tile> &acc, uint32_t stage_smem, int num_boxes, int warp, int) {
  static_assert(Tile::kBoxes <= 2, "a stage holds all boxes or one");
  const int group = Tile::kBlockN == kSkinnyRows ? 0 : warp / 4;
  if (num_boxes >= Tile::kBoxes) skinny_multiply_boxes<Tile, Tile::kBoxes>(acc, stage_smem, group);
  else skinny_multiply_boxes<Tile, 1>(acc, stage_smem, group);
}
#else
template <typename Tile> __device__ __forceinline__ void skinny_multiply(SkinnySums<Tile> &acc, uint32_t stage_smem, int num_boxes, int warp, int lane) {
  const int row = lane % 8; // within a matrix of 8 rows; it is also what the swizzle turns by
  const uint32_t w_row = stage_smem + (warp * 16 + lane % 16) * 128;
  const uint32_t x_row = stage_smem + Tile::kBoxes * Tile::kWBoxBytes + row * 128;
#pragma unroll
  for (int b = 0; b < Tile::kBoxes; ++b) {
    if (b >= num_boxes) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) { // 32 k: two mma deep
      uint32_t w_frag[2][4], x_frag[Tile::kTokenTiles][4];
#pragma unroll
      for (int s = 0; s < 2; ++s) ptx::load_matrix_x4(w_frag[s], w_row + b * Tile::kWBoxBytes + (((half * 4 + s * 2 + lane / 16) ^ row) << 4));
#pragma unroll
      for (int q = 0; q < Tile::kTokenTiles; ++q)
        ptx::load_matrix_x4(x_frag[q], x_row + b * Tile::kXBoxBytes + q * 1024 + (((half * 4 + lane / 8) ^ row) << 4));
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t(&w)[4] = w_frag[s];
#pragma unroll
        for (int q = 0; q < Tile::kTokenTiles; ++q) ptx::mma_bf16(acc[q], w[0], w[1], w[2], w[3], x_frag[q][2 * s], x_frag[q][2 * s + 1]);
      }
    }
  }
}
#endif

// One warp: its sums to shared memory, [token][row].
template <typename Tile> __device__ __forceinline__ void skinny_put(const SkinnySums<Tile> &acc, uint32_t acc_smem, int warp, int lane) {
  const uint32_t address = acc_smem + (lane % 4 * 2 * Tile::kAccStride + warp * 16 + lane / 4) * 4;
#pragma unroll
  for (int q = 0; q < Tile::kTokenTiles; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) ptx::store_shared(address + ((q * 8 + e % 2) * Tile::kAccStride + e / 2 * 8) * 4, acc[q][e]);
  }
}

// All consumers: adds the cluster's partial sums in rank order, each CTA for its share of the outputs, and stores them.
template <typename Tile> __device__ __forceinline__ void skinny_reduce(const SkinnyWork<Tile> &work, uint32_t acc_smem, const SkinnyTile &tile, int thread) {
  const pagoda_skinny_gemm_params &p = work.p;
  const int tile_cols = work.tile_cols();
  const int fours = tile_cols / 4, out_cols = skinny_out_cols(p);
  const bool fits = skinny_stores_fours(p);
  const int rank = blockIdx.x % p.split_k;
  for (int j = rank * Tile::kConsumers + thread; j < fours * tile.num_tokens; j += p.split_k * Tile::kConsumers) {
    const int col = j % fours * 4, token = j / fours, i = tile.col + col;
    if (i >= out_cols) continue;
    const uint32_t here = acc_smem + (token * Tile::kAccStride + col) * 4;
    float4 sum = make_float4(0, 0, 0, 0), up_sum = sum;
    for (int r = 0; r < p.split_k; ++r) {
      const float4 v = ptx::load_cluster_16b(ptx::address_in_rank(here, r));
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      if (p.gated) {
        const float4 u = ptx::load_cluster_16b(ptx::address_in_rank(here + tile_cols * 4, r));
        up_sum.x += u.x, up_sum.y += u.y, up_sum.z += u.z, up_sum.w += u.w;
      }
    }
    skinny_finish4(p, tile.x_row + token, i, sum, up_sum, fits && i + 4 <= out_cols);
  }
}

template <typename Tile>
__device__ __forceinline__ void skinny_consume(const SkinnyWork<Tile> &work, uint32_t ring, uint32_t acc_smem, uint32_t full,
                                               uint32_t empty) {
  const int lane = threadIdx.x % kWarpSize, warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const pagoda_skinny_gemm_params &p = work.p;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  RingSlot slot;
  for (int tile = work.first_tile; tile < work.num_tiles; tile += work.tile_stride) {
    const SkinnyTile where = work.at(tile);
    SkinnySums<Tile> acc = {};
    for (int box = work.box_begin; box < work.box_end; box += Tile::kBoxes, slot.advance(p.num_stages)) {
      ptx::wait_barrier(full + 8 * slot.stage, slot.parity);
      skinny_multiply<Tile>(acc, ring + slot.stage * Tile::kStageBytes, work.box_end - box, warp, lane);
      __syncwarp();
      if (lane == 0) ptx::arrive(empty + 8 * slot.stage);
    }
    if (tile != work.first_tile) ptx::sync_threads(1, Tile::kConsumers); // the last tile's sums have been read
    skinny_put<Tile>(acc, acc_smem, warp, lane);
    if (p.split_k > 1) ptx::sync_cluster();
    else ptx::sync_threads(1, Tile::kConsumers);
    skinny_reduce<Tile>(work, acc_smem, where, threadIdx.x);
  }
  if (p.split_k > 1) ptx::sync_cluster(); // nobody leaves while others read its sums
}

#endif

// With split_k > 1 the grid has one cluster a tile, so that every thread passes the same two cluster barriers.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kTokens > 64 ? 1 : 2)
    skinny_gemm_sm90_kernel(const __grid_constant__ pagoda_skinny_gemm_params p, const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ unsigned char dynamic_smem[];
  __shared__ alignas(8) uint64_t barriers_smem[2 * kMaxSkinnyStages];
  const uint32_t ring = (ptx::smem_address(dynamic_smem) + Tile::kAlignment - 1) / Tile::kAlignment * Tile::kAlignment;
  const uint32_t acc_smem = ring + p.num_stages * Tile::kStageBytes;
  const uint32_t full = ptx::smem_address(barriers_smem), empty = full + 8 * kMaxSkinnyStages;
  if (threadIdx.x == Tile::kConsumers) {
    ptx::prefetch_map(&w_map);
    ptx::prefetch_map(&x_map);
    for (int stage = 0; stage < p.num_stages; ++stage) {
      ptx::init_barrier(full + 8 * stage, 1);
      ptx::init_barrier(empty + 8 * stage, Tile::kConsumerWarps);
    }
    ptx::fence_barrier_init();
  }
  __shared__ GroupUnits groups_smem;
  if (Tile::kGrouped) {
    ptx::wait_for_previous_kernel();
    if (threadIdx.x < kWarpSize) count_units(groups_smem, p.offsets, p.num_groups, Tile::kTokens, threadIdx.x);
  }
  __syncthreads();
  const SkinnyWork<Tile> work(p, &groups_smem);
  // Through a shuffle, so that the compiler knows that whole warps take a branch.
  if (__shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0) < Tile::kConsumerWarps) {
    skinny_consume<Tile>(work, ring, acc_smem, full, empty);
    return;
  }
  if (threadIdx.x == Tile::kConsumers) skinny_produce<Tile>(p, &w_map, &x_map, work, ring, full, empty);
  if (p.split_k > 1) {
    __syncwarp();
    ptx::sync_cluster();
    ptx::sync_cluster();
  }
#endif
}

} // namespace pagoda
