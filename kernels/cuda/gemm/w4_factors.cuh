// From the bytes of a 4-bit tile (pagoda_w4.h) to operands of mma.m16n8k16: codes through a table of pairs in shared memory, scales, zeros.
//
//   table: entry e (a byte: two codes) is the pair {book[e % 16], book[e / 16]} of bf16, once for every lane of a warp:
//          | e = 0: lane 0 .. lane 31 | e = 1: lane 0 .. lane 31 | ...      128 bytes an entry, so that no two lanes meet in a bank
//
// Two instructions find an entry and one loads it, so that every book costs the same. The idea of a table of pairs is FLUTE's (Apache-2.0).
#pragma once
#include "../common/types.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/memory.cuh"
#include "../quant/w4_tile.cuh"

namespace pagoda {

constexpr int kPairs = 256;
constexpr int kPairBytes = 32 * 4; // of an entry
constexpr int kPairTableBytes = kPairs * kPairBytes;

// What the kernels multiply by: the book in units that bf16 holds well, and the factor of the sums that undoes it.
struct W4Book {
  float values[16];
  float factor;
};

// How often scales change along a row of a tile: never, or with the steps. Zeros are taken from the codes: exactly, where both are whole numbers
// up to 256. Short scales are those that bf16 holds; their kernels know no zeros.
enum W4Scaling { kTileScales, kTileScalesZeros, kStepScales, kStepScalesZeros, kStepShortScales };

// k-steps (16 columns, one mma) that share a scale.
template <W4Scaling kScaling> constexpr int kScaledSteps = kScaling == kTileScales || kScaling == kTileScalesZeros ? 4 : 1;
template <W4Scaling kScaling> constexpr bool kHasZeros = kScaling == kTileScalesZeros || kScaling == kStepScalesZeros;

// One warp: the sixteen entries whose high nibble is `high`.
__device__ __forceinline__ void fill_pair_row(unsigned char *table_smem, const W4Book &book, int high, int lane) {
  const float value = book.values[lane % 16], second = __shfl_sync(0xffffffffu, value, high);
#pragma unroll
  for (int i = 0; i < 4; ++i) { // four entries at a time, eight lanes each
    const int low = 4 * i + lane / 8;
    const uint32_t pair = pack_bf16(__shfl_sync(0xffffffffu, value, low), second);
    *reinterpret_cast<uint4 *>(table_smem + (high * 16 + low) * kPairBytes + lane % 8 * 16) = make_uint4(pair, pair, pair, pair);
  }
}

// kWarps warps (1, 2, 4, 8, 16) fill the table; all threads of the CTA call it. A warp has the entries of some high nibbles.
template <int kWarps> __device__ __forceinline__ void fill_pair_table(unsigned char *table_smem, const W4Book &book, int warp, int lane) {
  if (warp >= kWarps) return;
#pragma unroll
  for (int high = 0; high < 16 / kWarps; ++high) fill_pair_row(table_smem, book, warp + high * kWarps, lane);
}

// sums (of rows g and g + 8, two tokens each) += scale * part.
__device__ __forceinline__ void w4_add_scaled(float (&sums)[4], const float (&part)[4], float2 scale) {
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[e] = fmaf(e < 2 ? scale.x : scale.y, part[e], sums[e]);
}

__device__ __forceinline__ float2 w4_half_pair(uint32_t bits) { return __half22float2(*reinterpret_cast<const __half2 *>(&bits)); }

// Entries of the table for the bytes of a word.
__device__ __forceinline__ void w4_decode_pairs(uint32_t (&pairs)[4], uint32_t word, const unsigned char *table_smem, uint32_t lane_offset) {
  constexpr uint32_t kEntries = (kPairs - 1) << 7;
  static_assert(kPairBytes == 1 << 7, "a byte times 128 is where its entry begins");
  const uint32_t entries[4] = {word << 7, word >> 1, word >> 9, word >> 17};
#pragma unroll
  for (int e = 0; e < 4; ++e) pairs[e] = *reinterpret_cast<const uint32_t *>(table_smem + (entries[e] & kEntries | lane_offset));
}

// Scales and zeros of rows g and g + 8 of a tile, for the steps of one group.
template <W4Scaling kScaling> struct W4LaneFactors {
  float2 scale;
  __nv_bfloat162 zero[2];

  // From the f16 pairs of the tile; `zeros` is 0 without any.
  __device__ __forceinline__ W4LaneFactors(uint32_t scales, uint32_t zeros) : scale(w4_half_pair(scales)) {
    if (!kHasZeros<kScaling>) return;
    const float2 z = w4_half_pair(zeros);
    zero[0] = __float2bfloat162_rn(z.x), zero[1] = __float2bfloat162_rn(z.y);
  }

  // What mma multiplies by, from the pair of a table entry.
  __device__ __forceinline__ uint32_t weights(uint32_t pair, int row) const {
    if (!kHasZeros<kScaling>) return pair;
    const __nv_bfloat162 codes = __hsub2(*reinterpret_cast<const __nv_bfloat162 *>(&pair), zero[row]);
    return *reinterpret_cast<const uint32_t *>(&codes);
  }

  // sums += the products of the group.
  __device__ __forceinline__ void add(float (&sums)[4], const float (&part)[4]) const { w4_add_scaled(sums, part, scale); }
};

// How one lane (g = lane / 4, t = lane % 4) reads tiles.
template <W4Scaling kScaling> struct W4Lane {
  const unsigned char *table_smem;
  int lane_offset; // in an entry of the table
  int scale_offset; // of rows g, g + 8 in a tile
  int zero_bytes;   // from there to the zeros, where there are any
  int scales;       // of a row in a tile

  __device__ __forceinline__ W4Lane(const W4Tile &tile, const unsigned char *table, int lane)
      : table_smem(table), lane_offset(lane * 4), scale_offset(W4Tile::kCodeBytes + lane / 4 * 4), zero_bytes(kScaledSteps<kScaling> == 1 ? tile.plane_bytes() : W4Tile::kRows * 2), scales(tile.scales) {}

  // From shared memory, for the group of step j: the f16 pairs, and what they stand for.
  __device__ __forceinline__ uint2 factor_bits(uint32_t tile_smem, int j) const {
    const uint32_t address = tile_smem + scale_offset + j * scales / 4 * 32;
    return make_uint2(ptx::load_shared_4b(address), kHasZeros<kScaling> ? ptx::load_shared_4b(address + zero_bytes) : 0);
  }
  __device__ __forceinline__ W4LaneFactors<kScaling> factors(uint32_t tile_smem, int j) const {
    const uint2 bits = factor_bits(tile_smem, j);
    return {bits.x, bits.y};
  }

  // The same from global memory.
  __device__ __forceinline__ W4LaneFactors<kScaling> factors(const uint8_t *tile_gmem, int j) const {
    const uint8_t *address = tile_gmem + scale_offset + j * scales / 4 * 32;
    return {ptx::load_4b(address), kHasZeros<kScaling> ? ptx::load_4b(address + zero_bytes) : 0};
  }

  // Operand a of step j, from word j of the lane's codes.
  __device__ __forceinline__ void decode(uint32_t (&a)[4], uint32_t word, const W4LaneFactors<kScaling> &factors) const {
    uint32_t pairs[4];
    w4_decode_pairs(pairs, word, table_smem, lane_offset);
#pragma unroll
    for (int e = 0; e < 4; ++e) a[e] = factors.weights(pairs[e], e % 2);
  }
};

} // namespace pagoda
