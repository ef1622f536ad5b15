// Blocks of GGUF as kernels read them (pagoda_blocks.h): one struct a format, of which each object is what a lane has of a step of a row, in
// registers.
//
// A step is 128 columns in four groups of 32, of which four neighbouring lanes have eight values each: lane t of them columns 4t .. 4t + 3 and
// 16 + 4t .. 4t + 3, as the operands of a tensor core's instruction for 16 columns have them. Codes lie in the order in which a lane makes pairs
// of bf16 of them, two by a mask: 128 + code is the bf16 with the code's bits below the exponent. What belongs to a group (its scale, and shift
// or second scale) one lane loads and makes, lane t that of group t; the others get it from there.
//
// Values have the bits of ggml's dequantize_row: scale * code is exact in f32 (11 bits of a half, up to 7 of a scale, up to 6 of a code), so that
// one multiply-add rounds as its subtraction does. Block layouts follow ggml's ggml-common.h and dequantize_row_* (MIT).
#pragma once
#include "../common/types.cuh"
#include "../ptx/memory.cuh"
#include "pagoda.h"

namespace pagoda {

constexpr int kStepGroups = 4;
constexpr int kGroupCols = 32;
constexpr int kStepCols = kStepGroups * kGroupCols;
constexpr int kStepLanes = 4;
constexpr int kQuadCols = 4; // neighbouring columns of a lane: a group has two of them, 16 columns apart

__device__ __forceinline__ float half_f32(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); }

// byte i of v - zero, exactly: 2^23 + byte is the float of those low bits.
__device__ __forceinline__ float byte_f32(uint32_t v, int i, float zero) { return __uint_as_float(__byte_perm(v, 0x4b000000u, 0x7440 + i)) - (8388608.0f + zero); }

__device__ __forceinline__ uint32_t word(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// v << n, or >> -n.
__device__ __forceinline__ uint32_t shifted_left(uint32_t v, int n) { return n >= 0 ? v << n : v >> -n; }

// Pairs of bf16.
__device__ __forceinline__ uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  const __nv_bfloat162 r = __hsub2(*reinterpret_cast<const __nv_bfloat162 *>(&a), *reinterpret_cast<const __nv_bfloat162 *>(&b));
  return *reinterpret_cast<const uint32_t *>(&r);
}
// The bf16 of 128 + n twice.
__host__ __device__ constexpr uint32_t above_128(uint32_t n) { return 0x43004300u + n * 0x00010001u; }

// A lane's codes of 4 to 6 bits. Word g of `low`: four bits of the values of group g, pair i at bits 4i and 16 + 4i. Fifth bits: pair i of group g
// at bits 4g + i and 16 more. Fifth and sixth: in word g / 2, at bits 8 (g % 2) + 2i and 16 more.
template <int kBits> struct LaneCodes {
  static constexpr int kHighBytes = kBits == 4 ? 0 : kBits == 5 ? 4 : 8; // of a lane
  static constexpr int kStepBytes = kStepLanes * (16 + kHighBytes);
  uint4 low = {};
  uint2 high = {};

  __device__ __forceinline__ void load(const uint8_t *step_gmem, int t) {
    low = ptx::load_16b(step_gmem + 16 * t);
    const uint8_t *high_gmem = step_gmem + kStepLanes * 16 + kHighBytes * t;
    if constexpr (kBits == 5) high.x = ptx::load_4b(high_gmem);
    if constexpr (kBits == 6) high = ptx::load_8b(high_gmem);
  }

  // 128 + code of a lane's eight values of a group; `base` is above_128(0), in a register.
  __device__ __forceinline__ void raised_pairs(uint32_t (&w)[4], int group, uint32_t base) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t code = ptx::and_or(word(low, group) >> 4 * i, 0x000f000fu, base);
      if constexpr (kBits == 5) code |= shifted_left(high.x, 4 - (4 * group + i)) & 0x00100010u;
      if constexpr (kBits == 6) code |= shifted_left(group < 2 ? high.x : high.y, 4 - (8 * (group % 2) + 2 * i)) & 0x00300030u;
      w[i] = code;
    }
  }
  // code - zero.
  __device__ __forceinline__ void pairs(uint32_t (&w)[4], int group, uint32_t zero, uint32_t base) const {
    raised_pairs(w, group, base);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = subtract_bf16(w[i], above_128(zero));
  }
};

// Signed bytes: words 2g and 2g + 1 are the quads of group g, their bytes in the order 0, 2, 1, 3.
template <> struct LaneCodes<8> {
  static constexpr int kStepBytes = kStepLanes * 32;
  uint4 codes[2] = {};

  __device__ __forceinline__ void load(const uint8_t *step_gmem, int t) {
    codes[0] = ptx::load_16b(step_gmem + 32 * t), codes[1] = ptx::load_16b(step_gmem + 32 * t + 16);
  }

  __device__ __forceinline__ void pairs(uint32_t (&w)[4], int group, uint32_t, uint32_t base) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = word(codes[group / 2], group % 2 * 2 + i / 2) >> 8 * (i % 2);
      // The low seven bits, less what the eighth stands for: 128, of which 256 is the bf16 with that bit.
      w[i] = subtract_bf16(ptx::and_or(bytes, 0x007f007fu, base), ptx::and_or(bytes, 0x00800080u, base));
    }
  }
};

// What the second factor of a group is: nothing, what is added to its values, or the scale of its second half.
enum class SecondFactor { kNone, kShift, kScale };

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: a block is a group; d * (q - zero), or d * q + m.
template <int kBits, bool kHasShift, int kZero> struct SmallBlock {
  static constexpr SecondFactor kSecond = kHasShift ? SecondFactor::kShift : SecondFactor::kNone;
  static constexpr int kValues = 32, kRestBytes = kHasShift ? 4 : 2, kStepBytes = LaneCodes<kBits>::kStepBytes;
  LaneCodes<kBits> codes;
  uint32_t rest = 0; // d in the low half, m in the high one

  __device__ __forceinline__ void load_rest(const uint8_t *rest_gmem, int, int) { rest = kHasShift ? ptx::load_4b(rest_gmem) : ptx::load_2b(rest_gmem); }
  __device__ __forceinline__ void clear_rest() { rest = 0; }
  __device__ __forceinline__ float2 factors(int, int) const { return make_float2(half_f32(rest), kHasShift ? half_f32(rest >> 16) : 0.0f); }
  __device__ __forceinline__ void pairs(uint32_t (&w)[4], int group, uint32_t base) const { codes.pairs(w, group, kZero, base); }
};

// Q4_K, Q5_K: eight groups of 32 values with scales and minima of 6 bits; d * scale * q - dmin * min.
template <int kBits> struct SuperBlock {
  static constexpr SecondFactor kSecond = SecondFactor::kShift;
  static constexpr int kValues = 256, kRestBytes = 16, kStepBytes = LaneCodes<kBits>::kStepBytes;
  LaneCodes<kBits> codes;
  uint4 rest = {}; // d and dmin, then 12 bytes of scales and minima

  __device__ __forceinline__ void load_rest(const uint8_t *rest_gmem, int, int) { rest = ptx::load_16b(rest_gmem); }
  __device__ __forceinline__ void clear_rest() { rest = uint4{}; }
  // Groups 0 to 3: six bits of bytes t and 4 + t. The others: four bits of byte 8 + t and the two that the former leave.
  __device__ __forceinline__ float2 factors(int step, int t) const {
    const uint32_t scales = rest.y >> 8 * t, mins = rest.z >> 8 * t, late = rest.w >> 8 * t;
    const bool first = step % 2 == 0;
    const uint32_t scale = first ? scales & 63u : (late & 15u) | (scales >> 2 & 48u);
    const uint32_t min = first ? mins & 63u : (late >> 4 & 15u) | (mins >> 2 & 48u);
    return make_float2(half_f32(rest.x) * byte_f32(scale, 0, 0.0f), -(half_f32(rest.x >> 16) * byte_f32(min, 0, 0.0f)));
  }
  __device__ __forceinline__ void pairs(uint32_t (&w)[4], int group, uint32_t base) const { codes.pairs(w, group, 0, base); }
};

// Q6_K: signed scales of a byte for 16 values, two a group; d * scale * (q - 32).
struct SixBlock {
  static constexpr SecondFactor kSecond = SecondFactor::kScale;
  static constexpr int kValues = 256, kRestBytes = 18, kStepBytes = LaneCodes<6>::kStepBytes;
  LaneCodes<6> codes;
  uint32_t scales = 0, d = 0;

  __device__ __forceinline__ void load_rest(const uint8_t *rest_gmem, int step, int t) {
    scales = ptx::load_2b(rest_gmem + 8 * (step % 2) + 2 * t);
    d = ptx::load_2b(rest_gmem + 16);
  }
  __device__ __forceinline__ void clear_rest() { scales = d = 0; }
  __device__ __forceinline__ float2 factors(int, int) const {
    const uint32_t bytes = scales ^ 0x8080u;
    return make_float2(half_f32(d) * byte_f32(bytes, 0, 128.0f), half_f32(d) * byte_f32(bytes, 1, 128.0f));
  }
  __device__ __forceinline__ void pairs(uint32_t (&w)[4], int group, uint32_t base) const { codes.pairs(w, group, 32, base); }
};

using Q4_0 = SmallBlock<4, false, 8>;
using Q4_1 = SmallBlock<4, true, 0>;
using Q5_0 = SmallBlock<5, false, 16>;
using Q5_1 = SmallBlock<5, true, 0>;
using Q8_0 = SmallBlock<8, false, 0>;
using Q4_K = SuperBlock<4>;
using Q5_K = SuperBlock<5>;
using Q6_K = SixBlock;

// A group's factors, of the lane that made them; all lanes of a warp call it together.
__device__ __forceinline__ float of_group(float factor, int group) { return __shfl_sync(0xffffffffu, factor, group, kStepLanes); }

// A row: codes of all steps, then the rest of all blocks.
template <typename Block> struct BlockRow {
  static_assert(Block::kStepBytes % 16 == 0 && Block::kRestBytes % 2 == 0, "codes are loaded 16 bytes at a time, the rest two at least");
  const uint8_t *codes_gmem, *rest_gmem;
  int num_blocks;

  __host__ __device__ static constexpr int num_steps(int k) { return (k + kStepCols - 1) / kStepCols; }
  __host__ __device__ static int64_t bytes(int k) {
    return (static_cast<int64_t>(num_steps(k)) * Block::kStepBytes + static_cast<int64_t>(k / Block::kValues) * Block::kRestBytes + 15) / 16 * 16;
  }

  __device__ __forceinline__ BlockRow(const void *rows, int64_t row, int k) : num_blocks(k / Block::kValues) {
    codes_gmem = static_cast<const uint8_t *>(rows) + row * bytes(k);
    rest_gmem = codes_gmem + static_cast<int64_t>(num_steps(k)) * Block::kStepBytes;
  }

  // What lane t has of a step of the row. Factors of groups past the end are zero.
  __device__ __forceinline__ void load(Block &block, int step, int t) const {
    const int idx = (step * kStepCols + t * (Block::kValues < kStepCols ? Block::kValues : 0)) / Block::kValues;
    block.codes.load(codes_gmem + static_cast<int64_t>(step) * Block::kStepBytes, t);
    if (idx < num_blocks) block.load_rest(rest_gmem + static_cast<int64_t>(idx) * Block::kRestBytes, step, t);
    else block.clear_rest();
  }
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
