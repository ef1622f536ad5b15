// pagoda_argmax: greedy sampling. One CTA a row: every thread keeps the best of its elements, then warps, then the CTA.
//
// Bound by one SM's read rate: 4 * vocab bytes a row. NaN never wins; among equals the lowest index does.
#include "common/launch.cuh"
#include "common/reduce.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 1024;
constexpr int kUnroll = 4;

__global__ void __launch_bounds__(kThreads) argmax_kernel(const __grid_constant__ pagoda_argmax_params p) {
  __shared__ Best best_smem[kThreads / kWarpSize];
  wait_then_allow_next();
  const float *row_gmem = p.logits + static_cast<int64_t>(__ldcg(p.rows + blockIdx.x)) * p.vocab;
  Best best{-INFINITY, 0};
  for (int base = threadIdx.x; base < p.vocab; base += kThreads * kUnroll) {
    float value[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) value[u] = base + u * kThreads < p.vocab ? __ldcg(row_gmem + base + u * kThreads) : -INFINITY;
    // In ascending order of index, so that `>` keeps the lowest among equals.
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (value[u] > best.value) best = {value[u], base + u * kThreads};
    }
  }
  best = warp_best(best);
  const int lane = threadIdx.x % kWarpSize;
  if (lane == 0) best_smem[threadIdx.x / kWarpSize] = best;
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return;
  best = warp_best(best_smem[lane]);
  if (lane != 0) return;
  p.tokens[blockIdx.x] = best.idx;
  p.last_tokens[__ldcg(p.slots + blockIdx.x)] = best.idx;
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_argmax(const pagoda_argmax_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->tokens || !p->last_tokens || !p->logits || !p->rows || !p->slots || p->num_rows < 0 || p->vocab <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_rows == 0) return PAGODA_OK;
  return launch(argmax_kernel, {static_cast<unsigned>(p->num_rows), kThreads}, *p, stream);
}
