// Skinny product for any GPU from sm_80: out[t, i] = sum_k x[t, k] * w[i, k], up to 64 tokens.
//
// A CTA makes 16 rows of w against all tokens: the rows are the m side of mma.m16n8k16, the tokens its n side, so one to eight tokens
// waste nothing. Its 8 warps take turns of 128 k (warp v: k / 128 % 8 == v) and add their sums through shared memory in warp order.
//
// Permuted K: a dot product may visit k in any order if both operands agree. Lane (g = lane / 4, t = lane % 4) loads 16 bytes at
// k = 32 s + 8 t of rows g and g + 8, straight from the row-major matrix, and uses words 0, 1 as the fragment of one mma and words 2, 3
// as that of the next; with x loaded the same way every product meets its partner. No shared memory, no repacking.
//
//   k:      | 8 lane t=0 | 8 t=1 | 8 t=2 | 8 t=3 |    one step of 32 k = 2 mma
//
// Bound by memory: the next 128 k of w are under way while this turn computes (32 KB a CTA). x comes from L2.
// Idea of permuted K for weights: FLUTE and Marlin (Apache-2.0) permute offline; here the order is that of the file.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/tensor_copy.cuh"
#include "skinny_output.cuh"

namespace pagoda {

struct SkinnySm80 {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = 16;
  static constexpr int kSteps = 4; // of 32 k, in one turn of a warp
  static constexpr int kTurn = kSteps * 32;
};

template <int kTokenTiles> __global__ void __launch_bounds__(SkinnySm80::kThreads, kTokenTiles == 8 ? 1 : 2) skinny_gemm_sm80_kernel(const __grid_constant__ pagoda_skinny_gemm_params p) {
  using S = SkinnySm80;
  constexpr int kTokens = 8 * kTokenTiles;
  __shared__ float acc_smem[S::kWarps][S::kRows][kTokens];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int out_cols = skinny_out_cols(p);
  const int tile = blockIdx.x;
  // Rows past the end repeat the last one; their sums are not stored.
  const int first_row = p.gated ? tile * 8 + g : tile * 16 + g;
  const int second_row = p.gated ? p.n / 2 + first_row : first_row + 8;
  const bf16 *w = static_cast<const bf16 *>(p.w);
  const bf16 *w0_gmem = w + static_cast<int64_t>(min(first_row, p.n - 1)) * p.k;
  const bf16 *w1_gmem = w + static_cast<int64_t>(min(second_row, p.n - 1)) * p.k;

  uint4 w0_frag[S::kSteps], w1_frag[S::kSteps];
  auto load_weights = [&](int s, int turn) {
    const int k = turn * S::kTurn + s * 32 + t * 8;
    w0_frag[s] = w1_frag[s] = make_uint4(0, 0, 0, 0);
    if (k < p.k) {
      w0_frag[s] = ptx::load_16b(w0_gmem + k);
      w1_frag[s] = ptx::load_16b(w1_gmem + k);
    }
  };
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) load_weights(s, warp);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  const bf16 *x_gmem[kTokenTiles];
#pragma unroll
  for (int q = 0; q < kTokenTiles; ++q) x_gmem[q] = static_cast<const bf16 *>(p.x) + static_cast<int64_t>(min(q * 8 + g, p.num_tokens - 1)) * p.k;
  float acc[kTokenTiles][4] = {};
  const int num_turns = (p.k + S::kTurn - 1) / S::kTurn;
  for (int turn = warp; turn < num_turns; turn += S::kWarps) {
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s) {
      const uint4 a = w0_frag[s], b = w1_frag[s];
      const int k = turn * S::kTurn + s * 32 + t * 8;
      uint4 x_frag[kTokenTiles];
#pragma unroll
      for (int q = 0; q < kTokenTiles; ++q) x_frag[q] = k < p.k ? ptx::load_16b(x_gmem[q] + k) : make_uint4(0, 0, 0, 0);
      load_weights(s, turn + S::kWarps);
#pragma unroll
      for (int q = 0; q < kTokenTiles; ++q) {
        ptx::mma_bf16(acc[q], a.x, b.x, a.y, b.y, x_frag[q].x, x_frag[q].y);
        ptx::mma_bf16(acc[q], a.z, b.z, a.w, b.w, x_frag[q].z, x_frag[q].w);
      }
    }
  }

#pragma unroll
  for (int q = 0; q < kTokenTiles; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) acc_smem[warp][g + 8 * (e / 2)][q * 8 + 2 * t + e % 2] = acc[q][e];
  }
  __syncthreads();
  const int cols = p.gated ? 8 : 16;
  for (int j = threadIdx.x; j < cols * p.num_tokens; j += S::kThreads) {
    const int row = j % cols, token = j / cols, i = tile * cols + row;
    if (i >= out_cols) continue;
    float sum = 0.0f, up_sum = 0.0f;
#pragma unroll
    for (int v = 0; v < S::kWarps; ++v) {
      sum += acc_smem[v][row][token];
      if (p.gated) up_sum += acc_smem[v][row + 8][token];
    }
    skinny_finish(p, token, i, sum, up_sum);
  }
}

} // namespace pagoda
