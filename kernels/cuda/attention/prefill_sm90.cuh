// Varlen chunked prefill attention over the paged cache for sm_90a: warpgroup products, K and V through tensor copies.
//
// A CTA walks over the items of prefill_items.cuh, tiles of kBlockM packed rows. One warp takes the items. One warp keeps a ring of slots
// full, in the order K0, K1, V0, K2, V1, ..., V of the last. A slot is one K or V tile of kBlockN keys, one box a page:
//
//   [kBlockN / 8][panels of 64 columns][8 keys][128 bytes], swizzled, so that groups of 8 keys are equally far apart across pages
//
// Pages without a key that the tile sees are asked for outside the cache and arrive as zeros. Issuing boxes is what limits small pages:
// with one box a page and panel, 16 keys a page reach 480 of the 680 TFLOP/s of 128 keys a page (H100, 28 / 4 heads of 128, 16k context).
// kGroups warpgroups of 64 rows each consume:
//
//   S = Q K_n^T  |  O += P V_(n-1), while the softmax of S runs      P stays in registers as the second product's left operand
//
// and take turns in issuing products, so that one's softmax runs beside the other's products. Online softmax in f32, P rounded to bf16.
// Key tiles start at multiples of kBlockN whatever the step, so a row's bits depend on its sequence alone, not on chunk or batch.
//
// Bound by the tensor cores (head_dim 128) or by exponentials (64). Warp roles, overlap and turns after FlashAttention-3 (BSD-3-Clause).
#pragma once
#include "../common/launch.cuh"
#include "prefill_sm90_rows.cuh"

namespace pagoda {

// Where boxes come from: [num_blocks * 2 * num_kv_heads] matrices of [block_size][head_dim].
struct PrefillBoxes {
  int box_rows;         // divides the block size, 8..kBlockN
  int block_size_shift; // block size = 1 << this
  int num_matrices;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kItemSlots = 4;

// Position in a ring.
template <int kSlots> struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
};

// Addresses in shared memory.
template <typename Tile> struct PrefillShared {
  uint32_t q, ring;
  uint32_t full, empty;           // barriers, one a slot
  uint32_t item_full, item_empty; // barriers, one an item
  PrefillItem *items;
  __device__ __forceinline__ uint32_t slot(int i) const { return ring + i * Tile::kSlotBytes; }
  __device__ __forceinline__ uint32_t full_barrier(int i) const { return full + 8 * i; }
  __device__ __forceinline__ uint32_t empty_barrier(int i) const { return empty + 8 * i; }

  // Waits for an item. Whoever reads it calls `release` when done.
  __device__ __forceinline__ const PrefillItem &item(Ring<kItemSlots> at) const {
    ptx::wait_barrier(item_full + 8 * at.slot, at.parity);
    return items[at.slot];
  }
  __device__ __forceinline__ void release(Ring<kItemSlots> at) const { ptx::arrive(item_empty + 8 * at.slot); }
};

// One warp: takes items until there are no more; the last one says so.
template <typename Tile> __device__ __forceinline__ void take_items(const pagoda_attention_params &p, const PrefillShared<Tile> &smem) {
  Ring<kItemSlots> at;
  for (int number = blockIdx.x;; number = next_item(p, number), at.advance()) {
    const PrefillItem item = prefill_item<Tile::kBlockM>(p, number);
    if (threadIdx.x % kWarpSize == 0) {
      ptx::wait_barrier(smem.item_empty + 8 * at.slot, at.parity ^ 1);
      smem.items[at.slot] = item;
      ptx::arrive(smem.item_full + 8 * at.slot);
    }
    __syncwarp();
    if (item.seq < 0) break;
  }
  finish_items(p);
}

// One warp: asks for one tile; `matrix` is that of this lane's box.
template <typename Tile>
__device__ __forceinline__ void copy_tile(const CUtensorMap *map, const PrefillShared<Tile> &smem, Ring<Tile::kSlots> &at, int row, int first_group, int matrix) {
  ptx::wait_barrier(smem.empty_barrier(at.slot), at.parity ^ 1);
  const uint32_t barrier = smem.full_barrier(at.slot);
  if (row == 0) ptx::arrive_expecting(barrier, Tile::kSlotBytes);
  __syncwarp();
  if (row < Tile::kBlockN) ptx::copy_row_groups(smem.slot(at.slot) + row / 8 * Tile::kGroupBytes, map, first_group, matrix, barrier);
  at.advance();
}

// One warp: all tiles of an item. Blocks are looked up two tiles ahead.
template <typename Tile>
__device__ __forceinline__ void produce_item(const pagoda_attention_params &p, const CUtensorMap *map, const PrefillBoxes &boxes, const PrefillItem &item,
                                             const PrefillShared<Tile> &smem, Ring<Tile::kSlots> &at) {
  const int row = threadIdx.x % kWarpSize * boxes.box_rows;
  const int32_t *table = p.block_tables + static_cast<int64_t>(item.seq) * p.max_blocks_per_seq;
  // Block of this lane's box of the tile that starts at first_key; negative when the item sees none of its keys.
  auto find_block = [&](int first_key) {
    const int key = first_key + row;
    const bool seen = row < Tile::kBlockN && key < item.key_end && key + boxes.box_rows > item.key_begin;
    return seen ? __ldcg(table + (key >> boxes.block_size_shift)) : -1;
  };
  auto copy = [&](int v, int first_key, int block) {
    const int first_group = ((first_key + row) & ((1 << boxes.block_size_shift) - 1)) / 8;
    const int matrix = block < 0 ? boxes.num_matrices : (block * 2 + v) * p.num_kv_heads + item.kv_head;
    copy_tile<Tile>(map, smem, at, row, first_group, matrix);
  };
  int first_key = item.key_begin / Tile::kBlockN * Tile::kBlockN;
  int block = find_block(first_key), next_block = find_block(first_key + Tile::kBlockN);
  copy(0, first_key, block);
#pragma unroll 1
  for (; first_key + Tile::kBlockN < item.key_end; first_key += Tile::kBlockN) {
    const int later_block = find_block(first_key + 2 * Tile::kBlockN);
    copy(0, first_key + Tile::kBlockN, next_block);
    copy(1, first_key, block);
    block = next_block;
    next_block = later_block;
  }
  copy(1, first_key, block);
}

// One warp: the tiles of all items.
template <typename Tile>
__device__ __forceinline__ void produce_tiles(const pagoda_attention_params &p, const CUtensorMap *map, const PrefillBoxes &boxes, const PrefillShared<Tile> &smem) {
  Ring<Tile::kSlots> at;
  for (Ring<kItemSlots> item_at;; item_at.advance()) {
    const PrefillItem item = smem.item(item_at);
    smem.release(item_at);
    if (item.seq < 0) return;
    produce_item<Tile>(p, map, boxes, item, smem, at);
  }
}

// Named barriers: one for the turn of each warpgroup, one for its own threads.
constexpr uint32_t kTurnBarrier = 1;
constexpr uint32_t kGroupBarrier = 4;

// Waits for this warpgroup's turn to issue products.
template <typename Tile> __device__ __forceinline__ void take_turn(int group) {
  if constexpr (Tile::kTurns) ptx::sync_threads(kTurnBarrier + group, 256);
}

template <typename Tile> __device__ __forceinline__ void pass_turn(int group) {
  if constexpr (Tile::kTurns) ptx::arrive_threads(kTurnBarrier + (group + 1 == Tile::kGroups ? 0 : group + 1), 256);
}

// One warpgroup's walk along the ring.
template <typename Tile> struct PrefillConsumer {
  const PrefillShared<Tile> &smem;
  Ring<Tile::kSlots> at;

  // Waits for the next tile.
  __device__ __forceinline__ uint32_t next_tile() {
    ptx::wait_barrier(smem.full_barrier(at.slot), at.parity);
    return smem.slot(at.slot);
  }
  // This warp has read the tile of this slot.
  __device__ __forceinline__ void release(int slot) {
    if (threadIdx.x % kWarpSize == 0) ptx::arrive(smem.empty_barrier(slot));
  }
};

// One warpgroup: all products of an item but the last P V, whose probabilities it leaves in rows.p. Returns the end of the key tiles.
template <typename Tile, bool kSoftCap>
__device__ __forceinline__ int multiply_item(const pagoda_attention_params &p, const PrefillItem &item, PrefillConsumer<Tile> &tiles, PrefillRows<Tile> &rows) {
  const PrefillScores<kSoftCap> scores(p, item);
  const int key_end = item.key_end;
  int first_key = item.key_begin / Tile::kBlockN * Tile::kBlockN;
  float rescale[2];
  const uint32_t k_smem = tiles.next_tile();
  take_turn<Tile>(rows.group);
  start_scores<Tile>(rows, k_smem);
  pass_turn<Tile>(rows.group);
  ptx::wait_batches<0>();
  ptx::pin_sums(rows.s);
  tiles.release(tiles.at.slot);
  tiles.at.advance();
  scores.to_probabilities(rows, first_key, rescale);
  round_probabilities<Tile>(rows);
  for (first_key += Tile::kBlockN; first_key < key_end; first_key += Tile::kBlockN) {
    const int k_slot = tiles.at.slot;
    const uint32_t k_smem = tiles.next_tile();
    tiles.at.advance();
    take_turn<Tile>(rows.group);
    start_scores<Tile>(rows, k_smem);
    start_output<Tile>(rows, tiles.next_tile());
    pass_turn<Tile>(rows.group);
    ptx::wait_batches<1>();
    ptx::pin_sums(rows.s);
    tiles.release(k_slot);
    scores.to_probabilities(rows, first_key, rescale);
    ptx::finish_before_wait(rows.l[0], rows.q);
    ptx::finish_before_wait(rows.l[1], rows.q);
    ptx::wait_batches<0>();
    ptx::pin_sums(rows.o);
    tiles.release(tiles.at.slot);
    tiles.at.advance();
    round_probabilities<Tile>(rows);
    rescale_output<Tile>(rows, rescale);
  }
  return first_key;
}

// One warpgroup: the last P V of an item.
template <typename Tile>
__device__ __forceinline__ void finish_item(const PrefillItem &item, PrefillConsumer<Tile> &tiles, PrefillRows<Tile> &rows, int tiles_end) {
  const uint32_t v_smem = tiles.next_tile();
  if (tiles_end > item.context) {
    clear_rows<Tile>(v_smem, item.context - tiles_end + Tile::kBlockN);
    ptx::sync_threads(kGroupBarrier + rows.group, 128);
  }
  start_output<Tile>(rows, v_smem);
  ptx::wait_batches<0>();
  ptx::pin_sums(rows.o);
  tiles.release(tiles.at.slot);
  tiles.at.advance();
}

// One warpgroup. The next item's q is on its way while this one ends.
template <typename Tile, bool kSoftCap> __device__ __forceinline__ void consume_tiles(const pagoda_attention_params &p, const PrefillShared<Tile> &smem) {
  PrefillRows<Tile> rows;
  rows.group = threadIdx.x / 128;
  rows.q = smem.q + rows.group * Tile::kPanels * Tile::kQPanelBytes;
  PrefillConsumer<Tile> tiles{smem, {}};
  Ring<kItemSlots> at;
  if (rows.group == Tile::kGroups - 1) pass_turn<Tile>(rows.group);
  if (smem.item(at).seq < 0) return;
  load_q<Tile>(p, smem.items[at.slot], rows);
  while (true) {
    const PrefillItem &item = smem.items[at.slot];
    reset_rows<Tile>(p, item, rows);
    ptx::wait_copies<0>();
    ptx::fence_shared_writes();
    ptx::sync_threads(kGroupBarrier + rows.group, 128); // q is there
    const int tiles_end = multiply_item<Tile, kSoftCap>(p, item, tiles, rows);
    ptx::sync_threads(kGroupBarrier + rows.group, 128); // q is done with
    Ring<kItemSlots> next = at;
    next.advance();
    const bool more = smem.item(next).seq >= 0;
    if (more) load_q<Tile>(p, smem.items[next.slot], rows);
    finish_item<Tile>(item, tiles, rows, tiles_end);
    store_rows<Tile>(p, item, rows);
    smem.release(at);
    if (!more) return;
    at = next;
  }
}

#endif

template <typename Tile, bool kSoftCap>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    attention_prefill_sm90_kernel(const __grid_constant__ pagoda_attention_params p, const __grid_constant__ CUtensorMap map, const __grid_constant__ PrefillBoxes boxes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char smem_bytes[];
  __shared__ uint64_t barriers[2 * (Tile::kSlots + kItemSlots)];
  __shared__ PrefillItem items[kItemSlots];
  PrefillShared<Tile> smem;
  smem.q = (ptx::shared_address(smem_bytes) + Tile::kAlignment - 1) / Tile::kAlignment * Tile::kAlignment;
  smem.ring = smem.q + Tile::kQBytes;
  smem.full = ptx::shared_address(barriers);
  smem.empty = smem.full + 8 * Tile::kSlots;
  smem.item_full = smem.empty + 8 * Tile::kSlots;
  smem.item_empty = smem.item_full + 8 * kItemSlots;
  smem.items = items;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kSlots; ++i) {
      ptx::init_barrier(smem.full_barrier(i), 1);
      ptx::init_barrier(smem.empty_barrier(i), Tile::kConsumers / kWarpSize);
    }
    for (int i = 0; i < kItemSlots; ++i) {
      ptx::init_barrier(smem.item_full + 8 * i, 1);
      ptx::init_barrier(smem.item_empty + 8 * i, Tile::kConsumers + kWarpSize);
    }
    ptx::fence_barrier_init();
    ptx::prefetch_map(&map);
  }
  __syncthreads();
  wait_then_allow_next();
  if (threadIdx.x >= Tile::kConsumers) {
    ptx::release_registers<Tile::kProducerRegisters>();
    const int warp = (threadIdx.x - Tile::kConsumers) / kWarpSize;
    if (warp == 0) produce_tiles<Tile>(p, &map, boxes, smem);
    else if (warp == 1) take_items<Tile>(p, smem);
  } else {
    ptx::acquire_registers<Tile::kConsumerRegisters>();
    consume_tiles<Tile, kSoftCap>(p, smem);
  }
#endif
}

} // namespace pagoda
