// What the kernels that are fed by tensor copies share: boxes of 64 k, rows of 128 bytes, swizzled, and the walk around a ring of stages.
#pragma once
#include <stdint.h>

namespace pagoda {

constexpr int kBoxK = 64;               // 128 bytes, the width of the swizzle
constexpr int kSwizzleAlignment = 1024; // of the pattern, in bytes

// Position in the ring.
struct RingSlot {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int num_stages) {
    if (++stage == num_stages) stage = 0, parity ^= 1;
  }
};

} // namespace pagoda
