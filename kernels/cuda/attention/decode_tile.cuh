// Tiles of 16 keys and values of one kv head in shared memory, and their way there.
//
//   head_dim % 64 == 0:  [k, v][head_dim / 64][16 keys][128 bytes], the 16-byte columns of key r permuted by column ^ (r % 8), which is
//                        what a tensor copy with 128-byte swizzle leaves
//   other head sizes:    [k, v][16 keys][head_dim + 8 elements]
//
// In both, eight keys' 16 bytes of one column lie in different banks, as ldmatrix wants them. A cache of e4m3 codes has the same with 128 codes
// where there are 64 elements; heads of 64 have rows of 64 bytes, in which the column is permuted by (r / 2) % 4.
#pragma once
#include "../common/reduce.cuh"
#include "../common/types.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/tensor_copy.cuh"
#include "paged_kv.cuh"

namespace pagoda {

constexpr int kTileKeys = 16;

template <int kHeadDim, bool kCodes = false> struct KvTile {
  static_assert(kHeadDim % 16 == 0, "a head is a whole number of k steps of the product");
  static constexpr int kHeadBytes = kHeadDim * (kCodes ? 1 : 2);
  static constexpr int kChunks = kHeadBytes / 16; // columns of 16 bytes
  static constexpr bool kSwizzled = kHeadDim % 64 == 0;
  static constexpr bool kHalfRows = kSwizzled && kHeadBytes == 64;
  static constexpr int kRowBytes = kHalfRows ? 64 : kSwizzled ? 128 : kHeadBytes + 16;
  static constexpr int kPanels = kSwizzled && !kHalfRows ? kHeadBytes / 128 : 1;
  static constexpr int kPanelBytes = kTileKeys * kRowBytes; // of all keys
  static constexpr int kValues = kPanels * kPanelBytes;     // bytes from k to v
  static constexpr int kBytes = 2 * kValues;

  // Byte offset of column `chunk` (16 bytes) of a key.
  __device__ __forceinline__ static int offset(int key, int chunk) {
    if (kHalfRows) return key * kRowBytes + (chunk ^ (key / 2 % 4)) * 16;
    if (kSwizzled) return chunk / 8 * kPanelBytes + key * kRowBytes + ((chunk % 8) ^ (key % 8)) * 16;
    return key * kRowBytes + chunk * 16;
  }
};

// Some keys of one sequence and kv head: lo <= key < hi, in tiles from `first`.
struct KeyRange {
  const int32_t *table; // the sequence's blocks
  int kv_head;
  int lo, hi, first;
  int num_tiles; // 0: nothing to do
};

// The cache as rows of head_dim elements, [num_rows][head_dim]. The size of a block is a power of two.
struct CacheRows {
  int num_kv_heads;
  int block_size;
  int shift; // block_size == 1 << shift

  __device__ __forceinline__ CacheRows(int num_kv_heads, int block_size) : num_kv_heads(num_kv_heads), block_size(block_size) { shift = 31 - __clz(block_size); }
  // Row of k of a key; v is v_distance() further. The table comes through L1, although kernels read it before their wait: it was copied
  // before the first kernel of the step began, so no line of it in L1 is older than the copy. (Past L1, one sequence of 1024 keys and 28 heads
  // of 128 took 8.8 us in place of 8.2 on an H200.)
  __device__ __forceinline__ int row(const KeyRange &keys, int key) const {
    return ((keys.table[key >> shift] * 2 * num_kv_heads + keys.kv_head) << shift) + (key & (block_size - 1));
  }
  __device__ __forceinline__ int v_distance() const { return num_kv_heads << shift; }
  __device__ __forceinline__ bool blocks_hold_tiles() const { return block_size >= kTileKeys; }
};

// Starts the copies of a tile by all lanes of a warp; keys outside the range become zeros. `row`: of its first key, where blocks hold tiles.
template <typename Tile>
__device__ __forceinline__ void copy_tile(uint32_t tile, const char *kv_gmem, const CacheRows &cache, const KeyRange &keys, int first, int row, int lane) {
  constexpr int kChunks = Tile::kChunks;
#pragma unroll 4
  for (int i = 0; i < (kTileKeys * kChunks + kWarpSize - 1) / kWarpSize; ++i) {
    const int chunk = lane + i * kWarpSize;
    if (kTileKeys * kChunks % kWarpSize != 0 && chunk >= kTileKeys * kChunks) break;
    const int offset = chunk / kChunks, col = chunk % kChunks;
    const int key = first + offset;
    const bool valid = key >= keys.lo && key < keys.hi;
    const int64_t key_row = cache.blocks_hold_tiles() ? row + offset : valid ? cache.row(keys, key) : 0;
    const char *k_gmem = kv_gmem + key_row * Tile::kHeadBytes + col * 16;
    const uint32_t smem = tile + Tile::offset(offset, col);
    ptx::copy_16b_async(smem, k_gmem, valid);
    ptx::copy_16b_async(smem + Tile::kValues, k_gmem + static_cast<int64_t>(cache.v_distance()) * Tile::kHeadBytes, valid);
  }
}

} // namespace pagoda
