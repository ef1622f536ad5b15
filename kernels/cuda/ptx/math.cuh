// Arithmetic instructions that C++ has no exact word for, one a function.
#pragma once

namespace pagoda::ptx {

// 2^v, relative error 2^-22; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_approx(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

__device__ __forceinline__ float reciprocal_approx(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// tanh(v), absolute error 2^-22 (tanh.approx has 2^-11).
__device__ __forceinline__ float tanh_approx(float v) {
  const float e = exp2_approx(v * 2.8853900817779268f);
  return 1.0f - 2.0f * reciprocal_approx(e + 1.0f);
}

} // namespace pagoda::ptx
