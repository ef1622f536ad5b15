// Skinny product for one token: out[i] = sum_k x[k] * w[i, k], plain multiply-adds.
//
// A warp takes kRows rows at a time and walks k in blocks of kUnroll * 256 (lane l: 8 k at 256 u + 8 l), every lane with kRows * kUnroll
// loads of 16 bytes under way, also across the end of a group of rows. x lies in shared memory as bf16. Warps own whole rows, so sums
// need one shuffle reduction and nothing else.
//
//   row r:  | lane 0 | lane 1 | ... | lane 31 | lane 0 | ...      8 k = 16 bytes each
//
// Bound by memory. Its CTAs start at once and need no pipeline, so it wins where a matrix lasts a few microseconds: on an H100, chained
// launches, 2048 x 2048 takes 4.0 us against 5.4 of the ring; 4096 x 4096 11.8 against 13.6 (2841 GB/s of the 3150 that reads reach).
// What a lane loads before the wait for the previous kernel costs nothing: where the rows are few, 20 loads a lane take all of a long row
// (896 x 4864 in a decode step: 5.6 us behind its predecessor with 8 loads, 3.9 with 20).
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/tensor_copy.cuh"
#include "skinny_output.cuh"

namespace pagoda {

struct SkinnyGemv {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kLaneK = 8;
  static constexpr int kLoads = 8;      // under way in a lane
  static constexpr int kDeepLoads = 20; // where a CTA has a multiprocessor to itself
};

// sum += 8 products of bf16 in f32, in order of k.
__device__ __forceinline__ float dot8(uint4 a, uint4 b, float sum) {
  const uint32_t aw[4] = {a.x, a.y, a.z, a.w}, bw[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    sum = fmaf(__uint_as_float(aw[e] << 16), __uint_as_float(bw[e] << 16), sum);
    sum = fmaf(__uint_as_float(aw[e] & 0xffff0000u), __uint_as_float(bw[e] & 0xffff0000u), sum);
  }
  return sum;
}

template <int kRows, int kUnroll> __global__ void __launch_bounds__(SkinnyGemv::kThreads, kUnroll <= SkinnyGemv::kLoads ? 2 : 1) skinny_gemv_kernel(const __grid_constant__ pagoda_skinny_gemm_params p) {
  using S = SkinnyGemv;
  constexpr int kBlockK = kUnroll * kWarpSize * S::kLaneK;
  extern __shared__ __align__(16) unsigned char x_smem[];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int out_cols = skinny_out_cols(p);
  const int cols = p.gated ? kRows / 2 : kRows; // outputs of one group of rows
  const int num_groups = (out_cols + cols - 1) / cols;
  const int num_blocks = (p.k + kBlockK - 1) / kBlockK;
  const int stride = gridDim.x * S::kWarps;
  const int first_group = blockIdx.x * S::kWarps + warp;

  uint4 w_frag[kUnroll][kRows];
  // Rows past the end repeat the last one; their sums are not stored.
  auto load_weight = [&](int u, int r, int group, int block) {
    const int k = block * kBlockK + (u * kWarpSize + lane) * S::kLaneK;
    const int row = p.gated && r >= kRows / 2 ? p.n / 2 + group * cols + r - kRows / 2 : group * cols + r;
    w_frag[u][r] = make_uint4(0, 0, 0, 0);
    if (group < num_groups && k < p.k) {
      w_frag[u][r] = ptx::load_16b(static_cast<const bf16 *>(p.w) + static_cast<int64_t>(min(row, p.n - 1)) * p.k + k);
    }
  };
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) load_weight(u, r, first_group, 0);
  }
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  for (int j = threadIdx.x; j < p.k / S::kLaneK; j += S::kThreads) {
    *reinterpret_cast<uint4 *>(x_smem + j * 16) = ptx::load_16b(static_cast<const bf16 *>(p.x) + j * S::kLaneK);
  }
  __syncthreads();

  for (int group = first_group; group < num_groups; group += stride) {
    float sum[kRows] = {};
    for (int block = 0; block < num_blocks; ++block) {
      const bool last = block + 1 == num_blocks;
      const int next_group = last ? group + stride : group, next_block = last ? 0 : block + 1;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int k = block * kBlockK + (u * kWarpSize + lane) * S::kLaneK;
        const uint4 x_frag = k < p.k ? *reinterpret_cast<const uint4 *>(x_smem + k * 2) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const uint4 w = w_frag[u][r];
          load_weight(u, r, next_group, next_block);
          sum[r] = dot8(w, x_frag, sum[r]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = warp_sum(sum[r]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float up_sum = kRows > 1 ? sum[(r + kRows / 2) % kRows] : 0.0f;
      if (lane == r && r < cols && group * cols + r < out_cols) skinny_finish(p, 0, group * cols + r, sum[r], up_sum);
    }
  }
}

} // namespace pagoda
