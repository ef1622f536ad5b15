// Paged decode attention: one query row a sequence against its whole context.
//
//   S^T = K Q^T, O^T = V^T P^T:  16 keys (or 16 head dims) are the rows of a product, up to 8 query heads of one kv head its columns,
//   so that grouped queries share every k and v that is read and nothing is padded to 16 rows.
//
// A fixed number of CTAs shares the items of decode_work.cuh: one each by number, the rest as they come free. In a CTA
//
//   warp 5      | item j -> works | its tiles -> ring, as slots come free | item j + 1 ...
//   warp 4      |      | item j: q rotated, fresh k and v -> items | count pieces of item j - 2 | item j + 1 ...
//   warps 0..3  |      |        | item j: every fourth tile of the ring | merge -> out or partials | item j + 1 ...
//
// so that no warp that computes waits for global memory, and copies for nothing but slots. Where a context has several pieces, each
// leaves (o, m, l) in `partials`; warp 4 counts them, and the CTA of the last one merges all in order, beside a later item: the result
// does not depend on which CTA it is.
//
// With `cos`, contexts, block tables and older keys are read before the wait for the previous kernel. That is safe although kernels wrote
// them: every kernel of a step waits before it lets its successor start, so all but the direct predecessor, which makes qkv or partial
// results of prefixes, have completed.
//
// Bound by memory: 2 * head_dim * 2 bytes a key and kv head. Keys as rows after TurboMind's decode attention (lmdeploy, Apache-2.0);
// split and merge after Flash-Decoding (BSD-3-Clause); seldom rescaled softmax after FlashAttention-4 (BSD-3-Clause).
#pragma once
#include "../common/launch.cuh"
#include "decode_merge.cuh"
#include "decode_product.cuh"
#include "decode_rows.cuh"
#include "decode_work.cuh"

namespace pagoda {

// The step's own k and v of one kv head as the cache has them, on their way to the last tile.
template <int kHeadDim, bool kCodes> struct FreshRow {
  uint4 k[KvTile<kHeadDim, kCodes>::kChunks];
  uint4 v[KvTile<kHeadDim, kCodes>::kChunks];
};

// What warp 4 hands over with an item.
template <int kHeadDim, bool kCodes> struct DecodeItem {
  DecodeWork work;  // num_tiles == 0: nothing to compute
  DecodeWork merge; // num_pieces > 0: all pieces of its sequence and heads are there
  bool is_end;      // no item follows
  int fresh_row;    // of the cache; -1: no fresh k and v
  FreshRow<kHeadDim, kCodes> fresh;
  uint2 q[kHeadDim / 16][kWarpSize]; // fragments
};

template <int kHeadDim, int kSlots, bool kCodes> struct DecodeSmem {
  char tiles[kSlots][KvTile<kHeadDim, kCodes>::kBytes];
  WarpState<kHeadDim> states[kDecodeWarps];
  DecodeItem<kHeadDim, kCodes> items[2];
  DecodeWork works[2];
  DecodePlan plan;
  uint64_t full[kSlots], empty[kSlots]; // a slot
  uint64_t taken[2], copied[2];         // of `works`
  uint64_t ready[2], done[2];           // of `items`
};
constexpr int kDecodeAlign = 1024; // the swizzle follows the address

// Waits until phase n of a barrier is over. All lanes pass before one goes on: else a later phase could be over before a lane has looked.
__device__ __forceinline__ void wait_for_phase(uint64_t *barrier, int n) {
  ptx::wait_barrier(ptx::smem_address(barrier), n % 2);
  __syncwarp();
}

// Warp 5. Takes items and starts the copies of their tiles.
template <int kHeadDim, int kSlots, bool kTensor, bool kCodes> struct TileFeeder {
  using Tile = KvTile<kHeadDim, kCodes>;
  const pagoda_attention_decode_params &d;
  const CUtensorMap &map;
  DecodeSmem<kHeadDim, kSlots, kCodes> &smem;
  const CacheRows cache;
  const int lane;
  int num_tiles = 0; // filled since the start

  // Tiles begin .. end of an item.
  __device__ __forceinline__ void fill(const KeyRange &keys, int begin, int end) {
    int row = 0;
#pragma unroll 1
    for (int i = begin; i < end; ++i, ++num_tiles) {
      if ((i - begin) % kWarpSize == 0 && cache.blocks_hold_tiles() && i + lane < keys.num_tiles) row = cache.row(keys, keys.first + (i + lane) * kTileKeys);
      const int tile_row = __shfl_sync(0xffffffffu, row, (i - begin) % kWarpSize);
      const int slot = num_tiles % kSlots;
      const uint32_t full = ptx::smem_address(smem.full + slot), tile = ptx::smem_address(smem.tiles[slot]);
      if (num_tiles >= kSlots) wait_for_phase(smem.empty + slot, num_tiles / kSlots - 1);
      if (kTensor) {
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
          ptx::arrive_expecting(full, Tile::kBytes);
          ptx::copy_box_4d(tile, &map, tile_row, full);
        }
#endif
      } else {
        copy_tile<Tile>(tile, static_cast<const char *>(d.attention.kv), cache, keys, keys.first + i * kTileKeys, tile_row, lane);
        ptx::arrive_after_copies(full);
      }
    }
  }

  __device__ __forceinline__ void run(const DecodeShape &shape) {
    const PrefixSplits prefixes(d);
    DecodeWork w = decode_work(d, shape, prefixes, smem.plan, blockIdx.x);
    bool has_waited = d.cos == nullptr;
#pragma unroll 1
    for (int j = 0;; ++j) {
      if (j >= 2) wait_for_phase(smem.copied + j % 2, j / 2 - 1);
      if (lane == 0) smem.works[j % 2] = w;
      ptx::arrive(ptx::smem_address(smem.taken + j % 2));
      const int early = has_waited ? 0 : min(w.keys.num_tiles, kSlots);
      if (!has_waited) {
        fill(w.keys, 0, early);
        wait_then_allow_next();
        has_waited = true;
      }
      if (w.keys.num_tiles == 0) break;
      int fetched = 0;
      if (lane == 0) fetched = gridDim.x + atomicAdd(d.counters, 1);
      fill(w.keys, early, w.keys.num_tiles);
      w = decode_work(d, shape, prefixes, smem.plan, __shfl_sync(0xffffffffu, fetched, 0));
    }
    // The last CTA leaves the counters as it found them.
    if (lane == 0 && atomicAdd(d.counters + 1, 1) == static_cast<int>(gridDim.x) - 1) d.counters[0] = d.counters[1] = 0;
  }
};

// Warp 4. Gives every item what it needs beside its tiles.
template <int kHeadDim, int kSlots, bool kCodes> struct RowFeeder {
  const pagoda_attention_decode_params &d;
  DecodeSmem<kHeadDim, kSlots, kCodes> &smem;
  const CacheRows cache;
  const int lane;

  // q, rotated, and the step's own k and v.
  __device__ __forceinline__ void load_rows(const DecodeWork &w, DecodeItem<kHeadDim, kCodes> &item) {
    const pagoda_attention_params &p = d.attention;
    const bf16 *row_gmem = static_cast<const bf16 *>(p.qkv) + static_cast<int64_t>(w.row) * (p.num_heads + 2 * p.num_kv_heads) * kHeadDim;
    const bf16 *k_gmem = row_gmem + (p.num_heads + w.keys.kv_head) * kHeadDim;
    const bool rotate = d.cos != nullptr, has_head = lane / 4 < w.num_heads, is_fresh = rotate && w.is_last;
    RowFrag<kHeadDim> q, k;
    load_row<kHeadDim>(q, row_gmem + (w.first_head + (has_head ? lane / 4 : 0)) * kHeadDim, has_head, lane);
    load_row<kHeadDim>(k, k_gmem, is_fresh, lane);
    if (is_fresh) load_fresh_v(item, k_gmem + p.num_kv_heads * kHeadDim, w.keys.kv_head);
    if (rotate) norm_and_rotate<kHeadDim>(q, d, d.q_norm, w.context - 1, lane);
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) item.q[i][lane] = make_uint2(q[i][0], q[i][1]);
    if (lane == 0) item.fresh_row = is_fresh ? cache.row(w.keys, w.context - 1) : -1;
    if (!is_fresh) return;
    norm_and_rotate<kHeadDim>(k, d, d.k_norm, w.context - 1, lane);
    uint32_t *k_smem = reinterpret_cast<uint32_t *>(item.fresh.k);
    // Every group of 4 lanes has all of k.
    if constexpr (kCodes) {
      const float scale = __ldg(p.kv_scales + w.keys.kv_head);
#pragma unroll
      for (int i = 0; i < kHeadDim / 16; ++i) {
        if (i % 8 == lane / 4) k_smem[i * 4 + lane % 4] = encode_e4m3(k[i][0], k[i][1], scale);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        if (j % 8 == lane / 4) k_smem[j * 4 + lane % 4] = k[j / 2][j % 2];
      }
    }
  }

  __device__ __forceinline__ void load_fresh_v(DecodeItem<kHeadDim, kCodes> &item, const bf16 *v_gmem, int kv_head) {
    if (lane >= KvTile<kHeadDim, kCodes>::kChunks) return;
    if constexpr (kCodes) {
      const uint4 low = ptx::load_16b(v_gmem + lane * 16), high = ptx::load_16b(v_gmem + lane * 16 + 8);
      const float scale = __ldg(d.attention.kv_scales + d.attention.num_kv_heads + kv_head);
      item.fresh.v[lane] = make_uint4(encode_e4m3(low.x, high.x, scale), encode_e4m3(low.y, high.y, scale), encode_e4m3(low.z, high.z, scale), encode_e4m3(low.w, high.w, scale));
    } else {
      item.fresh.v[lane] = ptx::load_16b(v_gmem + lane * 8);
    }
  }

  // Whether all pieces of an item's sequence are in `partials`, this one the last of them.
  __device__ __forceinline__ bool count_piece(const DecodeWork &w, const DecodeShape &shape) {
    const int heads = d.attention.num_kv_heads * shape.chunks;
    int32_t *counter = d.counters + 2 + static_cast<int64_t>(w.seq) * heads + w.keys.kv_head * shape.chunks + w.chunk;
    const bool is_last = ptx::add_in_order(counter, 1) == w.num_pieces - 1;
    if (is_last) *counter = 0;
    return is_last;
  }

  __device__ __forceinline__ void run(const DecodeShape &shape) {
    if (d.cos != nullptr) wait_then_allow_next();
    DecodeWork merge = {}; // lane 0 knows
    int num_empty = 0;
    // Three more rounds than items: the pieces of the last item are counted two rounds later, and merged in the next.
#pragma unroll 1
    for (int j = 0; num_empty < 3; ++j) {
      DecodeWork w = {};
      if (num_empty == 0) {
        wait_for_phase(smem.taken + j % 2, j / 2);
        w = smem.works[j % 2];
        ptx::arrive(ptx::smem_address(smem.copied + j % 2));
      }
      num_empty = w.keys.num_tiles > 0 ? 0 : num_empty + 1;
      DecodeItem<kHeadDim, kCodes> &item = smem.items[j % 2];
      if (j >= 2) wait_for_phase(smem.done + j % 2, j / 2 - 1);
      if (w.keys.num_tiles > 0) load_rows(w, item);
      if (lane == 0) {
        const DecodeWork before = item.work;
        item.work = w;
        item.merge = merge;
        item.is_end = num_empty == 3;
        merge = before;
      }
      ptx::arrive(ptx::smem_address(smem.ready + j % 2));
      if (lane == 0) {
        const bool is_split = j >= 2 && merge.keys.num_tiles > 0 && merge.num_pieces > 1;
        if (!is_split || !count_piece(merge, shape)) merge.num_pieces = 0;
      }
    }
  }
};

// Adds the step's own k and v to the tile, and to the cache.
template <int kHeadDim, bool kCodes>
__device__ __forceinline__ void add_fresh(const pagoda_attention_params &p, const DecodeItem<kHeadDim, kCodes> &item, uint32_t tile, int key, int lane) {
  using Tile = KvTile<kHeadDim, kCodes>;
  if (lane >= Tile::kChunks) return;
  const uint4 k = item.fresh.k[lane], v = item.fresh.v[lane];
  ptx::store_shared_16b(tile + Tile::offset(key, lane), k);
  ptx::store_shared_16b(tile + Tile::kValues + Tile::offset(key, lane), v);
  if (item.work.chunk > 0) return;
  char *k_gmem = static_cast<char *>(p.kv) + static_cast<int64_t>(item.fresh_row) * Tile::kHeadBytes + lane * 16;
  ptx::store_16b(k_gmem, k);
  ptx::store_16b(k_gmem + static_cast<int64_t>(p.num_kv_heads) * p.block_size * Tile::kHeadBytes, v);
}

// One item of warps 0..3; `num_before` tiles went through the ring before.
template <int kHeadDim, int kSlots, bool kTensor, bool kCodes>
__device__ __forceinline__ void compute_item(const pagoda_attention_decode_params &d, DecodeSmem<kHeadDim, kSlots, kCodes> &smem, const DecodeItem<kHeadDim, kCodes> &item, int num_before,
                                             int warp, int lane) {
  const pagoda_attention_params &p = d.attention;
  const float k_scale = kCodes ? __ldg(p.kv_scales + item.work.keys.kv_head) : 1.0f;
  const float v_scale = kCodes ? __ldg(p.kv_scales + p.num_kv_heads + item.work.keys.kv_head) : 1.0f;
  const int lo = item.work.keys.lo, hi = item.work.keys.hi, first = item.work.keys.first, num_tiles = item.work.keys.num_tiles;
  RowFrag<kHeadDim> q;
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    const uint2 pair = item.q[i][lane];
    q[i][0] = pair.x, q[i][1] = pair.y;
  }
  DecodeState<kHeadDim> state;
  // A slot belongs to one warp, which so waits for the use after the last one that it has seen. Which tiles meet in a sum does not depend
  // on what went through the ring before.
  static_assert(kSlots % kDecodeWarps == 0, "a slot belongs to one warp");
  const int first_tile = (warp - num_before) & (kDecodeWarps - 1);
#pragma unroll 1
  for (int i = first_tile; i < num_tiles; i += kDecodeWarps) {
    const int slot = (num_before + i) % kSlots, key = first + i * kTileKeys;
    const uint32_t tile = ptx::smem_address(smem.tiles[slot]);
    wait_for_phase(smem.full + slot, (num_before + i) / kSlots);
    const bool adds = item.fresh_row >= 0 && i == num_tiles - 1;
    const bool is_edge = key < lo || key + kTileKeys > hi;
    if (is_edge || adds) {
      if (kTensor && is_edge) clear_outside<KvTile<kHeadDim, kCodes>>(tile, lo - key, hi - key, lane);
      __syncwarp();
      if (adds) add_fresh<kHeadDim, kCodes>(p, item, tile, hi - 1 - key, lane);
#if __CUDA_ARCH__ >= 900
      ptx::fence_shared_writes();
#endif
      __syncwarp();
    }
    decode_tile<kHeadDim, kCodes>(p, p.scale * k_scale, q, tile, is_edge, lo - key, hi - key, lane, state);
    __syncwarp();
    if (lane == 0) ptx::arrive(ptx::smem_address(smem.empty + slot));
  }
  store_state<kHeadDim>(smem.states[first_tile], state, v_scale, lane);
  __syncwarp();
  ptx::sync_threads(1, kDecodeWarps * kWarpSize);
  merge_warps<kHeadDim>(d, item.work, smem.states);
  __syncwarp();
  ptx::sync_threads(1, kDecodeWarps * kWarpSize); // the states have been read
}

template <int kHeadDim, int kSlots, bool kTensor, bool kCodes>
__global__ void __launch_bounds__(kDecodeThreads, kHeadDim <= 64 ? 3 : kHeadDim <= 128 ? 2 : 1) attention_decode_kernel(const __grid_constant__ pagoda_attention_decode_params d, const __grid_constant__ CUtensorMap map) {
  extern __shared__ char smem_bytes[];
  auto &smem = *reinterpret_cast<DecodeSmem<kHeadDim, kSlots, kCodes> *>(smem_bytes + (-ptx::smem_address(smem_bytes) & (kDecodeAlign - 1)));
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (threadIdx.x < kSlots) {
    ptx::init_barrier(ptx::smem_address(smem.full + threadIdx.x), kTensor ? 1 : kWarpSize);
    ptx::init_barrier(ptx::smem_address(smem.empty + threadIdx.x), 1);
  }
  if (threadIdx.x < 2) {
    ptx::init_barrier(ptx::smem_address(smem.taken + threadIdx.x), kWarpSize);
    ptx::init_barrier(ptx::smem_address(smem.copied + threadIdx.x), kWarpSize);
    ptx::init_barrier(ptx::smem_address(smem.ready + threadIdx.x), kWarpSize);
    ptx::init_barrier(ptx::smem_address(smem.done + threadIdx.x), kDecodeWarps * kWarpSize);
  }
#if __CUDA_ARCH__ >= 900
  ptx::fence_barrier_init();
#endif
  if (d.cos == nullptr) wait_then_allow_next();
  const DecodeShape shape = plan_decode(d, smem.plan); // a barrier of all threads
  const CacheRows cache(d.attention.num_kv_heads, d.attention.block_size);
  if (warp == kDecodeWarps + 1) return TileFeeder<kHeadDim, kSlots, kTensor, kCodes>{d, map, smem, cache, lane}.run(shape);
  if (warp == kDecodeWarps) return RowFeeder<kHeadDim, kSlots, kCodes>{d, smem, cache, lane}.run(shape);
  if (d.cos != nullptr) wait_then_allow_next();
  int num_before = 0;
#pragma unroll 1
  for (int j = 0;; ++j) {
    const DecodeItem<kHeadDim, kCodes> &item = smem.items[j % 2];
    wait_for_phase(smem.ready + j % 2, j / 2);
    if (item.merge.num_pieces > 0) merge_pieces<kHeadDim>(d, item.merge);
    if (item.work.keys.num_tiles > 0) compute_item<kHeadDim, kSlots, kTensor, kCodes>(d, smem, item, num_before, warp, lane);
    num_before += item.work.keys.num_tiles;
    if (item.is_end) break;
    ptx::arrive(ptx::smem_address(smem.done + j % 2));
  }
}

} // namespace pagoda
