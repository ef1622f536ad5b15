// RMS norm: y[i] = v[i] / sqrt(mean(v^2) + eps) * w[i], the three forms of pagoda_norm_kind.
//
// One CTA a row. Thread t holds the 16-byte vectors t, t + blockDim, t + 2 blockDim, ... of its row in registers (at most
// kMaxVecs), so x and residual are read once and written once; the sum of squares crosses the CTA through shared memory. The weights are
// read before the wait for the previous kernel: they never change, and one row is all latency.
//
//   row:   | vec 0 | vec 1 | ... | vec B-1 | vec B | ...      B = blockDim.x
//   owner:    t0      t1            t(B-1)     t0
//
// Bound by memory: (2 or 4) * hidden * sizeof(T) bytes a row against one multiply-add an element.
#pragma once
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace pagoda {

constexpr int kMaxVecs = 4;

template <typename T, pagoda_norm_kind kKind> __global__ void rms_norm_kernel(const __grid_constant__ pagoda_rms_norm_params p) {
  using V = Vec<T>;
  constexpr int kFloatVecs = V::kSize / Vec<float>::kSize; // of weights, for one vector of x
  const int num_vecs = p.hidden / V::kSize;
  const int64_t row_offset = static_cast<int64_t>(blockIdx.x) * p.hidden;
  const T *x_gmem = static_cast<const T *>(p.x) + row_offset;
  T *residual_gmem = static_cast<T *>(p.residual) + row_offset;
  T *out_gmem = static_cast<T *>(p.out) + row_offset;

  V v_frag[kMaxVecs];
  Vec<float> w_frag[kMaxVecs][kFloatVecs];
#pragma unroll
  for (int i = 0; i < kMaxVecs; ++i) {
    const int vec_idx = threadIdx.x + i * blockDim.x;
    if (vec_idx >= num_vecs) break;
#pragma unroll
    for (int f = 0; f < kFloatVecs; ++f) w_frag[i][f] = Vec<float>::load(p.weight, static_cast<int64_t>(vec_idx) * kFloatVecs + f);
  }
  wait_then_allow_next();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxVecs; ++i) {
    const int vec_idx = threadIdx.x + i * blockDim.x;
    if (vec_idx >= num_vecs) break;
    v_frag[i] = V::load(x_gmem, vec_idx);
    if constexpr (kKind == PAGODA_ADD_NORM) {
      const V r = V::load(residual_gmem, vec_idx);
#pragma unroll
      for (int e = 0; e < V::kSize; ++e) v_frag[i].elems[e] = from_f32<T>(to_f32(v_frag[i].elems[e]) + to_f32(r.elems[e]));
      v_frag[i].store(residual_gmem, vec_idx);
    }
#pragma unroll
    for (int e = 0; e < V::kSize; ++e) {
      const float f = to_f32(v_frag[i].elems[e]);
      sum = fmaf(f, f, sum);
    }
  }
  const float scale = rsqrtf(block_sum(sum) / static_cast<float>(p.hidden) + p.eps);

#pragma unroll
  for (int i = 0; i < kMaxVecs; ++i) {
    const int vec_idx = threadIdx.x + i * blockDim.x;
    if (vec_idx >= num_vecs) break;
    V y;
    if constexpr (kKind == PAGODA_NORM_ADD) y = V::load(residual_gmem, vec_idx);
#pragma unroll
    for (int e = 0; e < V::kSize; ++e) {
      const float normed = to_f32(v_frag[i].elems[e]) * scale * w_frag[i][e / Vec<float>::kSize].elems[e % Vec<float>::kSize];
      // Added before the rounding: the norm may cancel most of the residual.
      y.elems[e] = from_f32<T>(kKind == PAGODA_NORM_ADD ? to_f32(y.elems[e]) + normed : normed);
    }
    y.store(kKind == PAGODA_NORM_ADD ? residual_gmem : out_gmem, vec_idx);
  }
}

} // namespace pagoda
