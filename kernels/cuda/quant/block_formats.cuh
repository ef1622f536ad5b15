// Blocks of GGUF as kernels read them (pagoda_blocks.h): one struct a format, of which each object is a unit of a row in registers.
//
// A unit is 32 values in two runs of 16. It is what 16 bytes of nibbles hold: the low halves are one run, the high halves the other.
//
//   format            values of run r of unit u of a block, from
//   Q4_*, Q5_*, Q8_0  16 r
//   Q4_K, Q5_K        64 (u / 2) + 16 (u % 2) + 32 r
//   Q6_K              128 (u / 4) + 32 (u / 2 % 2) + 16 (u % 2) + 64 r
//
// Values have the bits of ggml's dequantize_row: scale * code is exact in f32 (11 bits of a half, up to 7 of a scale, up to 6 of a code), so that
// one multiply-add rounds as its subtraction does. Block layouts follow ggml's ggml-common.h and dequantize_row_* (MIT).
#pragma once
#include "../common/types.cuh"
#include "../ptx/memory.cuh"
#include "pagoda.h"

namespace pagoda {

constexpr int kUnitValues = 32;
constexpr int kRunValues = 16;
constexpr int kOctetValues = 8; // half a run: eight neighbours

__device__ __forceinline__ float half_f32(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); }

// Words 0 and 1, or 2 and 3.
__device__ __forceinline__ uint2 half_of(uint4 v, int half) { return half ? make_uint2(v.z, v.w) : make_uint2(v.x, v.y); }

// Eight low nibbles, or eight high ones, a byte each.
__device__ __forceinline__ uint2 nibbles(uint2 v, int run) { return make_uint2(v.x >> 4 * run & 0x0f0f0f0fu, v.y >> 4 * run & 0x0f0f0f0fu); }

// Bits 0 to 3 of v in bits 4 of four bytes.
__device__ __forceinline__ uint32_t fifth_bits(uint32_t v) { return ((v & 15u) * 0x00204081u & 0x01010101u) << 4; }

// byte i of v - zero, exactly: 2^23 + byte is the float of those low bits.
__device__ __forceinline__ float byte_f32(uint32_t v, int i, float zero) { return __uint_as_float(__byte_perm(v, 0x4b000000u, 0x7440 + i)) - (8388608.0f + zero); }

// w = scale * (code - zero) of eight codes, a byte each.
__device__ __forceinline__ void scaled(float (&w)[kOctetValues], uint2 codes, float zero, float scale) {
#pragma unroll
  for (int i = 0; i < kOctetValues; ++i) w[i] = scale * byte_f32(i < 4 ? codes.x : codes.y, i % 4, zero);
}

// w = scale * code + shift.
__device__ __forceinline__ void shifted(float (&w)[kOctetValues], uint2 codes, float scale, float shift) {
#pragma unroll
  for (int i = 0; i < kOctetValues; ++i) w[i] = fmaf(scale, byte_f32(i < 4 ? codes.x : codes.y, i % 4, 0.0f), shift);
}

// Q4_0, Q4_1, Q5_0, Q5_1: 32 values of nibbles and perhaps a fifth bit; d * (q - middle), or d * q + m.
template <bool kFive, bool kShift> struct SmallBlock {
  static constexpr int kValues = 32, kCodeBytes = 16, kRestBytes = 2 + (kShift ? 2 : 0) + (kFive ? 4 : 0);
  uint4 codes = {};
  uint32_t factors = 0; // d in the low half, m in the high one
  uint32_t high = 0;    // the fifth bit of value i at bit i

  __host__ __device__ static constexpr int first(int, int run) { return kRunValues * run; }

  __device__ __forceinline__ void load(const uint8_t *codes_gmem, const uint8_t *rest_gmem, int) {
    codes = ptx::load_16b(codes_gmem);
    if constexpr (kFive && kShift) {
      const uint2 rest = ptx::load_8b(rest_gmem);
      factors = rest.x, high = rest.y;
    } else if constexpr (kFive) {
      factors = ptx::load_2b(rest_gmem);
      high = ptx::load_2b(rest_gmem + 2) | static_cast<uint32_t>(ptx::load_2b(rest_gmem + 4)) << 16;
    } else if constexpr (kShift) {
      factors = ptx::load_4b(rest_gmem);
    } else {
      factors = ptx::load_2b(rest_gmem);
    }
  }

  __device__ __forceinline__ void octet(float (&w)[kOctetValues], int run, int half) const {
    uint2 q = nibbles(half_of(codes, half), run);
    if constexpr (kFive) {
      const uint32_t bits = high >> (kRunValues * run + kOctetValues * half);
      q.x |= fifth_bits(bits), q.y |= fifth_bits(bits >> 4);
    }
    if constexpr (kShift) shifted(w, q, half_f32(factors), half_f32(factors >> 16));
    else scaled(w, q, kFive ? 16.0f : 8.0f, half_f32(factors));
  }
};

// Q8_0: 32 signed bytes; d * q.
struct ByteBlock {
  static constexpr int kValues = 32, kCodeBytes = 32, kRestBytes = 2;
  uint4 codes[2] = {};
  uint32_t factors = 0;

  __host__ __device__ static constexpr int first(int, int run) { return kRunValues * run; }

  __device__ __forceinline__ void load(const uint8_t *codes_gmem, const uint8_t *rest_gmem, int) {
    codes[0] = ptx::load_16b(codes_gmem), codes[1] = ptx::load_16b(codes_gmem + 16);
    factors = ptx::load_2b(rest_gmem);
  }

  __device__ __forceinline__ void octet(float (&w)[kOctetValues], int run, int half) const {
    const uint2 q = half_of(run ? codes[1] : codes[0], half);
    // q + 128, without a sign.
    scaled(w, make_uint2(q.x ^ 0x80808080u, q.y ^ 0x80808080u), 128.0f, half_f32(factors));
  }
};

// Q4_K, Q5_K: eight sub-blocks of 32 values with 6-bit scales and minima; d * scale * q - dmin * min. Two sub-blocks share 32 bytes of nibbles.
// Fifth bits: bit s of byte i is that of value i of sub-block s.
template <bool kFive> struct SuperBlock {
  static constexpr int kHighBytes = kFive ? 32 : 0;
  static constexpr int kValues = 256, kCodeBytes = kHighBytes + 128, kRestBytes = 16;
  uint4 codes = {}, high = {};
  uint4 rest = {}; // d and dmin, then 12 bytes of scales and minima
  int pair = 0;    // of sub-blocks

  __host__ __device__ static constexpr int first(int unit, int run) { return unit / 2 * 64 + unit % 2 * kRunValues + 32 * run; }

  __device__ __forceinline__ void load(const uint8_t *codes_gmem, const uint8_t *rest_gmem, int unit) {
    codes = ptx::load_16b(codes_gmem + kHighBytes + 16 * unit);
    if constexpr (kFive) high = ptx::load_16b(codes_gmem + 16 * (unit % 2));
    rest = ptx::load_16b(rest_gmem);
    pair = unit / 2;
  }

  __device__ __forceinline__ void octet(float (&w)[kOctetValues], int run, int half) const {
    const int sub = 2 * pair + run, shift = 8 * (sub % 4);
    // Sub-blocks 0 to 3: six bits of bytes sub and 4 + sub. The others: four bits of byte 4 + sub and the two that the former leave.
    const uint32_t scales = rest.y >> shift, mins = rest.z >> shift, late = rest.w >> shift;
    const uint32_t scale = sub < 4 ? scales & 63u : (late & 15u) | (scales >> 2 & 48u);
    const uint32_t min = sub < 4 ? mins & 63u : (late >> 4 & 15u) | (mins >> 2 & 48u);
    uint2 q = nibbles(half_of(codes, half), run);
    if constexpr (kFive) {
      const uint2 bits = half_of(high, half);
      q.x |= (bits.x >> sub & 0x01010101u) << 4, q.y |= (bits.y >> sub & 0x01010101u) << 4;
    }
    shifted(w, q, half_f32(rest.x) * byte_f32(scale, 0, 0.0f), -(half_f32(rest.x >> 16) * byte_f32(min, 0, 0.0f)));
  }
};

// Q6_K: sixteen sub-blocks of 16 values with signed scales of a byte; d * scale * (q - 32). In each half of 128 values a quarter's two high bits
// are bits 2 quarter and the next of 32 bytes.
struct SixBlock {
  static constexpr int kValues = 256, kCodeBytes = 192, kRestBytes = 18;
  uint4 low = {}, high = {};
  uint32_t scales = 0; // of run 0, and of run 1 in the second byte
  uint32_t factors = 0;
  int part = 0;

  __host__ __device__ static constexpr int first(int unit, int run) { return unit / 4 * 128 + unit / 2 % 2 * 32 + unit % 2 * kRunValues + 64 * run; }

  __device__ __forceinline__ void load(const uint8_t *codes_gmem, const uint8_t *rest_gmem, int unit) {
    low = ptx::load_16b(codes_gmem + 16 * unit);
    high = ptx::load_16b(codes_gmem + 128 + 32 * (unit / 4) + 16 * (unit % 2));
    part = unit / 2 % 2;
    // Scales of neighbouring units are neighbours; two bytes are loaded, since the address of one may be odd.
    const uint8_t *scales_gmem = rest_gmem + 8 * (unit / 4) + 2 * part;
    const int shift = 8 * (unit % 2);
    scales = (ptx::load_2b(scales_gmem) >> shift & 255u) | (ptx::load_2b(scales_gmem + 4) >> shift & 255u) << 8;
    factors = ptx::load_2b(rest_gmem + 16);
  }

  __device__ __forceinline__ void octet(float (&w)[kOctetValues], int run, int half) const {
    uint2 q = nibbles(half_of(low, half), run);
    const uint2 bits = half_of(high, half);
    const int shift = 2 * (part + 2 * run);
    q.x |= (bits.x >> shift & 0x03030303u) << 4, q.y |= (bits.y >> shift & 0x03030303u) << 4;
    scaled(w, q, 32.0f, half_f32(factors) * byte_f32(scales ^ 0x8080u, run, 128.0f));
  }
};

using Q4_0 = SmallBlock<false, false>;
using Q4_1 = SmallBlock<false, true>;
using Q5_0 = SmallBlock<true, false>;
using Q5_1 = SmallBlock<true, true>;
using Q8_0 = ByteBlock;
using Q4_K = SuperBlock<false>;
using Q5_K = SuperBlock<true>;
using Q6_K = SixBlock;

// A row of n blocks.
template <typename Block> struct BlockRow {
  static constexpr int kUnits = Block::kValues / kUnitValues;
  static_assert(Block::kCodeBytes % 16 == 0 && Block::kRestBytes % 2 == 0, "codes are loaded 16 bytes at a time, the rest two at least");
  const uint8_t *codes_gmem, *rest_gmem;

  __device__ __forceinline__ BlockRow(const void *rows, int64_t row, int k) {
    const int num_blocks = k / Block::kValues;
    codes_gmem = static_cast<const uint8_t *>(rows) + row * bytes(k);
    rest_gmem = codes_gmem + num_blocks * Block::kCodeBytes;
  }

  __host__ __device__ static int64_t bytes(int k) { return (static_cast<int64_t>(k / Block::kValues) * (Block::kCodeBytes + Block::kRestBytes) + 15) / 16 * 16; }

  // Unit `unit` of the row.
  __device__ __forceinline__ void load(Block &block, int unit) const {
    block.load(codes_gmem + unit / kUnits * Block::kCodeBytes, rest_gmem + unit / kUnits * Block::kRestBytes, unit % kUnits);
  }

  // First value of a run of unit `unit` of the row.
  __host__ __device__ static constexpr int first(int unit, int run) { return unit / kUnits * Block::kValues + Block::first(unit % kUnits, run); }
};

// call(Block{}) with the struct of a format; PAGODA_INVALID_ARGUMENT for none.
template <typename Call> pagoda_status with_block(pagoda_block_format format, Call call) {
  switch (format) {
  case PAGODA_Q4_0: return call(Q4_0{});
  case PAGODA_Q4_1: return call(Q4_1{});
  case PAGODA_Q5_0: return call(Q5_0{});
  case PAGODA_Q5_1: return call(Q5_1{});
  case PAGODA_Q8_0: return call(Q8_0{});
  case PAGODA_Q4_K: return call(Q4_K{});
  case PAGODA_Q5_K: return call(Q5_K{});
  case PAGODA_Q6_K: return call(Q6_K{});
  }
  return PAGODA_INVALID_ARGUMENT;
}

} // namespace pagoda
