// pagoda_w8_quantize, pagoda_w8_permute, pagoda_w8_dequantize: to codes of 8 bits, and back to bf16.
//
// Quantising: one CTA a row. A thread holds the chunks of 16 columns t, t + blockDim, ... of its row in registers (at most kMaxChunks), so x is
// read once; the largest magnitude crosses the CTA through shared memory. With groups of 128 columns eight lanes share a scale.
// Bound by memory: with bf16 rows 3 bytes an element.
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "gemm/codes_w8.cuh"
#include "pagoda.h"
#include <type_traits>

namespace pagoda {
namespace {

constexpr int kChunk = 16;
constexpr int kMaxChunks = 4, kMaxThreads = 1024; // largest[0..4) are listed below

// Every thread gets the largest; blockDim.x is a multiple of 32. Called once a kernel.
__device__ __forceinline__ float block_max(float v) {
  __shared__ float partial_smem[kMaxWarps];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  if (lane == 0) partial_smem[warp] = v;
  __syncthreads();
  v = lane < static_cast<int>(blockDim.x) / kWarpSize ? partial_smem[lane] : 0.0f;
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

template <pagoda_w8_code kCode> __device__ __forceinline__ float scale_of(float largest, float min_scale) {
  return fmaxf(largest / (kCode == PAGODA_W8_INT8 ? 127.0f : 448.0f), min_scale);
}

// Sixteen columns of a row, as they are in memory.
template <typename T> struct Chunk {
  uint4 raw[sizeof(T)] = {};

  __device__ __forceinline__ void load(const T *gmem) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) raw[i] = ptx::load_16b(reinterpret_cast<const char *>(gmem) + 16 * i);
  }
  __device__ __forceinline__ uint32_t word(int i) const {
    const uint4 &v = raw[i / 4];
    return i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
  }
  __device__ __forceinline__ float value(int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(word(i));
    else if constexpr (std::is_same_v<T, bf16>) return i % 2 ? high_f32(word(i / 2)) : low_f32(word(i / 2));
    else return __half2float(__ushort_as_half(static_cast<uint16_t>(word(i / 2) >> 16 * (i % 2))));
  }
  // Magnitudes are ordered as their bits are.
  __device__ __forceinline__ float largest() const {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4 * static_cast<int>(sizeof(T)); ++i) most = sizeof(T) == 4 ? max(most, word(i) & 0x7fffffffu) : __vmaxu2(most, word(i) & 0x7fff7fffu);
    if constexpr (sizeof(T) == 4) return __uint_as_float(most);
    else if constexpr (std::is_same_v<T, bf16>) return fmaxf(low_f32(most), high_f32(most));
    else return fmaxf(__half2float(__ushort_as_half(static_cast<uint16_t>(most))), __half2float(__ushort_as_half(static_cast<uint16_t>(most >> 16))));
  }
};

// Two integers with 128 added, the first in the low byte; NaN is 0.
__device__ __forceinline__ uint32_t int8_pair(float low, float high) {
  return __float2uint_rz(rintf(low) + 128.0f) | __float2uint_rz(rintf(high) + 128.0f) << 8;
}

// Sixteen values as codes in fragment order: a word has columns 2t, 2t + 8, 2t + 1, 2t + 9.
template <typename T, pagoda_w8_code kCode, bool kDivides> __device__ __forceinline__ uint4 encode_chunk(const Chunk<T> &x, float scale) {
  const float inverse = 1.0f / scale;
  auto scaled = [&](int i) { return kDivides ? x.value(i) / scale : x.value(i) * inverse; };
  auto pair = [&](int i) { return kCode == PAGODA_W8_INT8 ? int8_pair(scaled(i), scaled(i + 8)) : e4m3_pair(scaled(i), scaled(i + 8)); };
  uint32_t words[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) words[t] = pair(2 * t) | pair(2 * t + 1) << 16;
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T, pagoda_w8_code kCode, bool kGroups, bool kDivides> __global__ void __launch_bounds__(kMaxThreads) w8_quantize_kernel(const __grid_constant__ pagoda_w8_quantize_params p) {
  const int num_chunks = p.cols / kChunk;
  const int64_t row = blockIdx.x;
  const T *x_gmem = static_cast<const T *>(p.x) + row * p.cols;
  unsigned char *codes_gmem = static_cast<unsigned char *>(p.codes) + row * p.cols;
  wait_then_allow_next();
  Chunk<T> held[kMaxChunks];
#pragma unroll
  for (int i = 0; i < kMaxChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    if (chunk < num_chunks) held[i].load(x_gmem + chunk * kChunk);
  }
  float largest[kMaxChunks], row_scale = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxChunks; ++i) largest[i] = held[i].largest();
  if (!kGroups) {
    row_scale = scale_of<kCode>(block_max(fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]))), p.min_scale);
    if (threadIdx.x == 0) p.scales[row] = row_scale;
  }
#pragma unroll
  for (int i = 0; i < kMaxChunks; ++i) {
    const int chunk = threadIdx.x + i * blockDim.x;
    float scale = row_scale;
    if (kGroups) { // all lanes take part: chunks past the end are zeros
      float group = largest[i];
#pragma unroll
      for (int offset = 1; offset < 8; offset *= 2) group = fmaxf(group, __shfl_xor_sync(0xffffffffu, group, offset));
      scale = scale_of<kCode>(group, p.min_scale);
      if (chunk < num_chunks && chunk % 8 == 0) p.scales[static_cast<int64_t>(chunk / 8) * p.ld_scales + row] = scale;
    }
    if (chunk < num_chunks) ptx::store_16b(codes_gmem + chunk * kChunk, encode_chunk<T, kCode, kDivides>(held[i], scale));
  }
}

__global__ void w8_permute_kernel(const __grid_constant__ pagoda_w8_permute_params p) {
  wait_then_allow_next();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.num_chunks) return;
  uint4 *chunk_gmem = static_cast<uint4 *>(p.codes) + i;
  const uint4 c = ptx::load_16b(chunk_gmem);
  // Bytes 2t, 2t + 8, 2t + 1, 2t + 9.
  ptx::store_16b(chunk_gmem, make_uint4(__byte_perm(c.x, c.z, 0x5140), __byte_perm(c.x, c.z, 0x7362), __byte_perm(c.y, c.w, 0x5140), __byte_perm(c.y, c.w, 0x7362)));
}

// One thread a chunk of 16 columns.
template <typename T, pagoda_w8_code kCode> __global__ void w8_dequantize_kernel(const __grid_constant__ pagoda_w8_dequantize_params p) {
  wait_then_allow_next();
  const int chunks = p.cols / kChunk;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = i / chunks;
  const int chunk = static_cast<int>(i % chunks);
  if (row >= p.num_rows) return;
  const int64_t source = p.index ? static_cast<int64_t>(static_cast<int32_t>(ptx::load_4b(p.index + row))) : row;
  float v[2][kOctet] = {};
  if (source >= 0 && source < p.num_code_rows) {
    const uint4 c = ptx::load_16b(static_cast<const unsigned char *>(p.codes) + source * p.cols + chunk * kChunk);
    const int64_t scale_idx = p.has_blocks ? source / 128 * ((p.cols + 127) / 128) + chunk / 8 : source;
    const float scale = p.scales[scale_idx];
    const uint32_t words[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const CodePairs pairs = decode_codes<kCode>(words[t]);
      v[0][2 * t] = low_f32(pairs.low) * scale * p.factor;
      v[0][2 * t + 1] = high_f32(pairs.low) * scale * p.factor;
      v[1][2 * t] = low_f32(pairs.high) * scale * p.factor;
      v[1][2 * t + 1] = high_f32(pairs.high) * scale * p.factor;
    }
  }
  T *out_gmem = static_cast<T *>(p.out) + row * p.cols;
#pragma unroll
  for (int h = 0; h < 2; ++h) store_octet(out_gmem, 2 * chunk + h, v[h]);
}

template <typename T> pagoda_status launch_quantize(const pagoda_w8_quantize_params &p, cudaStream_t stream) {
  const int chunks = p.cols / kChunk, per_thread = (chunks + kMaxThreads - 1) / kMaxThreads;
  // Long rows: a few chunks a thread, so that several rows run side by side.
  const int wanted = chunks > 512 && per_thread < 2 ? 2 : per_thread;
  const unsigned threads = ((chunks + wanted - 1) / wanted + kWarpSize - 1) / kWarpSize * kWarpSize;
  const LaunchShape shape{static_cast<unsigned>(p.num_rows), threads};
  if (p.code == PAGODA_W8_INT8) return launch(w8_quantize_kernel<T, PAGODA_W8_INT8, false, true>, shape, p, stream);
  constexpr pagoda_w8_code kE4m3 = PAGODA_W8_E4M3;
  if (p.divides) return launch(p.group_cols ? w8_quantize_kernel<T, kE4m3, true, true> : w8_quantize_kernel<T, kE4m3, false, true>, shape, p, stream);
  return launch(p.group_cols ? w8_quantize_kernel<T, kE4m3, true, false> : w8_quantize_kernel<T, kE4m3, false, false>, shape, p, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_w8_quantize(const pagoda_w8_quantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->codes || !p->scales || !p->x || p->num_rows < 0 || p->cols <= 0 || !(p->min_scale > 0.0f) || (p->divides != 0 && p->divides != 1)) return PAGODA_INVALID_ARGUMENT;
  if ((p->group_cols != 0 && p->group_cols != 128) || (p->group_cols && p->ld_scales < p->num_rows)) return PAGODA_INVALID_ARGUMENT;
  if (p->code < PAGODA_W8_E4M3 || p->code > PAGODA_W8_INT8 || (p->code == PAGODA_W8_INT8 && (p->group_cols || !p->divides))) return PAGODA_INVALID_ARGUMENT;
  if (p->cols % kChunk != 0 || p->cols > kChunk * kMaxChunks * kMaxThreads) return PAGODA_UNSUPPORTED;
  if (p->num_rows == 0) return PAGODA_OK;
  switch (p->dtype) {
  case PAGODA_F32: return launch_quantize<float>(*p, stream);
  case PAGODA_F16: return launch_quantize<f16>(*p, stream);
  case PAGODA_BF16: return launch_quantize<bf16>(*p, stream);
  }
  return PAGODA_INVALID_ARGUMENT;
}

extern "C" pagoda_status pagoda_w8_permute(const pagoda_w8_permute_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->codes || p->num_chunks < 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_chunks == 0) return PAGODA_OK;
  if ((p->num_chunks + 255) / 256 > INT32_MAX) return PAGODA_UNSUPPORTED;
  return launch(w8_permute_kernel, {static_cast<unsigned>((p->num_chunks + 255) / 256), 256}, *p, stream);
}

extern "C" pagoda_status pagoda_w8_dequantize(const pagoda_w8_dequantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->codes || !p->scales || p->num_rows < 0 || p->num_code_rows <= 0 || p->cols <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->code < PAGODA_W8_E4M3 || p->code > PAGODA_W8_INT8) return PAGODA_INVALID_ARGUMENT;
  if (p->cols % kChunk != 0 || (p->out_dtype != PAGODA_BF16 && p->out_dtype != PAGODA_F32)) return PAGODA_UNSUPPORTED;
  if (p->num_rows == 0) return PAGODA_OK;
  const int64_t num_ctas = (static_cast<int64_t>(p->num_rows) * (p->cols / kChunk) + 255) / 256;
  if (num_ctas > INT32_MAX) return PAGODA_UNSUPPORTED;
  const LaunchShape shape{static_cast<unsigned>(num_ctas), 256};
  const bool int8 = p->code == PAGODA_W8_INT8;
  if (p->out_dtype == PAGODA_F32) return launch(int8 ? w8_dequantize_kernel<float, PAGODA_W8_INT8> : w8_dequantize_kernel<float, PAGODA_W8_E4M3>, shape, *p, stream);
  return launch(int8 ? w8_dequantize_kernel<bf16, PAGODA_W8_INT8> : w8_dequantize_kernel<bf16, PAGODA_W8_E4M3>, shape, *p, stream);
}
