// From tiles of 4-bit weights (pagoda_w4.h) to operand a of mma.m16n8k64 in e2m1. Lane l = 4 g + t.
//
// Of 64 columns, which are four groups of 16, operand a wants in lane t:     a tile has in word j of lane t:
//   registers 0, 1 (rows g, g + 8): eight of group t / 2                       four columns of group j, for rows g and g + 8
//   registers 2, 3:                 eight of group t / 2 + 2
// So lanes t and t ^ 2 exchange two words each:
//
//   word        0     1     2     3
//   t = 0, 1    keep  give  keep  give       and get words 0 and 2 of lane t + 2
//   t = 2, 3    give  keep  give  keep       and get words 1 and 3 of lane t - 2
//
// The columns of a group thereby come in an order of their own, and those of x have to come in the same.
#pragma once
#include <stdint.h>

namespace pagoda {

struct Fp4Group {
  static constexpr int kCols = 16;

  // Column at nibble `slot`: slots 0..7 are a register of even t, 8..15 of odd t.
  __host__ __device__ static constexpr int column(int slot) { return slot / 8 * 2 + slot % 2 + slot / 2 % 2 * 8 + slot / 4 % 2 * 4; }
};

// Which word a lane gives away first, and second.
__device__ __forceinline__ uint2 fp4_given(uint4 words, int t) { return t < 2 ? make_uint2(words.y, words.w) : make_uint2(words.x, words.z); }

// Bytes 0 and 2 (row g), or 1 and 3 (row g + 8), of the words of lanes t % 2 and t % 2 + 2.
template <int kRow> __device__ __forceinline__ uint32_t fp4_row(uint32_t lower, uint32_t upper) { return __byte_perm(lower, upper, kRow == 0 ? 0x6420 : 0x7531); }

// Operand a of a tile, from the lane's own words and those it got.
__device__ __forceinline__ void fp4_operand(uint32_t (&a)[4], uint4 words, uint2 got, int t) {
  const uint2 lower = t < 2 ? make_uint2(words.x, words.z) : got, upper = t < 2 ? got : make_uint2(words.y, words.w);
  a[0] = fp4_row<0>(lower.x, upper.x), a[1] = fp4_row<1>(lower.x, upper.x);
  a[2] = fp4_row<0>(lower.y, upper.y), a[3] = fp4_row<1>(lower.y, upper.y);
}

// Two e4m3 of group t (rows g and g + 8), from lane t and, in `other`, lane t ^ 1: of row g + 8 (t % 2) for the groups of both.
__device__ __forceinline__ uint32_t fp4_scale_pair(uint32_t own, uint32_t other, int t) {
  return t % 2 ? __byte_perm(other, own, 0x0051) & 0xffffu : __byte_perm(own, other, 0x0040) & 0xffffu;
}

} // namespace pagoda
