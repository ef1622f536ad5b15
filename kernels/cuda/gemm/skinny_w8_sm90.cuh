// Skinny product for sm_90a with weights of 8 bits: out[t, i] = scale[i] * sum_k x[t, k] * value(w[i, k]), up to 64 tokens, x in bf16.
//
// The ring, the split of k and the end are those of skinny_sm90.cuh. A box of w has 128 k (128 bytes), beside it lie two boxes of x. A warp reads
// its 16 rows of codes as ldmatrix deals them out, makes bf16 of them in registers (exactly), and multiplies by wgmma with the rows as the
// operand in registers and the tokens in shared memory. While one half of a box is multiplied, the next half is decoded.
//
//   stage:  | w: kBoxes x [kBlockN][128] | x: 2 kBoxes x [kTokens][64] |
//   lane 4g + t of a warp: rows g, g + 8; four bytes of a chunk of 16 columns: 2t, 2t + 8, 2t + 1, 2t + 9
//
// Scales of rows multiply the finished sums. With blocks, sums start anew with every box, and join the others times the box's scale.
// Bound by memory up to 16 tokens, by reads of x from L2 above, which larger tiles make fewer of.
#pragma once
#include "../ptx/wgmma_w8.cuh"
#include "codes_w8.cuh"
#include "skinny_sm90.cuh"

namespace pagoda {

template <int kTiles, int kStageBoxes, int kWarpgroups, pagoda_w8_code kByteCode, bool kScaleBlocks> struct SkinnyW8Sm90 {
  static constexpr pagoda_w8_code kCode = kByteCode;
  static constexpr bool kBlocks = kScaleBlocks, kGrouped = false;
  static constexpr int kTokenTiles = kTiles; // of 8 tokens
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kBlockN = kSkinnyRows * kWarpgroups;
  static constexpr int kBoxes = kStageBoxes;
  static constexpr int kBoxCols = 2 * kBoxK;
  static constexpr int kConsumerWarps = kBlockN / 16;
  static constexpr int kConsumers = kConsumerWarps * kWarpSize;
  static constexpr int kThreads = kConsumers + kWarpSize;
  static constexpr int kWBoxBytes = kBlockN * kBoxCols;
  static constexpr int kXBoxBytes = kTokens * kBoxK * 2;
  static constexpr int kStageBytes = kBoxes * (kWBoxBytes + 2 * kXBoxBytes);
  static constexpr int kAccStride = kBlockN + 4; // floats; the 4 keeps a warp's stores in different banks
  static constexpr int kAccBytes = kTokens * kAccStride * 4;
  static constexpr int kAlignment = kSwizzleAlignment;
  static constexpr int kMinCtas = kWarpgroups == 1 ? 2 : 1;
  static_assert(kXBoxBytes % kAlignment == 0 && kWBoxBytes / 2 % kAlignment == 0, "boxes follow each other, and each starts a pattern");
  static constexpr int smem_bytes(int num_stages) { return num_stages * kStageBytes + kAccBytes + kAlignment; }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// One thread: keeps the ring full.
template <typename Tile>
__device__ __forceinline__ void skinny_w8_produce(const pagoda_skinny_gemm_params &p, const CUtensorMap *w_map, const CUtensorMap *x_map, const SkinnyWork<Tile> &work,
                                                  uint32_t ring, uint32_t full, uint32_t empty) {
  const uint64_t w_policy = ptx::evict_first_policy(), x_policy = ptx::evict_last_policy();
  auto copy_w = [&](const SkinnyCursor<Tile> &at, int stage) {
    const uint32_t barrier = full + 8 * stage;
    ptx::arrive_expecting(barrier, at.num_boxes() * (Tile::kWBoxBytes + 2 * Tile::kXBoxBytes));
    for (int b = 0; b < at.num_boxes(); ++b) {
      const uint32_t smem = ring + stage * Tile::kStageBytes + b * Tile::kWBoxBytes;
      const int k = (at.box + b) * Tile::kBoxCols;
      ptx::copy_box(smem, w_map, k, at.where.w_row, barrier, w_policy);
      if (p.gated) ptx::copy_box(smem + Tile::kWBoxBytes / 2, w_map, k, at.where.up_row, barrier, w_policy);
    }
  };
  auto copy_x = [&](const SkinnyCursor<Tile> &at, int stage) {
    for (int b = 0; b < 2 * at.num_boxes(); ++b) {
      const uint32_t smem = ring + stage * Tile::kStageBytes + Tile::kBoxes * Tile::kWBoxBytes + b * Tile::kXBoxBytes;
      ptx::copy_box(smem, x_map, at.box * Tile::kBoxCols + b * kBoxK, 0, full + 8 * stage, x_policy);
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

// Half a box of a warp's rows as operands: four steps of 16 k.
using CodeFragment = uint32_t[4][4];

template <typename Tile> __device__ __forceinline__ void decode_half(CodeFragment &a, uint32_t w_row, int half, int lane) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t codes[4]; // rows g and g + 8 of one chunk, then of the next
    ptx::load_matrix_x4(codes, w_row + (((half * 4 + pair * 2 + lane / 16) ^ lane % 8) << 4));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const CodePairs pairs = decode_codes<Tile::kCode>(codes[i]);
      a[2 * pair + i / 2][i % 2] = pairs.low;
      a[2 * pair + i / 2][i % 2 + 2] = pairs.high;
    }
  }
}

// Operands in registers stay what they are up to this point.
__device__ __forceinline__ void pin_fragment(const CodeFragment &a) {
#pragma unroll
  for (int s = 0; s < 4; ++s) asm volatile("" ::"r"(a[s][0]), "r"(a[s][1]), "r"(a[s][2]), "r"(a[s][3]) : "memory");
}

// The scales of a lane's two rows: of the rows, or of the blocks of a column of boxes.
template <typename Tile> struct RowScales {
  const float *gmem[2];
  __device__ __forceinline__ RowScales(const pagoda_skinny_w8_params &p, const SkinnyTile &tile, int tile_cols, int warp, int lane) {
    const int block_cols = (p.gemm.k + 127) / 128;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int in_tile = warp * 16 + lane / 4 + 8 * h;
      const int row = min(in_tile < tile_cols ? tile.w_row + in_tile : tile.up_row + in_tile - tile_cols, p.gemm.n - 1);
      gmem[h] = p.scales + (Tile::kBlocks ? static_cast<int64_t>(row / 128) * block_cols : row);
    }
  }
};

// One warp: acc += its 16 rows times all tokens, over the boxes of one stage. Every sum runs in order of k. One batch runs behind.
template <typename Tile, int kNumBoxes>
__device__ __forceinline__ void skinny_w8_multiply(SkinnySums<Tile> &acc, CodeFragment (&a)[2], uint32_t stage_smem, int warp, int lane) {
  const uint32_t w_row = stage_smem + (warp * 16 + lane % 16) * 128, x_smem = stage_smem + Tile::kBoxes * Tile::kWBoxBytes;
#pragma unroll
  for (int b = 0; b < kNumBoxes; ++b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      decode_half<Tile>(a[half], w_row + b * Tile::kWBoxBytes, half, lane);
      const uint64_t x_rows = ptx::swizzled_rows(x_smem + (2 * b + half) * Tile::kXBoxBytes);
      ptx::begin_products(acc);
#pragma unroll
      for (int step = 0; step < 4; ++step) ptx::multiply_registers(acc, a[half][step], x_rows + 2 * step);
      ptx::finish_products_but<1>(acc);
      pin_fragment(a[1 - half]);
    }
  }
}

// The same for one box with scales of its own: total += scale * products.
template <typename Tile>
__device__ __forceinline__ void skinny_w8_multiply_block(SkinnySums<Tile> &total, CodeFragment (&a)[2], uint32_t stage_smem, int b, const float (&scale)[2], int warp, int lane) {
  const uint32_t w_row = stage_smem + (warp * 16 + lane % 16) * 128 + b * Tile::kWBoxBytes;
  const uint32_t x_smem = stage_smem + Tile::kBoxes * Tile::kWBoxBytes + 2 * b * Tile::kXBoxBytes;
  SkinnySums<Tile> acc = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    decode_half<Tile>(a[half], w_row, half, lane);
    const uint64_t x_rows = ptx::swizzled_rows(x_smem + half * Tile::kXBoxBytes);
    ptx::begin_products(acc);
#pragma unroll
    for (int step = 0; step < 4; ++step) ptx::multiply_registers(acc, a[half][step], x_rows + 2 * step);
    ptx::finish_products_but<1>(acc);
  }
  ptx::wait_products(acc);
  pin_fragment(a[0]);
  pin_fragment(a[1]);
#pragma unroll
  for (int q = 0; q < Tile::kTokenTiles; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) total[q][e] = fmaf(acc[q][e], scale[e / 2], total[q][e]);
  }
}

// One warp: the sums of a tile, scaled.
template <typename Tile>
__device__ __forceinline__ void skinny_w8_sum(SkinnySums<Tile> &acc, const pagoda_skinny_w8_params &p, const SkinnyWork<Tile> &work, const SkinnyTile &where, RingSlot &slot,
                                              uint32_t ring, uint32_t full, uint32_t empty, int warp, int lane) {
  const RowScales<Tile> scales(p, where, work.tile_cols(), warp, lane);
  CodeFragment a[2] = {};
  int last_stage = slot.stage;
  float scale[2] = {__ldg(scales.gmem[0] + (Tile::kBlocks ? work.box_begin : 0)), __ldg(scales.gmem[1] + (Tile::kBlocks ? work.box_begin : 0))};
  for (int box = work.box_begin; box < work.box_end; box += Tile::kBoxes, slot.advance(p.gemm.num_stages)) {
    ptx::wait_barrier(full + 8 * slot.stage, slot.parity);
    const uint32_t smem = ring + slot.stage * Tile::kStageBytes;
    if (Tile::kBlocks) {
#pragma unroll
      for (int b = 0; b < Tile::kBoxes; ++b) {
        if (box + b >= work.box_end) break;
        const int next = min(box + b + 1, work.box_end - 1);
        const float next_scale[2] = {__ldg(scales.gmem[0] + next), __ldg(scales.gmem[1] + next)};
        skinny_w8_multiply_block<Tile>(acc, a, smem, b, scale, warp, lane);
        scale[0] = next_scale[0], scale[1] = next_scale[1];
      }
      __syncwarp();
      if (lane == 0) ptx::arrive(empty + 8 * slot.stage);
      continue;
    }
    if (work.box_end - box >= Tile::kBoxes) skinny_w8_multiply<Tile, Tile::kBoxes>(acc, a, smem, warp, lane);
    else skinny_w8_multiply<Tile, 1>(acc, a, smem, warp, lane);
    __syncwarp();
    if (lane == 0 && box > work.box_begin) ptx::arrive(empty + 8 * last_stage);
    last_stage = slot.stage;
  }
  if (Tile::kBlocks) return;
  ptx::wait_products(acc);
  pin_fragment(a[1]);
  if (lane == 0 && work.box_begin < work.box_end) ptx::arrive(empty + 8 * last_stage);
#pragma unroll
  for (int q = 0; q < Tile::kTokenTiles; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[q][e] *= scale[e / 2];
  }
}

template <typename Tile>
__device__ __forceinline__ void skinny_w8_consume(const pagoda_skinny_w8_params &p, const SkinnyWork<Tile> &work, uint32_t ring, uint32_t acc_smem, uint32_t full, uint32_t empty) {
  const int lane = threadIdx.x % kWarpSize, warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  RingSlot slot;
  for (int tile = work.first_tile; tile < work.num_tiles; tile += work.tile_stride) {
    const SkinnyTile where = work.at(tile);
    SkinnySums<Tile> acc = {};
    skinny_w8_sum<Tile>(acc, p, work, where, slot, ring, full, empty, warp, lane);
    if (tile != work.first_tile) ptx::sync_threads(1, Tile::kConsumers); // the last tile's sums have been read
    skinny_put<Tile>(acc, acc_smem, warp, lane);
    if (p.gemm.split_k > 1) ptx::sync_cluster();
    else ptx::sync_threads(1, Tile::kConsumers);
    skinny_reduce<Tile>(work, acc_smem, where, threadIdx.x);
  }
  if (p.gemm.split_k > 1) ptx::sync_cluster(); // nobody leaves while others read its sums
}

#endif

// With split_k > 1 the grid has one cluster a tile, so that every thread passes the same two cluster barriers.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinCtas)
    skinny_w8_sm90_kernel(const __grid_constant__ pagoda_skinny_w8_params p, const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char dynamic_smem[];
  __shared__ alignas(8) uint64_t barriers_smem[2 * kMaxSkinnyStages];
  const uint32_t ring = (ptx::smem_address(dynamic_smem) + Tile::kAlignment - 1) / Tile::kAlignment * Tile::kAlignment;
  const uint32_t acc_smem = ring + p.gemm.num_stages * Tile::kStageBytes;
  const uint32_t full = ptx::smem_address(barriers_smem), empty = full + 8 * kMaxSkinnyStages;
  if (threadIdx.x == Tile::kConsumers) {
    ptx::prefetch_map(&w_map);
    ptx::prefetch_map(&x_map);
    for (int stage = 0; stage < p.gemm.num_stages; ++stage) {
      ptx::init_barrier(full + 8 * stage, 1);
      ptx::init_barrier(empty + 8 * stage, Tile::kConsumerWarps);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const SkinnyWork<Tile> work(p.gemm, nullptr);
  // Through a shuffle, so that the compiler knows that whole warps take a branch.
  if (__shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0) < Tile::kConsumerWarps) {
    skinny_w8_consume<Tile>(p, work, ring, acc_smem, full, empty);
    return;
  }
  if (threadIdx.x == Tile::kConsumers) skinny_w8_produce<Tile>(p.gemm, &w_map, &x_map, work, ring, full, empty);
  if (p.gemm.split_k > 1) {
    __syncwarp();
    ptx::sync_cluster();
    ptx::sync_cluster();
  }
#endif
}

} // namespace pagoda
