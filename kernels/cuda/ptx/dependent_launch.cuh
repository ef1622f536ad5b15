// Programmatic dependent launch, one instruction a function; nothing below sm_90. See common/launch.cuh for the rules.
#pragma once

namespace pagoda::ptx {

// Returns when the kernels before this one have completed and their writes can be seen. Nothing that they write is read before it,
// and nothing that they use is written before it. No-op in a kernel that was not launched programmatically.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start where there is room, up to its own wait_for_previous_kernel.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

} // namespace pagoda::ptx
