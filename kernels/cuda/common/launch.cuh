// The one way to launch a kernel of a step: it may start while the kernel before it ends (programmatic dependent launch, sm_90 and later).
//
// A step is a chain of some two hundred short kernels. Launched in plain stream order, each waits until the last CTA of its predecessor is
// gone, then starts cold. Launched by `launch`, its CTAs take their place as soon as those of the predecessor let them, and wait inside:
//
//   kernel n     | wait | work ......................... |
//   kernel n + 1        | set up ... | wait              | work ...       set up: barriers, tables, addresses, weights
//
// Rules, for every kernel that goes through `launch`:
//   1. Every thread of every CTA calls wait_then_allow_next() (or the two functions of ptx/dependent_launch.cuh) before it returns, those
//      that leave early too. The wait covers the direct predecessor alone; that the kernels before it have ended follows only because it
//      waited as well.
//   2. Before the wait nothing is read that a kernel of a step writes (activations, KV cache, token ids, counters, partial sums), and nothing
//      at all is written to global memory: an earlier kernel may still read it. What never changes (weights, norm vectors, rope tables,
//      kernel parameters) may be read early, and so may the arrays that the host copied before the step's first kernel (positions, slots,
//      lengths, block tables): with volatile loads, since the compiler moves ld.global.nc across the wait.
//      That copy lies in the stream between two steps and ends after all kernels of the step before: so keys and values of earlier steps may be
//      read early too, those of this step may not. Whoever moves the copy to a stream of its own takes this away.
//   3. After the wait, data that kernels write is read past L1 (ptx::load_16b, load_fresh, __ldcg of 4 bytes and more, cp.async.cg, TMA):
//      a line that an earlier kernel left in this SM's L1 may be stale. Never ld.global.nc or __ldg for it. And never the __ldcg of bf16
//      and half: their asm is not volatile, so the compiler may move it before the wait.
//   4. allow_next_kernel() comes right after the wait, not at the end: the successor waits for completion anyway. A CTA that takes more
//      than half of a multiprocessor (registers, threads, shared memory) leaves its successor no room to start early.
//
// Launches of other libraries (cuBLASLt) and plain <<<>>> launches may stand between: they start after their predecessor has completed, and
// whatever follows them waits for their completion.
#pragma once
#include "../ptx/dependent_launch.cuh"
#include "status.cuh"
#include <atomic>
#include <map>
#include <mutex>

namespace pagoda {

// The first statement of a kernel that has nothing to set up.
__device__ __forceinline__ void wait_then_allow_next() {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
}

// Whether the current GPU can start kernels early, and `kernel` was compiled to wait when it does (code for sm_8x run from its PTX is not).
// Asked once a GPU: all kernels are compiled alike.
inline bool can_start_early(const void *kernel) {
  enum { kUnknown, kNo, kYes };
  constexpr int kMaxDevices = 64;
  static std::atomic<int> known[kMaxDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return false;
  int answer = known[device].load(std::memory_order_relaxed);
  if (answer == kUnknown) {
    int major = 0;
    cudaFuncAttributes attributes = {};
    const bool asked = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                       cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
    answer = asked && major >= 9 && attributes.ptxVersion >= 90 ? kYes : kNo;
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer == kYes;
}

// Lets `kernel` have that many bytes of dynamic shared memory. The limit belongs to the context, not to a launch, and here it never shrinks:
// else another thread's smaller one could come between a call and its launch. Set every time, since contexts come and go.
inline cudaError_t grant_smem(const void *kernel, int bytes) {
  constexpr int kGrantedBytes = 48 << 10; // to every kernel
  if (bytes <= kGrantedBytes) return cudaSuccess;
  static std::mutex mutex;
  static std::map<const void *, int> limits;
  const std::lock_guard<std::mutex> lock(mutex);
  int &limit = limits[kernel];
  limit = bytes > limit ? bytes : limit;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
}

// Where and how large.
struct LaunchShape {
  dim3 grid;
  unsigned num_threads;
  size_t smem_bytes = 0;
  unsigned cluster = 1; // CTAs along x
};

// Queues `kernel`; `args` as cudaLaunchKernelExC takes them. Reports the launch's own error, without synchronising.
inline pagoda_status launch_raw(const void *kernel, const LaunchShape &shape, void **args, cudaStream_t stream) {
  cudaError_t error = grant_smem(kernel, static_cast<int>(shape.smem_bytes));
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.num_threads);
  config.dynamicSmemBytes = shape.smem_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (can_start_early(kernel)) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {shape.cluster, 1, 1};
  }
  if (error == cudaSuccess) error = cudaLaunchKernelExC(&config, kernel, args);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return to_status(error);
}

// Queues kernel(params).
template <typename Params> pagoda_status launch(void (*kernel)(Params), const LaunchShape &shape, const Params &params, cudaStream_t stream) {
  void *args[] = {const_cast<void *>(static_cast<const void *>(&params))};
  return launch_raw(reinterpret_cast<const void *>(kernel), shape, args, stream);
}

} // namespace pagoda
