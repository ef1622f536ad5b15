// A row of q or k of the step in registers: read, normed, rotated.
//
// Lane 4g + t holds elements 8j + 2t and 8j + 2t + 1 of head g as element [j / 2][j % 2]: the columns of mma's b operand. Half-split
// rotation pairs j with j + head_dim / 16 where the whole head rotates, interleaved rotation the two halves of one register: always one lane.
#pragma once
#include "../common/types.cuh"
#include "pagoda.h"

namespace pagoda {

template <int kHeadDim> using RowFrag = uint32_t[kHeadDim / 16][2];

template <int kHeadDim> __device__ __forceinline__ void load_row(RowFrag<kHeadDim> &frag, const bf16 *row_gmem, bool valid, int lane) {
  const uint32_t *pairs = reinterpret_cast<const uint32_t *>(row_gmem) + lane % 4;
#pragma unroll
  for (int j = 0; j < kHeadDim / 8; ++j) frag[j / 2][j % 2] = valid ? __ldcg(pairs + j * 4) : 0u;
}

// The same steps in the same precision as rope_kv.cu: f32 throughout, rounded once at the end.
template <int kHeadDim>
__device__ __forceinline__ void norm_and_rotate(RowFrag<kHeadDim> &frag, const pagoda_attention_decode_params &d, const float *norm, int position, int lane) {
  constexpr int kPairs = kHeadDim / 8;
  const int t = lane % 4;
  float x[kPairs][2];
#pragma unroll
  for (int j = 0; j < kPairs; ++j) x[j][0] = low_f32(frag[j / 2][j % 2]), x[j][1] = high_f32(frag[j / 2][j % 2]);
  if (norm) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) sum += x[j][0] * x[j][0] + x[j][1] * x[j][1];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float scale = rsqrtf(sum / static_cast<float>(kHeadDim) + d.eps);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float2 weight = reinterpret_cast<const float2 *>(norm)[j * 4 + t];
      x[j][0] *= scale * weight.x;
      x[j][1] *= scale * weight.y;
    }
  }
  const int64_t angles = static_cast<int64_t>(position) * (d.rotary_dim / 2);
  if (d.interleaved) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const bool rotates = j * 8 + 2 * t < d.rotary_dim;
      const float cos = rotates ? d.cos[angles + j * 4 + t] : 1.0f, sin = rotates ? d.sin[angles + j * 4 + t] : 0.0f;
      const float a = x[j][0], b = x[j][1];
      x[j][0] = a * cos - b * sin;
      x[j][1] = b * cos + a * sin;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPairs / 2; ++j) {
      const float2 cos = reinterpret_cast<const float2 *>(d.cos + angles)[j * 4 + t], sin = reinterpret_cast<const float2 *>(d.sin + angles)[j * 4 + t];
      const float a0 = x[j][0], a1 = x[j][1], b0 = x[j + kPairs / 2][0], b1 = x[j + kPairs / 2][1];
      x[j][0] = a0 * cos.x - b0 * sin.x;
      x[j][1] = a1 * cos.y - b1 * sin.y;
      x[j + kPairs / 2][0] = b0 * cos.x + a0 * sin.x;
      x[j + kPairs / 2][1] = b1 * cos.y + a1 * sin.y;
    }
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) frag[j / 2][j % 2] = pack_bf16(x[j][0], x[j][1]);
}

} // namespace pagoda
