// pagoda_fp4_quantize: activations become NVFP4, bit for bit as the CPU makes it.
//
//   factor = max(absmax of the token / (448 * 6), 1e-30)
//   scale = e4m3(absmax of 16 / 6 / factor)      code = e2m1(x / (scale * factor))
//
// One CTA a token, which reads it twice: the second time from L2. f32 throughout, quotients correctly rounded. Bound by memory: 2.6 bytes a value.
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "../common/vec.cuh"
#include "fp4_fragment.cuh"
#include "pagoda.h"
#include "small_floats.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;
constexpr float kMinFactor = 1e-30f;
using Params = pagoda_fp4_quantize_params;

__device__ __forceinline__ int magnitude_bits(float v) { return __float_as_int(v) & 0x7fffffff; }

// Every thread gets the largest; by bits, so that NaN is above infinity. Called once a kernel.
__device__ __forceinline__ float block_absmax(int bits) {
  __shared__ int bits_smem[kThreads / kWarpSize];
  bits = __reduce_max_sync(0xffffffffu, bits);
  if (threadIdx.x % kWarpSize == 0) bits_smem[threadIdx.x / kWarpSize] = bits;
  __syncthreads();
  for (const int of_warp : bits_smem) bits = max(bits, of_warp);
  return __int_as_float(bits);
}

__device__ __forceinline__ void load_group(float (&v)[Fp4Group::kCols], const bf16 *x_gmem, int group) {
  float octet[kOctet];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    load_octet(octet, x_gmem, 2 * group + half);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) v[half * kOctet + e] = octet[e];
  }
}

__global__ void __launch_bounds__(kThreads) fp4_quantize_kernel(const __grid_constant__ Params p) {
  wait_then_allow_next();
  const int64_t token = blockIdx.x;
  const int num_groups = p.k / Fp4Group::kCols;
  const bf16 *x_gmem = static_cast<const bf16 *>(p.x) + token * p.k;
  float v[Fp4Group::kCols];
  int largest = 0;
  for (int group = threadIdx.x; group < num_groups; group += kThreads) {
    load_group(v, x_gmem, group);
#pragma unroll
    for (int i = 0; i < Fp4Group::kCols; ++i) largest = max(largest, magnitude_bits(v[i]));
  }
  const float wanted = __fdiv_rn(block_absmax(largest), kE4m3Max * kE2m1Max);
  const float factor = wanted < kMinFactor ? kMinFactor : wanted; // NaN stays
  if (threadIdx.x == 0) p.factors[token] = factor;
  for (int group = threadIdx.x; group < num_groups; group += kThreads) {
    load_group(v, x_gmem, group);
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < Fp4Group::kCols; ++i) most = fmaxf(most, fabsf(v[i]));
    const uint32_t scale = e4m3_code(__fdiv_rn(__fdiv_rn(most, kE2m1Max), factor));
    const float step = __fmul_rn(e4m3_value(scale), factor);
    uint32_t words[2] = {};
    if (step > 0.0f) {
#pragma unroll
      for (int slot = 0; slot < Fp4Group::kCols; ++slot) words[slot / 8] |= e2m1_code(__fdiv_rn(v[Fp4Group::column(slot)], step)) << 4 * (slot % 8);
    }
    reinterpret_cast<uint2 *>(p.codes)[token * num_groups + group] = make_uint2(words[0], words[1]);
    p.scales[(static_cast<int64_t>(group / 4) * p.ld_scales + token) * 4 + group % 4] = static_cast<uint8_t>(scale);
  }
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_fp4_quantize(const pagoda_fp4_quantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->codes || !p->scales || !p->factors || !p->x || p->num_tokens < 0 || p->k < 1 || p->k % 64) return PAGODA_INVALID_ARGUMENT;
  if (p->ld_scales < p->num_tokens || p->ld_scales % 4) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p->codes) | reinterpret_cast<uintptr_t>(p->scales) | reinterpret_cast<uintptr_t>(p->x)) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens == 0) return PAGODA_OK;
  return launch(fp4_quantize_kernel, {static_cast<unsigned>(p->num_tokens), kThreads}, *p, stream);
}
