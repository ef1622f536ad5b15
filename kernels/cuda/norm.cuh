// RMS norm: y[i] = v[i] / sqrt(mean(v^2) + eps) * w[i], the three forms of pagoda_norm_kind.
//
// The residual stream is T; what is added to it, and what a product reads next, is bf16.
//
// One CTA a row. Thread t holds the octets t, t + blockDim, t + 2 blockDim, ... of its row in registers (at most kMaxVecs), so x and
// residual are read once and written once; the sum of squares crosses the CTA through shared memory. The weights of the first kEarly
// octets are read before the wait for the previous kernel: they never change, and one row is all latency.
//
//   row:   | octet 0 | octet 1 | ... | octet B-1 | octet B | ...      B = blockDim.x
//   owner:     t0        t1             t(B-1)       t0
//
// Bound by memory: with an f32 stream 6 bytes an element for a norm, 12 with the addition.
#pragma once
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace pagoda {

constexpr int kMaxVecs = 4;
constexpr int kEarly = 2; // all weights in registers would leave too few of them for 1024 threads

template <typename T, pagoda_norm_kind kKind> __global__ void __launch_bounds__(kMaxWarps *kWarpSize) rms_norm_kernel(const __grid_constant__ pagoda_rms_norm_params p) {
  const int num_octets = p.hidden / kOctet;
  const int64_t row_offset = static_cast<int64_t>(blockIdx.x) * p.hidden;
  T *residual_gmem = static_cast<T *>(p.residual) + row_offset;
  bf16 *out_gmem = static_cast<bf16 *>(p.out) + row_offset;

  float w_frag[kEarly][kOctet];
#pragma unroll
  for (int i = 0; i < kEarly; ++i) {
    const int octet_idx = threadIdx.x + i * blockDim.x;
    if (octet_idx < num_octets) load_octet(w_frag[i], p.weight, octet_idx);
  }
  wait_then_allow_next();
  float v_frag[kMaxVecs][kOctet];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxVecs; ++i) {
    const int octet_idx = threadIdx.x + i * blockDim.x;
    if (octet_idx >= num_octets) break;
    float(&v)[kOctet] = v_frag[i];
    if constexpr (kKind == PAGODA_NORM) {
      load_octet(v, static_cast<const T *>(p.x) + row_offset, octet_idx);
    } else {
      load_octet(v, static_cast<const bf16 *>(p.x) + row_offset, octet_idx);
    }
    if constexpr (kKind == PAGODA_ADD_NORM) {
      float r[kOctet];
      load_octet(r, residual_gmem, octet_idx);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) v[e] = to_f32(from_f32<T>(v[e] + r[e]));
      store_octet(residual_gmem, octet_idx, v);
    }
#pragma unroll
    for (int e = 0; e < kOctet; ++e) sum = fmaf(v[e], v[e], sum);
  }
  const float scale = rsqrtf(block_sum(sum) / static_cast<float>(p.hidden) + p.eps);

#pragma unroll
  for (int i = 0; i < kMaxVecs; ++i) {
    const int octet_idx = threadIdx.x + i * blockDim.x;
    if (octet_idx >= num_octets) break;
    float w[kOctet], y[kOctet] = {};
    if (i >= kEarly) load_octet(w, p.weight, octet_idx);
    if constexpr (kKind == PAGODA_NORM_ADD) load_octet(y, residual_gmem, octet_idx);
    // Added before the rounding: the norm may cancel most of the residual.
#pragma unroll
    for (int e = 0; e < kOctet; ++e) y[e] += v_frag[i][e] * scale * (i < kEarly ? w_frag[i % kEarly][e] : w[e]);
    if constexpr (kKind == PAGODA_NORM_ADD) {
      store_octet(residual_gmem, octet_idx, y);
    } else {
      store_octet(out_gmem, octet_idx, y);
    }
  }
}

} // namespace pagoda
