// Copies from global to shared memory that do not pass through registers (sm_80 and later), one instruction a function.
#pragma once
#include "memory.cuh"

namespace pagoda::ptx {

// 16 bytes; zeros where `valid` is false, and then `gmem` is not read.
__device__ __forceinline__ void copy_16b_async(uint32_t smem, const void *gmem, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(gmem), "r"(bytes) : "memory");
}

// Asks L2 for a line of 128 bytes.
__device__ __forceinline__ void prefetch_l2(const void *gmem) { asm volatile("prefetch.global.L2 [%0];" ::"l"(gmem)); }

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's latest groups are under way.
template <int kPending> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory"); }

} // namespace pagoda::ptx
