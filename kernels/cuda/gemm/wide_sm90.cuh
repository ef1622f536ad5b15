// Product of many tokens for sm_90a: out[t, i] = sum_k x[t, k] * w[i, k], tokens in tiles of 128.
//
// A CTA makes a tile of 128 tokens by kCols rows of w. One thread keeps a ring of shared memory full with tensor copies, two warpgroups
// of 64 tokens each multiply it (wgmma, sums in registers). CTAs walk over tiles, and the ring runs ahead across their ends. Two CTAs may form
// a cluster of the same rows of w and neighbouring tokens: each copies half of w's box to both, which takes a third off the reads of L2.
//
//   stage:  | x: [128][64] | w: first half [kCols / 2][64] | second half |      full barrier: bytes; empty barrier: one arrival a warp
//   w rows of a tile:  plain  n0 .. n0 + kCols;   gated  kCols / 2 of gate, then the same of up: both meet in one thread
//
// Rows in groups (experts) with a matrix each: tiles are counted through `offsets` on the device, tokens of a group lie side by side.
// kRanges: sums are made range by range of k and added in order, as skinny_sm90 adds those of its split: the same bits for a token.
//
// Bound by the tensor cores; H100, see docs/performance.md.
// Warp roles, multicast and register split as in CUTLASS (BSD-3) and DeepGEMM (MIT).
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/tensor_copy.cuh"
#include "../ptx/wgmma.cuh"
#include "groups.cuh"
#include "ring.cuh"
#include "skinny_output.cuh"

namespace pagoda {

// What the CTAs of a cluster share: rows of w (and have neighbouring tokens), or tokens (and have neighbouring rows of w).
enum class WideShare { kNothing, kWeights, kTokens };

template <int kTokens, int kWRows, WideShare kShared, bool kGate, bool kInRanges> struct WideSm90 {
  static constexpr int kRows = kTokens;
  static constexpr int kCols = kWRows;
  static constexpr WideShare kShare = kShared;
  static constexpr int kCluster = kShare == WideShare::kNothing ? 1 : 2;
  static constexpr bool kGated = kGate, kRanges = kInRanges;
  static constexpr int kOutCols = kGated ? kCols / 2 : kCols;
  // What a cluster makes of out.
  static constexpr int kUnitRows = kShare == WideShare::kWeights ? 2 * kRows : kRows;
  static constexpr int kUnitCols = kShare == WideShare::kTokens ? 2 * kOutCols : kOutCols;
  static constexpr int kBlocks = kRows / 128; // of 64 tokens, of a warpgroup
  static constexpr int kXBoxRows = kShare == WideShare::kTokens ? kRows / 2 : kRows;
  static constexpr int kTiles = kCols / 8; // of the sums of a block
  static constexpr int kBoxCols = kBoxK; // 128 bytes
  static constexpr bool kScaled = false; // sums are multiplied by WideScales
  static constexpr int kConsumers = 256, kThreads = 384;
  static constexpr int kXBytes = kRows * kBoxK * 2;
  static constexpr int kHalfBytes = kCols / 2 * kBoxK * 2;
  static constexpr int kStageBytes = kXBytes + 2 * kHalfBytes;
  static constexpr int kStages = kStageBytes > 32 * 1024 ? 4 : 6;
  static constexpr int kPassCols = kOutCols < 128 ? kOutCols : 128; // columns that a warp stores at a time
  static constexpr int kWarpOutBytes = 16 * kPassCols * 2;
  static constexpr int kSmemBytes = kStages * kStageBytes + kConsumers / kWarpSize * kWarpOutBytes + kSwizzleAlignment;
  static_assert(kSmemBytes + sizeof(GroupUnits) + 16 * kStages <= 227 * 1024, "shared memory of a multiprocessor");
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  // One step of a product: 32 bytes of k.
  __device__ __forceinline__ static void multiply(float (&d)[kTiles][4], uint64_t a, uint64_t b) { ptx::multiply_group(d, a, b); }
#endif
};

// What sums are multiplied by, where the operands are codes: one for each token, one for each row of w.
struct WideScales {
  const float *x, *w;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// One tile: tokens from `row`, of which those below `row_end` exist; rows of w from w_row (and up_row), columns of out from `col`.
struct WideTile {
  int row, row_end, w_row, up_row, col;
};

// The tiles of a CTA, one after the other. Tiles of the same rows of w follow each other over up to `raster` tiles of tokens.
template <typename T> struct WideTiles {
  const pagoda_wide_gemm_params &p;
  const GroupUnits &groups;
  int num_cols, index, stride;
  __device__ __forceinline__ WideTiles(const pagoda_wide_gemm_params &params, const GroupUnits &units)
      : p(params), groups(units), num_cols((wide_out_cols(params) + T::kUnitCols - 1) / T::kUnitCols), index(blockIdx.x / T::kCluster), stride(gridDim.x / T::kCluster) {}

  __device__ __forceinline__ bool next(WideTile &tile) {
    int group = 0, first = 0, end = p.num_rows, local = index, num_units = (end + T::kUnitRows - 1) / T::kUnitRows;
    if (p.offsets) num_units = groups.begin[p.num_groups];
    if (index >= num_units * num_cols) return false;
    if (p.offsets) {
      group = group_of_unit(groups, p.num_groups, index / num_cols);
      first = __ldcg(p.offsets + group), end = __ldcg(p.offsets + group + 1);
      local = index - groups.begin[group] * num_cols, num_units = groups.begin[group + 1] - groups.begin[group];
    }
    const int band = local / (p.raster * num_cols), in_band = local % (p.raster * num_cols);
    const int height = min(p.raster, num_units - band * p.raster);
    const int unit = band * p.raster + in_band % height, col_tile = in_band / height;
    const int rank = blockIdx.x % T::kCluster;
    tile.row = first + unit * T::kUnitRows + (T::kShare == WideShare::kWeights ? rank * T::kRows : 0);
    tile.row_end = end;
    tile.col = col_tile * T::kUnitCols + (T::kShare == WideShare::kTokens ? rank * T::kOutCols : 0);
    tile.w_row = group * p.n + tile.col;
    tile.up_row = T::kGated ? tile.w_row + p.n / 2 : tile.w_row + T::kCols / 2;
    index += stride;
    return true;
  }
};

// One thread: keeps the ring full.
template <typename T>
__device__ __forceinline__ void wide_produce(const pagoda_wide_gemm_params &p, const CUtensorMap *w_map, const CUtensorMap *x_map, const GroupUnits &groups, uint32_t ring,
                                             uint32_t full, uint32_t empty) {
  const uint64_t policy = ptx::normal_policy();
  const int num_boxes = (p.k + T::kBoxCols - 1) / T::kBoxCols;
  const int rank = blockIdx.x % T::kCluster;
  WideTiles<T> tiles(p, groups);
  WideTile tile;
  RingSlot slot;
  slot.parity = 1; // the first round finds every stage empty
  while (tiles.next(tile)) {
    for (int box = 0; box < num_boxes; ++box, slot.advance(T::kStages)) {
      const uint32_t barrier = full + 8 * slot.stage, smem = ring + slot.stage * T::kStageBytes;
      ptx::wait_barrier(empty + 8 * slot.stage, slot.parity);
      ptx::arrive_expecting(barrier, T::kStageBytes);
      const uint32_t w_smem = smem + T::kXBytes;
      if (T::kShare == WideShare::kTokens) {
        ptx::copy_box_to(smem + rank * (T::kXBytes / 2), x_map, box * T::kBoxCols, tile.row + rank * T::kXBoxRows, barrier, 3, policy);
      } else {
        ptx::copy_box(smem, x_map, box * T::kBoxCols, tile.row, barrier, policy);
      }
      if (T::kShare != WideShare::kWeights) {
        ptx::copy_box(w_smem, w_map, box * T::kBoxCols, tile.w_row, barrier, policy);
        ptx::copy_box(w_smem + T::kHalfBytes, w_map, box * T::kBoxCols, tile.up_row, barrier, policy);
      } else {
        ptx::copy_box_to(w_smem + rank * T::kHalfBytes, w_map, box * T::kBoxCols, rank ? tile.up_row : tile.w_row, barrier, 3, policy);
      }
    }
  }
}

// Tells every CTA of the cluster that this warp has read a stage.
template <typename T> __device__ __forceinline__ void wide_release(uint32_t empty, int stage, int lane) {
  if (T::kCluster == 1) {
    if (lane == 0) ptx::arrive(empty + 8 * stage);
  } else if (lane < T::kCluster) {
    ptx::arrive_remote(ptx::address_in_rank(empty + 8 * stage, lane));
  }
}

// A warp's sums: of each block 16 tokens by all columns, fragments of 8 columns.
template <typename T> using WideSums = float[T::kBlocks * T::kTiles][4];

// One warp: acc += its warpgroup's tokens times the tile's rows of w over boxes first .. end. One batch of products runs behind.
template <typename T>
__device__ __forceinline__ void wide_multiply(WideSums<T> &acc, int num_boxes, RingSlot &slot, uint32_t ring, uint32_t full, uint32_t empty, int group, int lane) {
  int last_stage = slot.stage;
  for (int box = 0; box < num_boxes; ++box, slot.advance(T::kStages)) {
    ptx::wait_barrier(full + 8 * slot.stage, slot.parity);
    const uint32_t smem = ring + slot.stage * T::kStageBytes;
    const uint64_t x_rows = ptx::swizzled_rows(smem + group * (T::kXBytes / 2)), w_rows = ptx::swizzled_rows(smem + T::kXBytes);
    ptx::begin_products(acc);
#pragma unroll
    for (int step = 0; step < kBoxK / 16; ++step) {
#pragma unroll
      for (int block = 0; block < T::kBlocks; ++block) {
        constexpr int kBlockBytes = 64 * kBoxK * 2;
        T::multiply(reinterpret_cast<float(&)[T::kTiles][4]>(acc[block * T::kTiles]), x_rows + block * (kBlockBytes >> 4) + 2 * step, w_rows + 2 * step);
      }
    }
    ptx::finish_products_but<1>(acc);
    if (box > 0) wide_release<T>(empty, last_stage, lane);
    last_stage = slot.stage;
  }
  ptx::wait_products(acc);
  if (num_boxes > 0) wide_release<T>(empty, last_stage, lane);
}

// One warp of a warpgroup without tokens in this tile: passes the stages on, and leaves the tensor cores to the other.
template <typename T> __device__ __forceinline__ void wide_skip(int num_boxes, RingSlot &slot, uint32_t full, uint32_t empty, int lane) {
  for (int box = 0; box < num_boxes; ++box, slot.advance(T::kStages)) {
    ptx::wait_barrier(full + 8 * slot.stage, slot.parity);
    wide_release<T>(empty, slot.stage, lane);
  }
}

// One warp: scales, bias, gate, rounding, and the 16 tokens from `first_row` on through shared memory into whole lines of out.
template <typename T>
__device__ __forceinline__ void wide_store_block(const pagoda_wide_gemm_params &p, const WideScales &scales, const float (&acc)[T::kTiles][4], const WideTile &tile, int first_row,
                                                 uint32_t smem, int lane) {
  constexpr int kPassTiles = T::kPassCols / 8, kPasses = T::kOutCols / T::kPassCols;
  constexpr int kLanes = T::kPassCols / 8, kStep = kWarpSize / kLanes; // lanes a row, rows at a time
  const int out_cols = wide_out_cols(p);
  const int put_row = lane / 8 % 2 * 8 + lane % 8;
  const float *bias = p.bias; // of all groups
  float x_scale[2] = {}; // of rows lane / 4 and 8 further
  if (T::kScaled) {
#pragma unroll
    for (int h = 0; h < 2; ++h) x_scale[h] = __ldcg(scales.x + min(first_row + lane / 4 + 8 * h, tile.row_end - 1));
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
    for (int q = 0; q < kPassTiles; q += 2) {
      uint32_t packed[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = pass * kPassTiles + q + h;
        float v[4] = {acc[t][0], acc[t][1], acc[t][2], acc[t][3]}, up[4] = {};
        if (T::kGated) {
#pragma unroll
          for (int e = 0; e < 4; ++e) up[e] = acc[(t + T::kTiles / 2) % T::kTiles][e];
        }
        if (T::kScaled) {
          const int row = min(tile.w_row + t * 8 + lane % 4 * 2, p.n - 2);
          const float2 w = __ldg(reinterpret_cast<const float2 *>(scales.w + row));
          float2 u = w;
          if (T::kGated) u = __ldg(reinterpret_cast<const float2 *>(scales.w + min(row + p.n / 2, p.n - 2)));
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            v[e] *= x_scale[e / 2] * (e % 2 ? w.y : w.x);
            if (T::kGated) up[e] *= x_scale[e / 2] * (e % 2 ? u.y : u.x);
          }
        }
        if (bias) {
          const int col = min(tile.col + t * 8 + lane % 4 * 2, out_cols - 2);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            v[e] += bias[col + e % 2];
            if (T::kGated) up[e] += bias[p.n / 2 + col + e % 2];
          }
        }
        if (T::kGated) {
#pragma unroll
          for (int e = 0; e < 4; ++e) v[e] = silu(v[e]) * up[e];
        }
        packed[2 * h] = pack_bf16(v[0], v[1]);
        packed[2 * h + 1] = pack_bf16(v[2], v[3]);
      }
      const int chunk = q + lane / 16;
      ptx::store_matrix_x4(smem + put_row * (T::kPassCols * 2) + ((chunk ^ (put_row % 8)) << 4), packed[0], packed[1], packed[2], packed[3]);
    }
    __syncwarp();
    const int col = tile.col + pass * T::kPassCols + lane % kLanes * 8;
#pragma unroll
    for (int i = 0; i < 16; i += kStep) {
      const int in_warp = i + lane / kLanes, row = first_row + in_warp;
      const uint4 v = ptx::load_shared_16b(smem + in_warp * (T::kPassCols * 2) + ((lane % kLanes ^ (in_warp % 8)) << 4));
      if (row < tile.row_end && col < out_cols) ptx::store_16b(static_cast<bf16 *>(p.out) + static_cast<int64_t>(row) * p.ld_out + col, v);
    }
    __syncwarp();
  }
}

template <typename T>
__device__ __forceinline__ void wide_store(const pagoda_wide_gemm_params &p, const WideScales &scales, const WideSums<T> &acc, const WideTile &tile, uint32_t smem, int warp, int lane) {
#pragma unroll
  for (int block = 0; block < T::kBlocks; ++block) {
    const int row = tile.row + warp / 4 * (T::kRows / 2) + block * 64 + warp % 4 * 16;
    wide_store_block<T>(p, scales, reinterpret_cast<const float(&)[T::kTiles][4]>(acc[block * T::kTiles]), tile, row, smem, lane);
  }
}

template <typename T>
__device__ __forceinline__ void wide_consume(const pagoda_wide_gemm_params &p, const WideScales &scales, const GroupUnits &groups, uint32_t ring, uint32_t out_smem, uint32_t full, uint32_t empty) {
  const int lane = threadIdx.x % kWarpSize, warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const int num_boxes = (p.k + T::kBoxCols - 1) / T::kBoxCols;
  WideTiles<T> tiles(p, groups);
  WideTile tile;
  RingSlot slot;
  while (tiles.next(tile)) {
    if (tile.row + warp / 4 * (T::kRows / 2) >= tile.row_end) {
      wide_skip<T>(num_boxes, slot, full, empty, lane);
      continue;
    }
    WideSums<T> acc = {};
    if (T::kRanges) {
      WideSums<T> total = {};
      for (int rank = 0; rank < p.num_ranges; ++rank) {
        const int begin = num_boxes * rank / p.num_ranges, end = num_boxes * (rank + 1) / p.num_ranges;
        wide_multiply<T>(acc, end - begin, slot, ring, full, empty, warp / 4, lane);
#pragma unroll
        for (int t = 0; t < T::kBlocks * T::kTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) total[t][e] += acc[t][e], acc[t][e] = 0.0f;
        }
      }
      wide_store<T>(p, scales, total, tile, out_smem + warp * T::kWarpOutBytes, warp, lane);
    } else {
      wide_multiply<T>(acc, num_boxes, slot, ring, full, empty, warp / 4, lane);
      wide_store<T>(p, scales, acc, tile, out_smem + warp * T::kWarpOutBytes, warp, lane);
    }
  }
}

// One CTA: a warpgroup that keeps the ring full, and those that do consume(groups, ring, out_smem, full, empty).
template <typename T, typename Consume>
__device__ __forceinline__ void wide_run(const pagoda_wide_gemm_params &p, const CUtensorMap *w_map, const CUtensorMap *x_map, Consume consume) {
  extern __shared__ unsigned char dynamic_smem[];
  __shared__ alignas(8) uint64_t barriers_smem[2 * T::kStages];
  const uint32_t ring = (ptx::smem_address(dynamic_smem) + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t full = ptx::smem_address(barriers_smem), empty = full + 8 * T::kStages;
  if (threadIdx.x == T::kConsumers) {
    ptx::prefetch_map(w_map);
    ptx::prefetch_map(x_map);
    for (int stage = 0; stage < T::kStages; ++stage) {
      ptx::init_barrier(full + 8 * stage, 1);
      ptx::init_barrier(empty + 8 * stage, T::kConsumers / kWarpSize * T::kCluster);
    }
    ptx::fence_barrier_init();
  }
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  __shared__ GroupUnits groups_smem;
  if (p.offsets && threadIdx.x < kWarpSize) count_units(groups_smem, p.offsets, p.num_groups, T::kUnitRows, threadIdx.x);
  if (T::kCluster > 1) ptx::sync_cluster();
  else __syncthreads();
  if (__shfl_sync(0xffffffffu, threadIdx.x / 128, 0) == T::kConsumers / 128) {
    ptx::release_registers<40>();
    if (threadIdx.x == T::kConsumers) wide_produce<T>(p, w_map, x_map, groups_smem, ring, full, empty);
    __syncwarp();
  } else {
    ptx::acquire_registers<232>();
    consume(groups_smem, ring, ring + T::kStages * T::kStageBytes, full, empty);
  }
  if (T::kCluster > 1) ptx::sync_cluster(); // nobody leaves while the other copies into its ring
}

#endif

template <typename T>
__global__ void __launch_bounds__(T::kThreads, 1)
    wide_gemm_sm90_kernel(const __grid_constant__ pagoda_wide_gemm_params p, const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wide_run<T>(p, &w_map, &x_map, [&](const GroupUnits &groups, uint32_t ring, uint32_t out_smem, uint32_t full, uint32_t empty) {
    wide_consume<T>(p, WideScales{}, groups, ring, out_smem, full, empty);
  });
#endif
}

} // namespace pagoda
