// The activations of MLPs, in f32.
#pragma once
#include "status.cuh"

namespace pagoda {

template <pagoda_activation kAct> __device__ __forceinline__ float activate(float v) {
  if constexpr (kAct == PAGODA_SILU) return v / (1.0f + __expf(-v));
  if constexpr (kAct == PAGODA_GELU_TANH) {
    const float inner = 0.7978845608f * (v + 0.044715f * v * v * v); // sqrt(2 / pi)
    return 0.5f * v * (1.0f + tanhf(inner));
  }
  return 0.5f * v * (1.0f + erff(v * 0.7071067812f)); // 1 / sqrt(2)
}

} // namespace pagoda
