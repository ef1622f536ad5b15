// The producers of the sm_90a prefill kernel for a cache of e4m3: they fill its ring with bf16. See prefill_sm90.cuh.
//
// Three warps take the tiles K0, K1, V0, K2, ... of all items in turn. A warp holds the codes of its next tile in shared memory, a chunk of 16
// for each lane and step, which that lane alone asks for and reads; so they are on their way while the tile before becomes bf16, and there is
// no barrier between. Step i of a tile are the 32 chunks from key i * kKeys on, 512 bytes of a page:
//
//   codes of key, dims 16 c .. + 16   ->   bf16 in the chunks 2 c and 2 c + 1 of the key's row in a slot, swizzled as a tensor copy would
//
// Keys that the item does not see become zeros. The scales multiply scores and sums. Costs the issue slots of some 60 instructions a chunk.
#pragma once
#include "codes.cuh"
#include "paged_kv.cuh"
#include "prefill_sm90_rows.cuh"
#include "prefill_sm90_shared.cuh"

namespace pagoda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// One warp's walk over its tiles.
template <typename Tile> struct CodeTiles {
  static constexpr int kChunks = Tile::kHeadDim / 16;     // of a key
  static constexpr int kKeys = kWarpSize / kChunks;       // of a step
  static constexpr int kSteps = Tile::kBlockN / kKeys;    // of a tile
  static_assert(kKeys <= 8 && kSteps <= kWarpSize, "the keys of a step lie in one page, and a lane holds the place of a step");

  // Where a tile lies.
  struct Place {
    int64_t offset; // lane i: of step i in the cache; negative where the item sees none of its keys
    int first_key, key_begin, key_end;
  };

  const pagoda_attention_params &p;
  const PrefillShared<Tile> &smem;
  Ring<kItemSlots> item_at;
  PrefillItem item;
  int number; // of the tile in its item

  __device__ __forceinline__ CodeTiles(const pagoda_attention_params &p, const PrefillShared<Tile> &smem, int warp) : p(p), smem(smem) {
    take_item();
    number = 0;
    advance(warp);
  }
  __device__ __forceinline__ void take_item() {
    item = smem.item(item_at);
    smem.release(item_at);
    item_at.advance();
  }
  __device__ __forceinline__ bool more() const { return item.seq >= 0; }
  __device__ __forceinline__ int first_tile() const { return item.key_begin / Tile::kBlockN; }
  __device__ __forceinline__ int num_tiles() const { return 2 * ((item.key_end + Tile::kBlockN - 1) / Tile::kBlockN - first_tile()); }
  __device__ __forceinline__ void advance(int by) {
    number += by;
    while (more() && number >= num_tiles()) {
      number -= num_tiles();
      take_item();
    }
  }

  __device__ __forceinline__ Place place() const {
    Place at{-1, 0, 0, 0};
    if (!more()) return at;
    const bool is_last = number == num_tiles() - 1, is_key = number == 0 || (number % 2 == 1 && !is_last);
    const int tile = is_key ? (number + 1) / 2 : is_last ? number / 2 : number / 2 - 1;
    at.first_key = (first_tile() + tile) * Tile::kBlockN;
    at.key_begin = item.key_begin;
    at.key_end = item.key_end;
    const PagedKv cache{p.num_kv_heads, p.block_size, Tile::kHeadDim};
    const int lane = threadIdx.x % kWarpSize, key = at.first_key + lane * kKeys;
    if (lane >= kSteps || key >= item.key_end || key + kKeys <= item.key_begin) return at;
    const int block = __ldcg(p.block_tables + static_cast<int64_t>(item.seq) * p.max_blocks_per_seq + key / p.block_size);
    at.offset = cache.k_offset(block, item.kv_head, key % p.block_size) + (is_key ? 0 : cache.v_distance());
    return at;
  }

  // Asks for this lane's chunk of a step.
  __device__ __forceinline__ void ask(const Place &at, int step, uint32_t cell) const {
    const int lane = threadIdx.x % kWarpSize, key = at.first_key + step * kKeys + lane / kChunks;
    const int64_t offset = __shfl_sync(0xffffffffu, at.offset, step);
    const bool seen = offset >= 0 && key >= at.key_begin && key < at.key_end;
    ptx::copy_16b_async(cell, static_cast<const char *>(p.kv) + (seen ? offset + lane * 16 : 0), seen);
  }

  // This lane's chunk of step i of a batch, as bf16 in the slot; `batch_smem`: of the batch's keys.
  __device__ __forceinline__ static void store(uint4 codes, int i, uint32_t batch_smem) {
    const int lane = threadIdx.x % kWarpSize, chunk = lane % kChunks, key = i * kKeys + lane / kChunks;
    const CodePairs a = decode_e4m3(codes.x), b = decode_e4m3(codes.y), c = decode_e4m3(codes.z), d = decode_e4m3(codes.w);
    const uint4 low = make_uint4(a.low, b.low, c.low, d.low), high = make_uint4(a.high, b.high, c.high, d.high);
    const uint32_t row_smem = batch_smem + key / 8 * Tile::kGroupBytes + chunk / 4 * Tile::kPanelBytes + key % 8 * kPanelRowBytes;
    const uint32_t low_smem = row_smem + (chunk % 4 * 2 ^ key % 8) * 16;
    // Eight lanes write at once: those of the second panel their other half, for other banks.
    const bool high_first = kChunks > 4 && chunk / 4 % 2 == 1;
    ptx::store_shared_16b(high_first ? low_smem ^ 16 : low_smem, high_first ? high : low);
    ptx::store_shared_16b(high_first ? low_smem : low_smem ^ 16, high_first ? low : high);
  }
};

// One of kConverters warps: its tiles of all items.
template <typename Tile> __device__ __forceinline__ void convert_tiles(const pagoda_attention_params &p, const PrefillShared<Tile> &smem, int warp) {
  using Tiles = CodeTiles<Tile>;
  constexpr int kBatch = 4, kBatchGroups = kBatch * Tiles::kKeys / 8;
  static_assert(Tiles::kSteps % kBatch == 0 && kBatch * Tiles::kKeys % 8 == 0, "whole groups of keys a batch");
  static_assert(Tile::kConverters <= Tile::kSlots, "a walk passes the end of the ring at most once a tile");
  const uint32_t cells = smem.staging + warp * Tile::kStagingBytes + threadIdx.x % kWarpSize * 16;
  constexpr int kStepBytes = kWarpSize * 16;
  Tiles tiles(p, smem, warp);
  Ring<Tile::kSlots> at{warp, 0};
  typename Tiles::Place next = tiles.place();
  bool more = tiles.more();
  if (more) {
#pragma unroll 1
    for (int step = 0; step < Tiles::kSteps; ++step) tiles.ask(next, step, cells + step * kStepBytes);
    ptx::commit_copies();
  }
  while (more) {
    tiles.advance(Tile::kConverters);
    next = tiles.place();
    more = tiles.more();
    ptx::wait_copies<0>();
    ptx::wait_barrier(smem.empty_barrier(at.slot), at.parity ^ 1);
#pragma unroll 1
    for (int first = 0; first < Tiles::kSteps; first += kBatch) {
      const uint32_t batch_smem = smem.slot(at.slot) + first / kBatch * kBatchGroups * Tile::kGroupBytes;
      uint4 codes[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) codes[i] = ptx::load_shared_16b(cells + (first + i) * kStepBytes);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) Tiles::store(codes[i], i, batch_smem);
      if (more) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) tiles.ask(next, first + i, cells + (first + i) * kStepBytes);
      }
    }
    ptx::commit_copies();
    ptx::fence_shared_writes();
    __syncwarp();
    if (threadIdx.x % kWarpSize == 0) ptx::arrive(smem.full_barrier(at.slot));
    at.advance(Tile::kConverters);
  }
}

#endif

} // namespace pagoda
