// Global memory, one instruction a function. Not `.nc`: the callers' outputs may alias their inputs.
#pragma once
#include <stdint.h>

namespace pagoda::ptx {

// Read once: does not displace what others keep in L1.
__device__ __forceinline__ uint4 load_16b(const void *gmem) {
  uint4 r;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(gmem) : "memory");
  return r;
}

__device__ __forceinline__ void store_16b(void *gmem, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(gmem), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

} // namespace pagoda::ptx
