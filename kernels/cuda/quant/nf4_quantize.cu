// pagoda_nf4_quantize: NF4 codes and absmax of blocks of 64 values, bit for bit those of bitsandbytes (MIT). When dense weights are loaded.
//
// A thread takes 8 values, 8 threads a block: absmax goes round by shuffles, then each value is compared with the 15 midpoints of the
// book. f32 throughout, subnormals kept, the quotient correctly rounded. Bound by memory: 2.6 bytes a bf16 value.
#include "../common/launch.cuh"
#include "../common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = 64; // values of an absmax
constexpr int kBlockThreads = kBlock / kOctet;

// Code of x, which is divided by absmax already. NaN has code 0.
__device__ __forceinline__ uint32_t nf4_code(float x) {
  constexpr double kBook[16] = {-1.0f,       -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
                                0.0795803f,  0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f};
  uint32_t code = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) code += x > static_cast<float>((kBook[i] + kBook[i + 1]) / 2.0);
  return code;
}

template <typename T> __global__ void __launch_bounds__(kThreads) nf4_quantize_kernel(const __grid_constant__ pagoda_nf4_quantize_params p) {
  __shared__ float largest_smem[kThreads / 32];
  wait_then_allow_next();
  const int64_t num_octets = p.count / kOctet;
  float largest = 0.0f;
  // Whole warps together: a block's threads are neighbours, and 4 blocks fill a warp.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads; first < num_octets; first += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = first + threadIdx.x;
    float v[kOctet] = {};
    if (i < num_octets) load_octet(v, static_cast<const T *>(p.values), i);
    float absmax = 0.0f;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) absmax = fmaxf(absmax, fabsf(v[e]));
#pragma unroll
    for (int offset = kBlockThreads / 2; offset > 0; offset /= 2) absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, offset));
    const float factor = absmax > 0.0f ? __fdiv_rn(1.0f, absmax) : 0.0f;
    uint32_t codes = 0;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) codes |= nf4_code(__fmul_rn(v[e], factor)) << (8 * (e / 2) + (e % 2 ? 0 : 4));
    if (i < num_octets) {
      reinterpret_cast<uint32_t *>(p.codes)[i] = codes;
      if (i % kBlockThreads == 0) p.absmax[i / kBlockThreads] = absmax;
    }
    largest = fmaxf(largest, absmax);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  if (threadIdx.x % 32 == 0) largest_smem[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (const float of_warp : largest_smem) largest = fmaxf(largest, of_warp);
  // Floats that are not negative are ordered like their bits.
  atomicMax(reinterpret_cast<int *>(p.largest), __float_as_int(largest));
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_nf4_quantize(const pagoda_nf4_quantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->codes || !p->absmax || !p->largest || !p->values || p->count < 0 || p->count % kBlock) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p->values) | reinterpret_cast<uintptr_t>(p->codes)) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p->count == 0) return PAGODA_OK;
  // Enough CTAs for any GPU, each with some work: few atomics.
  constexpr int64_t kMaxCtas = 4096;
  const int64_t wanted = (p->count / kOctet + kThreads - 1) / kThreads;
  const LaunchShape shape{static_cast<unsigned>(wanted < kMaxCtas ? wanted : kMaxCtas), kThreads};
  switch (p->dtype) {
  case PAGODA_F32: return launch(nf4_quantize_kernel<float>, shape, *p, stream);
  case PAGODA_F16: return launch(nf4_quantize_kernel<f16>, shape, *p, stream);
  case PAGODA_BF16: return launch(nf4_quantize_kernel<bf16>, shape, *p, stream);
  }
  return PAGODA_INVALID_ARGUMENT;
}
