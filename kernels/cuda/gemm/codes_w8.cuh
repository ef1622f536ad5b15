// Codes of 8 bits as bf16, exactly: four at a time, as fragment order has them (pagoda_w8.h).
#pragma once
#include "../common/types.cuh"
#include "pagoda.h"

namespace pagoda {

// Two pairs of bf16: bytes 0 and 2, and bytes 1 and 3. They are columns {2t, 2t + 1} and {2t + 8, 2t + 9} of 16.
struct CodePairs {
  uint32_t low, high;
};

// Bytes 1 and 3 as bf16 times 2^-120: sign, exponent and mantissa of e4m3 at their places in bf16, subnormal ones too.
__device__ __forceinline__ uint32_t e4m3_bits(uint32_t codes) { return (codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u); }

__device__ __forceinline__ uint32_t times(uint32_t pair, uint32_t factors) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162 *>(&pair), *reinterpret_cast<const __nv_bfloat162 *>(&factors));
  return *reinterpret_cast<const uint32_t *>(&product);
}

// Byte `kByte` as f32, minus 128: the low bits of 2^23 + byte.
template <int kByte> __device__ __forceinline__ float int8_f32(uint32_t codes) {
  return __uint_as_float(__byte_perm(codes, 0x4b000000u, 0x7540 | kByte)) - 8388736.0f;
}

template <pagoda_w8_code kCode> __device__ __forceinline__ CodePairs decode_codes(uint32_t codes) {
  if (kCode == PAGODA_W8_INT8) return {pack_bf16(int8_f32<0>(codes), int8_f32<2>(codes)), pack_bf16(int8_f32<1>(codes), int8_f32<3>(codes))};
  constexpr uint32_t kTwoTo120 = 0x7b807b80u;
  return {times(e4m3_bits(codes << 8), kTwoTo120), times(e4m3_bits(codes), kTwoTo120)};
}

// Two e4m3 bytes, the first in the low one: to nearest even, saturating.
__device__ __forceinline__ uint32_t e4m3_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return 0; // the engine makes no codes there
#endif
}

} // namespace pagoda
