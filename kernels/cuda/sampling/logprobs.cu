// pagoda_sample_logprobs: logprob and rank of the chosen token and the best alternatives, of the logits before edits.
//
// num_splits CTAs a row count the logits above the chosen one; the CTA that ends last takes the sum from the units' sums and the best from
// the best groups, both left by scan.
#include "best.cuh"

namespace pagoda::sampling {
namespace {

// log of the sum of exp(logit), as max + log(sum of exp(logit - max)); max alone when it is not finite. All threads get it.
__device__ double log_sum(const Workspace &w, int row_idx) {
  __shared__ double sums_smem[kSelectWarps];
  __shared__ float maxima_smem[kSelectWarps];
  const float2 *unit_sums = w.unit_sums + static_cast<int64_t>(row_idx) * w.num_units;
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  float max = -INFINITY;
  for (int i = threadIdx.x; i < w.num_units; i += kSelectThreads) max = fmaxf(max, __ldcg(unit_sums + i).x);
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, offset));
  if (lane == 0) maxima_smem[warp] = max;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSelectWarps; ++i) max = fmaxf(max, maxima_smem[i]);
  if (!(fabsf(max) < INFINITY)) return max;
  double sum = 0.0;
  for (int i = threadIdx.x; i < w.num_units; i += kSelectThreads) {
    const float2 part = __ldcg(unit_sums + i);
    if (part.y > 0.0f) sum += part.y * exp(static_cast<double>(part.x) - static_cast<double>(max));
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  if (lane == 0) sums_smem[warp] = sum;
  __syncthreads();
  double total = 0.0;
#pragma unroll
  for (int i = 0; i < kSelectWarps; ++i) total += sums_smem[i];
  return static_cast<double>(max) + log(total);
}

__device__ __forceinline__ float logprob_of(float logit, double log_sum) {
  const float value = static_cast<float>(static_cast<double>(logit) - log_sum);
  if (value == value) return value;
  return logit == INFINITY ? 0.0f : -INFINITY;
}

template <bool kVec> __global__ void __launch_bounds__(kSelectThreads) logprobs_kernel(const __grid_constant__ pagoda_sample_params p) {
  wait_then_allow_next();
  __shared__ BestSmem best_smem;
  const Row row(p, blockIdx.y);
  if (row.record.num_logprobs < 0) return;
  const Workspace w = workspace_of(p);
  RowState *state_gmem = w.state + row.row_idx;
  const float logit = __ldcg(row.logits_gmem + __ldcg(&state_gmem->token));
  const float bound = logit == logit ? logit : -INFINITY;
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  unsigned num_larger = 0;
  for (int unit = blockIdx.x * kSelectWarps + warp; unit < w.num_units; unit += gridDim.x * kSelectWarps) {
    if (!(__ldcg(w.unit_sums + static_cast<int64_t>(row.row_idx) * w.num_units + unit).x > bound)) continue;
#pragma unroll
    for (int j = 0; j < kNumRuns; ++j) {
      float x[kRunLane];
      load_run<kVec>(x, row.logits_gmem, unit * kUnit + j * kRun, p.vocab);
#pragma unroll
      for (int e = 0; e < kRunLane; ++e) num_larger += x[e] > bound ? 1 : 0;
    }
  }
  num_larger = __reduce_add_sync(kAllLanes, num_larger);
  if (lane == 0 && num_larger > 0) atomicAdd(&state_gmem->num_larger, num_larger);
  if (!last_of_row(&state_gmem->arrivals, gridDim.x)) return;

  const double sum = log_sum(w, row.row_idx);
  const int wanted = row.record.num_logprobs < p.vocab ? row.record.num_logprobs : p.vocab;
  if (threadIdx.x == 0) best_smem.num_best = 0;
  __syncthreads();
  if (wanted > 0) {
    find_best(&best_smem, w.raw_groups + static_cast<int64_t>(row.row_idx) * w.num_groups, w.num_groups, wanted, p.vocab,
              [&](float(&x)[1][kRunLane], int run_start) { load_run<kVec>(x[0], row.logits_gmem, run_start, p.vocab); });
  }
  const int count = best_smem.num_best;
  pagoda_token_logprobs *out = p.logprobs + row.record.out;
  for (int i = threadIdx.x; i < count; i += kSelectThreads) {
    const unsigned long long key = best_smem.best[i];
    int place = 0;
    for (int j = 0; j < count; ++j) place += best_smem.best[j] > key ? 1 : 0;
    out->top_ids[place] = token_of_key(key);
    out->top_logprobs[place] = logprob_of(value_of_key(key), sum);
  }
  if (threadIdx.x == 0) {
    out->logprob = logprob_of(logit, sum);
    out->rank = static_cast<int>(1 + __ldcg(&state_gmem->num_larger));
    out->num_top = count;
    state_gmem->num_larger = 0;
  }
}

} // namespace
} // namespace pagoda::sampling

extern "C" pagoda_status pagoda_sample_logprobs(const pagoda_sample_params *p, pagoda_stream stream) {
  using namespace pagoda::sampling;
  if (!p || !p->logprobs) return PAGODA_INVALID_ARGUMENT;
  return launch_rows(logprobs_kernel<true>, logprobs_kernel<false>, p, p->num_splits, kSelectThreads, stream);
}
