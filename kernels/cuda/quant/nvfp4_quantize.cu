// pagoda_absmax and pagoda_nvfp4_quantize: dense weights become NVFP4, bit for bit as the CPU makes it. When weights are loaded.
//
//   global = 448 * 6 / absmax of the matrix, down to a power of two, so that a scale has the few bits of e4m3
//   scale = e4m3(global * (absmax of 16 / 6)) / global      code = e2m1(value / scale)
//
// A thread takes a group of 16 values. f32 throughout, subnormals kept, quotients correctly rounded, no division by a reciprocal.
// Bound by memory: 2.75 bytes a bf16 value, and 2 for absmax.
#include "../common/launch.cuh"
#include "../common/vec.cuh"
#include "small_floats.cuh"
#include <float.h>

namespace pagoda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 16; // values of a scale
constexpr int kInfinityBits = 0x7f800000;

// Floats that are not negative are ordered like their bits, NaN above infinity. Called once a kernel, by all threads.
__device__ __forceinline__ void raise_to(int *gmem, int bits) {
  __shared__ int bits_smem[kThreads / 32];
  bits = __reduce_max_sync(0xffffffffu, bits);
  if (threadIdx.x % 32 == 0) bits_smem[threadIdx.x / 32] = bits;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (const int of_warp : bits_smem) bits = max(bits, of_warp);
  atomicMax(gmem, bits);
}

__device__ __forceinline__ int magnitude_bits(float v) { return __float_as_int(v) & 0x7fffffff; }

template <typename T> __global__ void __launch_bounds__(kThreads) absmax_kernel(const __grid_constant__ pagoda_absmax_params p) {
  wait_then_allow_next();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  int largest = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count / kOctet; i += stride) {
    float v[kOctet];
    load_octet(v, static_cast<const T *>(p.values), i);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) largest = max(largest, magnitude_bits(v[e]));
  }
  raise_to(reinterpret_cast<int *>(p.absmax), largest);
}

template <typename T> __global__ void __launch_bounds__(kThreads) nvfp4_quantize_kernel(const __grid_constant__ pagoda_nvfp4_quantize_params p) {
  wait_then_allow_next();
  const float absmax = load_fresh(p.absmax);
  const float unrounded = fminf(__fdiv_rn(kE4m3Max * kE2m1Max, absmax > 0.0f ? absmax : 1.0f), FLT_MAX);
  const float global = __int_as_float(__float_as_int(unrounded) & kInfinityBits);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  // What is not finite is nobody's absmax: it is told by `largest`.
  int largest = magnitude_bits(absmax) >= kInfinityBits ? kInfinityBits : 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count / kGroup; i += stride) {
    float v[2][kOctet];
    load_octet(v[0], static_cast<const T *>(p.values), 2 * i);
    load_octet(v[1], static_cast<const T *>(p.values), 2 * i + 1);
    float most = 0.0f;
#pragma unroll
    for (int e = 0; e < kGroup; ++e) most = fmaxf(most, fabsf(v[e / kOctet][e % kOctet]));
    const float scale = __fdiv_rn(e4m3_value(e4m3_code(__fmul_rn(global, __fdiv_rn(most, kE2m1Max)))), global);
    uint32_t words[2] = {};
    if (scale > 0.0f) {
#pragma unroll
      for (int e = 0; e < kGroup; ++e) words[e / kOctet] |= e2m1_code(__fdiv_rn(v[e / kOctet][e % kOctet], scale)) << 4 * (e % kOctet);
    }
    reinterpret_cast<uint2 *>(p.codes)[i] = make_uint2(words[0], words[1]);
    p.scales[i] = scale;
    largest = max(largest, __float_as_int(scale));
  }
  raise_to(reinterpret_cast<int *>(p.largest), largest);
}

// Enough CTAs for any GPU, each with some work: few atomics.
LaunchShape shape_for(int64_t num_items) {
  constexpr int64_t kMaxCtas = 4096;
  const int64_t wanted = (num_items + kThreads - 1) / kThreads;
  return {static_cast<unsigned>(wanted < kMaxCtas ? wanted : kMaxCtas), kThreads};
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_absmax(const pagoda_absmax_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->absmax || !p->values || p->count < 0 || p->count % kOctet || reinterpret_cast<uintptr_t>(p->values) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p->count == 0) return PAGODA_OK;
  const LaunchShape shape = shape_for(p->count / kOctet);
  switch (p->dtype) {
  case PAGODA_F32: return launch(absmax_kernel<float>, shape, *p, stream);
  case PAGODA_F16: return launch(absmax_kernel<f16>, shape, *p, stream);
  case PAGODA_BF16: return launch(absmax_kernel<bf16>, shape, *p, stream);
  }
  return PAGODA_INVALID_ARGUMENT;
}

extern "C" pagoda_status pagoda_nvfp4_quantize(const pagoda_nvfp4_quantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->codes || !p->scales || !p->largest || !p->absmax || !p->values || p->count < 0 || p->count % kGroup) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p->values) | reinterpret_cast<uintptr_t>(p->codes)) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p->count == 0) return PAGODA_OK;
  const LaunchShape shape = shape_for(p->count / kGroup);
  switch (p->dtype) {
  case PAGODA_F32: return launch(nvfp4_quantize_kernel<float>, shape, *p, stream);
  case PAGODA_F16: return launch(nvfp4_quantize_kernel<f16>, shape, *p, stream);
  case PAGODA_BF16: return launch(nvfp4_quantize_kernel<bf16>, shape, *p, stream);
  }
  return PAGODA_INVALID_ARGUMENT;
}
