// Scores to probabilities, online: what decode and prefill share. Scores are in units of log2, so that exp2f serves.
#pragma once

namespace pagoda {

constexpr float kLog2e = 1.4426950408889634f;

// The raw product q . k to a score.
__device__ __forceinline__ float score(float product, float scale, float soft_cap) {
  float s = product * scale;
  if (soft_cap > 0.0f) s = soft_cap * tanhf(s / soft_cap);
  return s * kLog2e;
}

// A running maximum to subtract: -inf (nothing seen yet) would make inf - inf.
__device__ __forceinline__ float finite_max(float m) { return m == -INFINITY ? 0.0f : m; }

} // namespace pagoda
