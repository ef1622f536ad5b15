// Product with 4-bit weights for sm_90a, up to 64 tokens: out[t, i] = sum_c x[t, c] * w[i, c], w in tiles of 16 x 64 (pagoda_w4.h).
//
// A warpgroup has 64 rows, four tile rows, a CTA up to three such groups; CTAs walk over blocks of rows, and in a cluster of split_k CTAs each has
// a range of the columns. All warps walk along the columns together: x comes as boxes of 64 columns (tensor copies, swizzled), each warp's tiles
// through a ring of its own (bulk copies). A warp turns its codes into the operand a of wgmma in registers, those of the next columns while products
// of the last run; x is operand b, straight from shared memory. With mma.sync, x passes through registers, and 64 tokens took 146 us for the four
// products of a layer of Qwen2.5 7B against 119, before products ran beside the decoding (H200).
//
//   stage of x:  kXCols boxes of [kTokens][64] bf16, 128 bytes a row, swizzled         stage of a warp:  kCopyTiles tiles
//
// Where a tile has several scales they multiply the codes: four batches of products, each waited for, took 176 us for 64 tokens of the same
// layer in NVFP4, this 136 (H200). A scale that bf16 holds does so in one instruction, any other in two.
//
// Whoever multiplies step i refills what step i - kXLag has left, the warps in turn: there is no warp that only copies, which leaves 168
// registers a thread. The sums of a cluster are added in order of rank through distributed shared memory: a token's result depends on n, k and
// split_k. Bound by the latency of decoding and by shared memory.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/tensor_copy.cuh"
#include "../ptx/wgmma.cuh"
#include "../ptx/wgmma_async.cuh"
#include "../ptx/wgmma_fragment.cuh"
#include "ring.cuh"
#include "w4_factors.cuh"
#include "w4_output.cuh"
#include "w4_ring.cuh"

namespace pagoda {

constexpr int kMaxW4RowsWarps = 12;

template <int kTiles, W4Scaling kScale> struct W4Rows {
  static constexpr int kTokenTiles = kTiles; // of 8 tokens
  static constexpr int kTokens = 8 * kTiles;
  static constexpr int kCopyTiles = 4; // of one bulk copy
  static constexpr int kXCols = 2; // of a stage of x
  static constexpr int kXStages = 4;
  static constexpr int kXLag = 1;
  static constexpr int kXBoxBytes = kTokens * kBoxK * 2;
  static constexpr int kXBytes = kXCols * kXBoxBytes;
  static constexpr W4Scaling kScaling = kScale;
};

// Floats from one token's sums to the next; the 4 keeps a warp's stores in different banks.
__host__ __device__ constexpr int w4_sum_stride(int warps) { return warps * W4Tile::kRows + 4; }

template <typename Kernel> int w4_rows_smem_bytes(const pagoda_w4_gemm_params &p) {
  const int rings = p.num_warps * p.num_stages * Kernel::kCopyTiles * W4Tile(p.w).bytes() + Kernel::kXStages * Kernel::kXBytes;
  return kSwizzleAlignment + kPairTableBytes + rings + Kernel::kTokens * w4_sum_stride(p.num_warps) * 4;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// What the CTA works on: columns col_begin .. col_begin + num_cols of the blocks of rows first, first + stride, ...
struct W4Blocks {
  int warps, row_tiles, first, stride, num_blocks, col_begin, num_cols;
  __device__ __forceinline__ explicit W4Blocks(const pagoda_w4_gemm_params &p) : warps(blockDim.x / kWarpSize), row_tiles(w4_row_tiles(p.w)) {
    const int rank = blockIdx.x % p.split_k, cols = p.w.k / W4Tile::kCols;
    first = blockIdx.x / p.split_k;
    stride = gridDim.x / p.split_k;
    num_blocks = (row_tiles + warps - 1) / warps;
    col_begin = cols * rank / p.split_k;
    num_cols = cols * (rank + 1) / p.split_k - col_begin;
  }
  __device__ __forceinline__ int count() const { return first < num_blocks ? (num_blocks - first + stride - 1) / stride : 0; }
  __device__ __forceinline__ bool has_tile(int block, int warp) const { return block < num_blocks && block * warps + warp < row_tiles; }
};

// One warp's ring of tiles, filled by its first lane.
template <typename Kernel> struct W4RowsRing {
  const pagoda_w4_gemm_params &p;
  const W4Blocks &work;
  W4Tile tile;
  uint32_t ring, full; // addresses
  int warp, block;
  int left = 0; // columns of the block that are not copied
  const unsigned char *next_gmem = nullptr;
  __device__ __forceinline__ uint32_t stage_bytes() const { return Kernel::kCopyTiles * tile.bytes(); }
  __device__ __forceinline__ void enter_block() {
    if (!work.has_tile(block, warp)) return;
    left = work.num_cols;
    next_gmem = static_cast<const unsigned char *>(p.w.tiles) + tile.offset(block * work.warps + warp, work.col_begin);
  }
  // The next copy, if there is one.
  __device__ __forceinline__ void fill(int stage, uint64_t policy) {
    if (left <= 0) return;
    const uint32_t bytes = min(Kernel::kCopyTiles, left) * tile.bytes();
    ptx::arrive_expecting(full + 8 * stage, bytes);
    ptx::copy_bytes(ring + stage * stage_bytes(), next_gmem, bytes, full + 8 * stage, policy);
    left -= Kernel::kCopyTiles, next_gmem += bytes;
    if (left <= 0) block += work.stride, enter_block();
  }
};

// The ring of x, and where this warp is in it. Steps are stages of kXCols columns, counted over all blocks.
template <typename Kernel> struct W4RowsX {
  const CUtensorMap *map;
  uint32_t ring, full, empty; // addresses
  int col_begin, num_cols, num_steps;
  int step = 0, fill_col = 0; // the next column to be copied, of those of the CTA
  RingSlot slot, left;
  __device__ __forceinline__ int next_col(int col) const { return col + Kernel::kXCols < num_cols ? col + Kernel::kXCols : 0; }
  // By one thread.
  __device__ __forceinline__ void fill(int stage, int col) const {
    ptx::arrive_expecting(full + 8 * stage, Kernel::kXBytes);
#pragma unroll
    for (int i = 0; i < Kernel::kXCols; ++i) // zeros beyond the matrix
      ptx::copy_box(ring + stage * Kernel::kXBytes + i * Kernel::kXBoxBytes, map, (col_begin + col + i) * W4Tile::kCols, 0, full + 8 * stage, ptx::evict_last_policy());
  }
  __device__ __forceinline__ void fill_first(bool mine) {
#pragma unroll 1
    for (int i = 0; i < Kernel::kXStages && i < num_steps; ++i, fill_col = next_col(fill_col)) {
      if (mine) fill(i, fill_col);
    }
  }
  __device__ __forceinline__ uint32_t stage_smem() const { return ring + slot.stage * Kernel::kXBytes; }
  __device__ __forceinline__ void wait() const { ptx::wait_barrier(full + 8 * slot.stage, slot.parity); }
  // By one lane of each warp: the stage has been read; whose `turn` it is fills what all warps have left kXLag steps ago.
  __device__ __forceinline__ void leave(bool turn) const {
    ptx::arrive(empty + 8 * slot.stage);
    if (!turn || step < Kernel::kXLag || step - Kernel::kXLag + Kernel::kXStages >= num_steps) return;
    ptx::wait_barrier(empty + 8 * left.stage, left.parity);
    fill(left.stage, fill_col);
  }
  __device__ __forceinline__ void advance() {
    slot.advance(Kernel::kXStages);
    if (step >= Kernel::kXLag) {
      left.advance(Kernel::kXStages);
      fill_col = next_col(fill_col);
    }
    ++step;
  }
};

// One warp's operands of one tile. One that does not count is scaled to nothing.
template <W4Scaling kScaling> struct W4RowsOperands {
  uint32_t a[4][4];
  float2 scale[4 / kScaledSteps<kScaling>];

  __device__ __forceinline__ void load(const W4Lane<kScaling> &mine, uint32_t tile_smem, bool counts) {
    constexpr int kSteps = kScaledSteps<kScaling>;
    const uint4 codes = ptx::load_shared_16b(tile_smem + mine.lane_offset * 4);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int first = 0; first < 4; first += kSteps) {
      const W4LaneFactors<kScaling> factors = mine.factors(tile_smem, first);
      scale[first / kSteps] = counts ? factors.scale : make_float2(0.0f, 0.0f);
#pragma unroll
      for (int j = first; j < first + kSteps; ++j) mine.decode(a[j], words[j], factors);
      if constexpr (kSteps == 1) scale_codes(a[first], scale[first]);
    }
  }

  // Codes times their scales, rounded once: a scale is the sum of two bf16, a short one a bf16.
  __device__ __forceinline__ static void scale_codes(uint32_t (&codes)[4], float2 scale) {
    const float of_row[2] = {scale.x, scale.y};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const __nv_bfloat162 high = __float2bfloat162_rn(of_row[e % 2]), code = *reinterpret_cast<const __nv_bfloat162 *>(&codes[e]);
      __nv_bfloat162 w;
      if constexpr (kScaling == kStepShortScales) w = __hmul2(code, high);
      else w = __hfma2(code, high, __hmul2(code, __float2bfloat162_rn(of_row[e % 2] - __low2float(high))));
      codes[e] = *reinterpret_cast<const uint32_t *>(&w);
    }
  }
};

// One warp's walk over its tiles.
template <typename Kernel> struct W4RowsTiles {
  using Operands = W4RowsOperands<Kernel::kScaling>;
  const W4Blocks &work;
  W4RowsRing<Kernel> &ring;
  const W4Lane<Kernel::kScaling> &mine;
  int block, col = 0; // of the next tile of an even column
  RingSlot slot;
  uint32_t tile_smem = 0; // of the latest tile
  // Operands of the next tile of an even column. For a row that does not exist they are made of whatever lies in the ring.
  __device__ __forceinline__ void next_even(Operands &operands) {
    const int in_copy = col % Kernel::kCopyTiles;
    if (in_copy == 0 && work.has_tile(block, ring.warp)) ptx::wait_barrier(ring.full + 8 * slot.stage, slot.parity);
    tile_smem = ring.ring + slot.stage * ring.stage_bytes() + in_copy * ring.tile.bytes();
    operands.load(mine, tile_smem, true);
  }
  // Of the tile beside it; what is beyond the last column is scaled to nothing, and the same tile again: what lies behind it may not be finite.
  __device__ __forceinline__ void next_odd(Operands &operands, int lane, uint64_t policy) {
    const bool has_odd = col + 1 < work.num_cols;
    operands.load(mine, tile_smem + (has_odd ? ring.tile.bytes() : 0), has_odd);
    const int in_copy = col % Kernel::kCopyTiles;
    col += 2;
    if (in_copy + 2 == Kernel::kCopyTiles || col >= work.num_cols) {
      __syncwarp();
      if (lane == 0) ring.fill(slot.stage, policy);
      if (work.has_tile(block, ring.warp)) slot.advance(ring.p.num_stages);
    }
    if (col >= work.num_cols) col = 0, block += work.stride;
  }
};

// One warpgroup: starts sums (+)= one column times x.
template <typename Kernel, bool kAdd>
__device__ __forceinline__ void w4_rows_start(float (&sums)[Kernel::kTokenTiles][4], const W4RowsOperands<Kernel::kScaling> &operands, uint32_t x_smem) {
  const uint64_t x_rows = ptx::swizzled_rows(x_smem);
  ptx::multiply_fragment_rows<kAdd>(sums, operands.a[0], x_rows);
  ptx::multiply_fragment_rows<true>(sums, operands.a[1], x_rows + 2);
  ptx::multiply_fragment_rows<true>(sums, operands.a[2], x_rows + 4);
  ptx::multiply_fragment_rows<true>(sums, operands.a[3], x_rows + 6);
}

// Which of two sets of operands is multiplied.
template <int kNow> struct W4RowsTurn { static constexpr int value = kNow; };

// What a warpgroup has under way: products run while the codes of the next tiles are decoded.
template <typename Kernel, bool kScalesCodes> struct W4RowsProducts;

// Scales multiply the codes: one set of sums, operands of two columns at a time, those that are multiplied and the next.
template <typename Kernel> struct W4RowsProducts<Kernel, true> {
  using Operands = W4RowsOperands<Kernel::kScaling>;
  Operands even[2], odd[2];
  __device__ __forceinline__ void begin(W4RowsTiles<Kernel> &tiles, int lane, uint64_t policy) {
    tiles.next_even(even[0]);
    tiles.next_odd(odd[0], lane, policy);
  }
  template <int kNow> __device__ __forceinline__ void step(float (&sums)[Kernel::kTokenTiles][4], W4RowsTiles<Kernel> &tiles, uint32_t x_smem, int lane, uint64_t policy) {
    ptx::pin_sums(sums);
    ptx::fence_registers();
    w4_rows_start<Kernel, true>(sums, even[kNow], x_smem);
    w4_rows_start<Kernel, true>(sums, odd[kNow], x_smem + Kernel::kXBoxBytes);
    ptx::commit_products();
    tiles.next_even(even[1 - kNow]);
    tiles.next_odd(odd[1 - kNow], lane, policy);
    ptx::wait_batches<0>();
    ptx::pin_sums(sums);
  }
};

// Scales multiply the sums of a column: a column is multiplied while the next is decoded.
template <typename Kernel> struct W4RowsProducts<Kernel, false> {
  using Operands = W4RowsOperands<Kernel::kScaling>;
  Operands even, odd;
  __device__ __forceinline__ void begin(W4RowsTiles<Kernel> &tiles, int, uint64_t) { tiles.next_even(even); }
  template <int> __device__ __forceinline__ void step(float (&sums)[Kernel::kTokenTiles][4], W4RowsTiles<Kernel> &tiles, uint32_t x_smem, int lane, uint64_t policy) {
    column(sums, even, x_smem, [&] { tiles.next_odd(odd, lane, policy); });
    column(sums, odd, x_smem + Kernel::kXBoxBytes, [&] { tiles.next_even(even); });
  }
  template <typename DecodeNext>
  __device__ __forceinline__ static void column(float (&sums)[Kernel::kTokenTiles][4], const Operands &operands, uint32_t x_smem, DecodeNext decode_next) {
    float part[Kernel::kTokenTiles][4];
    const float2 scale = operands.scale[0];
    ptx::fence_registers();
    w4_rows_start<Kernel, false>(part, operands, x_smem);
    ptx::commit_products();
    decode_next();
    ptx::wait_batches<0>();
    ptx::pin_sums(part);
#pragma unroll
    for (int q = 0; q < Kernel::kTokenTiles; ++q) w4_add_scaled(sums[q], part[q], scale);
  }
};

// One warp: its sums to shared memory, [token][rows of the block].
template <typename Kernel> __device__ __forceinline__ void w4_rows_put(const float (&sums)[Kernel::kTokenTiles][4], uint32_t sums_smem, int warp, int warps, int lane) {
  const int stride = w4_sum_stride(warps);
  const uint32_t address = sums_smem + (lane % 4 * 2 * stride + warp * W4Tile::kRows + lane / 4) * 4;
#pragma unroll
  for (int q = 0; q < Kernel::kTokenTiles; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) ptx::store_shared(address + ((q * 8 + e % 2) * stride + e / 2 * 8) * 4, sums[q][e]);
  }
}

// All threads: adds the cluster's sums in rank order, each CTA for its share of the outputs, and stores them.
__device__ __forceinline__ void w4_rows_reduce(const pagoda_w4_gemm_params &p, float factor, uint32_t sums_smem, const W4Blocks &work, int block) {
  const int stride = w4_sum_stride(work.warps), tiles = min(work.warps, work.row_tiles - block * work.warps), rank = blockIdx.x % p.split_k;
  const bool whole = w4_stores_fours(p);
  const int tile_fours = p.gated ? 2 : 4, fours = tiles * tile_fours, total = fours * p.num_tokens;
  for (int j = total * rank / p.split_k + threadIdx.x; j < total * (rank + 1) / p.split_k; j += blockDim.x) {
    const int token = j / fours, tile = j % fours / tile_fours, row = j % tile_fours * 4;
    const uint32_t here = sums_smem + (token * stride + tile * W4Tile::kRows + row) * 4;
    float sum[4] = {}, up_sum[4] = {};
    auto add = [](float(&to)[4], float4 v) { to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w; };
    for (int first = 0; first < p.split_k; first += 4) {
      float4 v[4] = {}, up[4] = {};
#pragma unroll
      for (int r = 0; r < 4; ++r) { // all under way before the first is used
        if (first + r < p.split_k) v[r] = ptx::load_cluster_16b(ptx::address_in_rank(here, first + r));
        if (first + r < p.split_k && p.gated) up[r] = ptx::load_cluster_16b(ptx::address_in_rank(here + 32, first + r));
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) add(sum, v[r]), add(up_sum, up[r]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] *= factor, up_sum[e] *= factor;
    w4_write4(p, block * work.warps + tile, row, token, sum, up_sum, whole);
  }
}

// Sets up the barriers, and asks for the first tiles.
template <typename Kernel> __device__ __forceinline__ void w4_rows_begin(W4RowsRing<Kernel> &ring, uint32_t x_full, uint32_t x_empty, uint64_t policy, int lane) {
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int stage = 0; stage < Kernel::kXStages; ++stage) {
      ptx::init_barrier(x_full + 8 * stage, 1);
      ptx::init_barrier(x_empty + 8 * stage, ring.work.warps);
    }
    ptx::fence_barrier_init();
  }
  if (lane == 0) {
#pragma unroll 1
    for (int stage = 0; stage < ring.p.num_stages; ++stage) ptx::init_barrier(ring.full + 8 * stage, 1);
    ptx::fence_barrier_init();
    ring.enter_block();
#pragma unroll 1
    for (int stage = 0; stage < ring.p.num_stages; ++stage) ring.fill(stage, policy);
  }
}

#endif

template <typename Kernel>
__global__ void __launch_bounds__(kMaxW4RowsWarps *kWarpSize, 1)
    w4_rows_sm90_kernel(const __grid_constant__ pagoda_w4_gemm_params p, const __grid_constant__ W4Book book, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char dynamic_smem[];
  __shared__ alignas(8) uint64_t barriers_smem[2 * Kernel::kXStages + kMaxW4RowsWarps * kMaxW4Stages];
  const int lane = ptx::lane_id(), warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const W4Blocks work(p);
  const W4Tile tile(p.w);
  const uint32_t x_ring = (ptx::smem_address(dynamic_smem) + kPairTableBytes + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t rings = x_ring + Kernel::kXStages * Kernel::kXBytes, ring_bytes = p.num_stages * Kernel::kCopyTiles * tile.bytes(), sums_smem = rings + work.warps * ring_bytes;
  const uint32_t x_full = ptx::smem_address(barriers_smem), x_empty = x_full + 8 * Kernel::kXStages, full = x_empty + 8 * (Kernel::kXStages + warp * kMaxW4Stages);
  const uint64_t policy = ptx::evict_first_policy(), x_policy = ptx::evict_last_policy();
  W4RowsRing<Kernel> ring = {p, work, tile, rings + warp * ring_bytes, full, warp, work.first};
  w4_rows_begin<Kernel>(ring, x_full, x_empty, policy, lane);
  if (work.warps == 4) fill_pair_table<4>(dynamic_smem, book, warp, lane);
  else if (work.warps < 16) fill_pair_table<8>(dynamic_smem, book, warp, lane);
  else fill_pair_table<16>(dynamic_smem, book, warp, lane);
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  W4RowsX<Kernel> x = {&x_map, x_ring, x_full, x_empty, work.col_begin, work.num_cols, work.count() * ((work.num_cols + Kernel::kXCols - 1) / Kernel::kXCols)};
  x.fill_first(threadIdx.x == 0);
  const W4Lane<Kernel::kScaling> mine(tile, dynamic_smem, lane);
  W4RowsTiles<Kernel> tiles = {work, ring, mine, work.first};
  W4RowsProducts<Kernel, kScaledSteps<Kernel::kScaling> == 1> products;
  float sums[Kernel::kTokenTiles][4] = {};
  const int block_steps = (work.num_cols + Kernel::kXCols - 1) / Kernel::kXCols;
  int block = work.first, steps_left = block_steps, turn = 0;
  auto end_block = [&] {
    auto sync = [&] { if (p.split_k > 1) ptx::sync_cluster(); else __syncthreads(); };
    if (block != work.first) sync(); // the last block's sums have been read
    w4_rows_put<Kernel>(sums, sums_smem, warp, work.warps, lane);
    sync();
    w4_rows_reduce(p, book.factor, sums_smem, work, block);
    block += work.stride, steps_left = block_steps;
#pragma unroll
    for (int q = 0; q < Kernel::kTokenTiles; ++q) sums[q][0] = sums[q][1] = sums[q][2] = sums[q][3] = 0.0f;
  };
  auto step = [&](auto now) {
    x.wait();
    products.template step<decltype(now)::value>(sums, tiles, x.stage_smem(), lane, policy);
    __syncwarp();
    if (lane == 0) x.leave(turn == warp);
    x.advance();
    turn = turn + 1 == work.warps ? 0 : turn + 1;
    if (--steps_left == 0) end_block();
  };
  if (block < work.num_blocks) products.begin(tiles, lane, policy);
  // Two steps a turn: operands that an index chose would go through local memory.
  while (block < work.num_blocks) {
    step(W4RowsTurn<0>());
    if (block < work.num_blocks) step(W4RowsTurn<1>());
  }
  if (p.split_k > 1) ptx::sync_cluster(); // nobody leaves while others read its sums
#endif
}

} // namespace pagoda
