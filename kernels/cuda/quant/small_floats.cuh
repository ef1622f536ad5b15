// e4m3 and e2m1 in f32 and integers, since GPUs before 8.9 and 10.0 have no instructions for them. Bit for bit those of the CPU.
#pragma once
#include <stdint.h>

namespace pagoda {

constexpr float kE4m3Max = 448.0f, kE2m1Max = 6.0f;

// The nearest e4m3 of x >= 0, ties to even, saturating.
__device__ __forceinline__ uint32_t e4m3_code(float x) {
  if (x >= kE4m3Max) return 0x7e;
  if (x < 1.0f / 64) return __float2uint_rn(__fmul_rn(x, 512.0f)); // below 2^-6 the steps are 2^-9
  const uint32_t bits = __float_as_uint(x);
  return ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120 << 3);
}

__device__ __forceinline__ float e4m3_value(uint32_t code) {
  return code < 8 ? static_cast<float>(code) / 512.0f : __uint_as_float((code << 20) + (120u << 23));
}

// The nearest e2m1 of x with its sign in bit 3; a tie goes to the even code.
__device__ __forceinline__ uint32_t e2m1_code(float x) {
  const float size = fabsf(x);
  const uint32_t code = (size > 0.25f) + (size >= 0.75f) + (size > 1.25f) + (size >= 1.75f) + (size > 2.5f) + (size >= 3.5f) + (size > 5.0f);
  return code | (__float_as_uint(x) >> 28 & 8);
}

} // namespace pagoda
