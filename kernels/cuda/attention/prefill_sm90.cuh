// Varlen chunked prefill attention over the paged cache for sm_90a: warpgroup products, K and V through tensor copies.
//
// A CTA walks over the items of prefill_items.cuh, tiles of kBlockM packed rows. Three warps feed it: one takes the items, one asks L2 for
// their q, one keeps a ring of slots full in the order K0, K1, V0, K2, V1, ..., V of the last. A slot is one K or V tile of kBlockN keys,
// one box a page:
//
//   [kBlockN / 8][panels of 64 columns][8 keys][128 bytes], swizzled, so that groups of 8 keys are equally far apart across pages
//
// A cache of e4m3 has other producers, which make bf16 of codes: prefill_sm90_codes.cuh.
//
// Pages without a key that the tile sees are asked for outside the cache and arrive as zeros. Issuing boxes is what limits small pages:
// with one box a page and panel, and the blocks looked up just before, pages of 16 keys reached 480 of the 680 TFLOP/s of pages of 128.
// kGroups warpgroups of 64 rows each consume:
//
//   S = Q K_n^T  |  O += P V_(n-1), while the softmax of S runs      P stays in registers as the second product's left operand
//
// and take turns in issuing products (head_dim 128 and up), so that one's softmax runs beside the other's products. Online softmax in f32,
// P rounded to bf16. Key tiles start at multiples of kBlockN whatever the step, and tiles that a row does not see change none of its bits:
// these depend on the sequence alone, not on chunk or batch.
//
// Bound by the tensor cores (head_dim 128, 256) or by exponentials (64). H100, a step of 8192 tokens, TFLOP/s over what is not masked:
//   28 / 4 heads of 128, pages of 16:  650 at context 8192, 660 at 16384, 610 to 650 at 32768 (power); 4 x 2048: 450; 16 x 512: 270
//   14 / 2 heads of 64: 400 at 8192, 480 at 16384;   16 / 8 heads of 256: 700 at 16384
// Short sequences are bound by q and out in memory. Tried without gain: S of the next item beside the last O, polynomials for a quarter of
// the exponentials. Warp roles, overlap and turns after FlashAttention-3 (BSD-3-Clause).
#pragma once
#include "../common/launch.cuh"
#include "prefill_sm90_codes.cuh"
#include "prefill_sm90_rows.cuh"
#include "prefill_sm90_shared.cuh"

namespace pagoda {

// Where boxes come from: [num_blocks * 2 * num_kv_heads] matrices of [block_size][head_dim].
struct PrefillBoxes {
  int box_rows;         // divides the block size, 8..kBlockN
  int block_size_shift; // block size = 1 << this
  int num_matrices;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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

// One warp: the tiles of one item. Blocks are looked up two tiles ahead.
template <typename Tile>
__device__ __forceinline__ void produce_item(const pagoda_attention_params &p, const CUtensorMap *map, const PrefillBoxes &boxes, const PrefillItem &item,
                                             const PrefillShared<Tile> &smem, Ring<Tile::kSlots> &at) {
  const int row = threadIdx.x % kWarpSize * boxes.box_rows; // of this lane's box in a tile
  const int32_t *table = p.block_tables + static_cast<int64_t>(item.seq) * p.max_blocks_per_seq;
  // Matrix of this lane's box of the K tile that starts at first_key; none of the stack when the item sees none of its keys. V is
  // num_kv_heads further.
  auto find_matrix = [&](int first_key) {
    const int key = first_key + row;
    const bool seen = row < Tile::kBlockN && key < item.key_end && key + boxes.box_rows > item.key_begin;
    return seen ? __ldcg(table + (key >> boxes.block_size_shift)) * 2 * p.num_kv_heads + item.kv_head : boxes.num_matrices;
  };
  auto copy = [&](int first_key, int matrix) {
    const int group = ((first_key + row) & ((1 << boxes.block_size_shift) - 1)) / 8;
    copy_tile<Tile>(map, smem, at, row, group, matrix);
  };
  int first_key = item.key_begin / Tile::kBlockN * Tile::kBlockN;
  int matrix = find_matrix(first_key), next_matrix = find_matrix(first_key + Tile::kBlockN);
  copy(first_key, matrix);
#pragma unroll 1
  for (; first_key + Tile::kBlockN < item.key_end; first_key += Tile::kBlockN) {
    const int later_matrix = find_matrix(first_key + 2 * Tile::kBlockN);
    copy(first_key + Tile::kBlockN, next_matrix);
    copy(first_key, matrix + p.num_kv_heads);
    matrix = next_matrix;
    next_matrix = later_matrix;
  }
  copy(first_key, matrix + p.num_kv_heads);
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

// One warp: asks L2 for q of the items to come.
template <typename Tile> __device__ __forceinline__ void prefetch_q(const pagoda_attention_params &p, const PrefillShared<Tile> &smem) {
  constexpr int kLineBytes = 128, kLines = Tile::kHeadDim * 2 / kLineBytes;
  const int group = p.num_heads / p.num_kv_heads;
  for (Ring<kItemSlots> at;; at.advance()) {
    const PrefillItem item = smem.item(at);
    smem.release(at);
    if (item.seq < 0) return;
    for (int row = threadIdx.x % kWarpSize; row < Tile::kBlockM; row += kWarpSize) {
      const int packed = item.first_packed + row;
      if (packed / group >= item.query_len) break;
      const char *q_gmem = reinterpret_cast<const char *>(q_row(p, item, packed / group, packed % group));
#pragma unroll
      for (int line = 0; line < kLines; ++line) ptx::prefetch_l2(q_gmem + line * kLineBytes);
    }
  }
}

// One warpgroup's walk along the ring.
template <typename Tile> struct PrefillConsumer {
  const PrefillShared<Tile> &smem;
  int group;
  Ring<Tile::kSlots> at;

  // Waits for the next tile.
  __device__ __forceinline__ uint32_t next_tile() const {
    ptx::wait_barrier(smem.full_barrier(at.slot), at.parity);
    return smem.slot(at.slot);
  }
  // This warp has read the tile of this slot.
  __device__ __forceinline__ void release(int slot) const {
    if (threadIdx.x % kWarpSize == 0) ptx::arrive(smem.empty_barrier(slot));
  }
  __device__ __forceinline__ void release_and_advance() {
    release(at.slot);
    at.advance();
  }

  // Waits for this warpgroup's turn to issue products.
  __device__ __forceinline__ void take_turn() const {
    if constexpr (Tile::kTurns) ptx::sync_threads(kTurnBarrier + group, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (Tile::kTurns) ptx::arrive_threads(kTurnBarrier + (group + 1 == Tile::kGroups ? 0 : group + 1), 256);
  }
};

// One warpgroup: all products of an item, of which the last, P V, is still under way at the end.
template <typename Tile, bool kSoftCap>
__device__ __forceinline__ void multiply_item(const pagoda_attention_params &p, const PrefillItem &item, PrefillConsumer<Tile> &tiles, PrefillRows<Tile> &rows) {
  constexpr int kBlockN = Tile::kBlockN;
  const PrefillScores<kSoftCap, Tile::kCodes> scores(p, item);
  const int key_end = item.key_end, context = item.context;
  int first_key = item.key_begin / kBlockN * kBlockN;
  float rescale[2];
  const uint32_t k_smem = tiles.next_tile();
  tiles.take_turn();
  start_scores<Tile>(rows, k_smem);
  tiles.pass_turn();
  ptx::wait_batches<0>();
  ptx::pin_sums(rows.s);
  tiles.release_and_advance();
  scores.to_probabilities(rows, first_key, rescale);
  round_probabilities<Tile>(rows);
  for (first_key += kBlockN; first_key < key_end; first_key += kBlockN) {
    const int k_slot = tiles.at.slot;
    const uint32_t k_smem = tiles.next_tile();
    tiles.at.advance();
    tiles.take_turn();
    start_scores<Tile>(rows, k_smem);
    start_output<Tile>(rows, tiles.next_tile());
    tiles.pass_turn();
    ptx::wait_batches<1>();
    ptx::pin_sums(rows.s);
    tiles.release(k_slot);
    scores.to_probabilities(rows, first_key, rescale);
    ptx::finish_before_wait(rows.l[0], rows.q);
    ptx::finish_before_wait(rows.l[1], rows.q);
    ptx::wait_batches<0>();
    ptx::pin_sums(rows.o);
    tiles.release_and_advance();
    round_probabilities<Tile>(rows);
    rescale_output<Tile>(rows, rescale);
  }
  const uint32_t v_smem = tiles.next_tile();
  // Codes of other keys are zeros already.
  if (!Tile::kCodes && first_key > context) clear_keys<Tile>(rows, v_smem, context - first_key + kBlockN);
  start_output<Tile>(rows, v_smem);
}

// One warpgroup. The next item's q is on its way while this one ends.
template <typename Tile, bool kSoftCap> __device__ __forceinline__ void consume_tiles(const pagoda_attention_params &p, const PrefillShared<Tile> &smem) {
  PrefillRows<Tile> rows;
  rows.group = threadIdx.x / 128;
  rows.q = smem.q + rows.group * Tile::kPanels * Tile::kQPanelBytes;
  PrefillConsumer<Tile> tiles{smem, rows.group, {}};
  Ring<kItemSlots> at;
  if (rows.group == Tile::kGroups - 1) tiles.pass_turn();
  bool more = smem.item(at).seq >= 0;
  if (more) load_q<Tile>(p, smem.items[at.slot], rows);
  while (more) {
    const PrefillItem &item = smem.items[at.slot];
    begin_rows<Tile>(p, item, rows);
    await_q<Tile>(rows);
    multiply_item<Tile, kSoftCap>(p, item, tiles, rows);
    const Ring<kItemSlots> item_at = at;
    at.advance();
    more = smem.item(at).seq >= 0;
    if (more) {
      ptx::sync_threads(kGroupBarrier + rows.group, 128); // all warps are done with q
      load_q<Tile>(p, smem.items[at.slot], rows);
    }
    ptx::wait_batches<0>();
    ptx::pin_sums(rows.o);
    tiles.release_and_advance();
    store_rows<Tile>(p, item, rows);
    smem.release(item_at);
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
  smem.q = (ptx::smem_address(smem_bytes) + Tile::kAlignment - 1) / Tile::kAlignment * Tile::kAlignment;
  smem.ring = smem.q + Tile::kQBytes;
  smem.staging = smem.ring + Tile::kSlots * Tile::kSlotBytes;
  smem.full = ptx::smem_address(barriers);
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
      ptx::init_barrier(smem.item_empty + 8 * i, Tile::kConsumers + (Tile::kCodes ? Tile::kConverters : 2) * kWarpSize);
    }
    ptx::fence_barrier_init();
    if (!Tile::kCodes) ptx::prefetch_map(&map);
  }
  __syncthreads();
  wait_then_allow_next();
  if (threadIdx.x >= Tile::kConsumers) {
    ptx::release_registers<Tile::kProducerRegisters>();
    const int warp = (threadIdx.x - Tile::kConsumers) / kWarpSize;
    if (warp == 1) take_items<Tile>(p, smem);
    else if constexpr (Tile::kCodes) convert_tiles<Tile>(p, smem, warp == 0 ? 0 : warp - 1);
    else if (warp == 0) produce_tiles<Tile>(p, &map, boxes, smem);
    else if (warp == 2) prefetch_q<Tile>(p, smem);
  } else {
    ptx::acquire_registers<Tile::kConsumerRegisters>();
    consume_tiles<Tile, kSoftCap>(p, smem);
  }
#endif
}

} // namespace pagoda
