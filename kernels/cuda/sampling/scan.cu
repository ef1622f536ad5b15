// pagoda_sample_scan: one pass over every row: edits, the largest logit, greedy tokens; sums and groups for what comes after.
//
// num_splits CTAs a row, a unit (512 logits) a warp at a time; the CTA that ends last finishes the row. Bound by memory: 4 * vocab bytes a
// row. What a unit gives does not depend on the split.
#include "row.cuh"

namespace pagoda::sampling {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

__device__ __forceinline__ float max_of_run(const float (&x)[kRunLane]) { return fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), -INFINITY); }

// The largest of every group of the unit.
__device__ __forceinline__ void store_groups(float *groups_gmem, const float (&x)[kNumRuns][kRunLane], int unit) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int j = 0; j < kNumRuns; ++j) {
    float max = max_of_run(x[j]);
#pragma unroll
    for (int offset = kWarpSize / 4; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, offset));
    if (lane % (kWarpSize / 2) == 0) groups_gmem[(unit * kNumRuns + j) * 2 + lane / (kWarpSize / 2)] = max;
  }
}

// Largest and sum of exp(logit - largest) of the unit.
__device__ __forceinline__ void store_sum(float2 *sum_gmem, const float (&x)[kNumRuns][kRunLane]) {
  float max = -INFINITY;
#pragma unroll
  for (int j = 0; j < kNumRuns; ++j) max = fmaxf(max, max_of_run(x[j]));
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, offset));
  float sum = 0.0f;
  if (fabsf(max) < INFINITY) {
#pragma unroll
    for (int j = 0; j < kNumRuns; ++j) {
#pragma unroll
      for (int e = 0; e < kRunLane; ++e) sum += x[j][e] == x[j][e] ? __expf(x[j][e] - max) : 0.0f;
    }
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) *sum_gmem = make_float2(max, sum);
}

// The lowest token that nothing masks, for a row without any usable logit; 0 when all are masked. One warp.
__device__ int lowest_allowed(const pagoda_sample_params &p, const Row &row) {
  const pagoda_sample_row &r = row.record;
  const pagoda_token_edit *edits_gmem = p.edits + static_cast<int64_t>(r.slot) * p.edit_stride;
  for (int first = 0; first < p.vocab; first += kWarpSize) {
    const int token = first + threadIdx.x % kWarpSize;
    bool allowed = token < p.vocab;
    if (allowed && r.mask_row >= 0) allowed = __ldcg(p.masks + static_cast<int64_t>(r.mask_row) * p.mask_stride + token / 32) >> (token % 32) & 1;
    for (int i = 0; allowed && i < r.num_edits; ++i) {
      const int2 edit = __ldcg(reinterpret_cast<const int2 *>(edits_gmem + i));
      allowed = edit.x != token || __int_as_float(edit.y) != -INFINITY;
    }
    const unsigned any = __ballot_sync(kAllLanes, allowed);
    if (any != 0) return first + __ffs(any) - 1;
  }
  return 0;
}

// One warp of the last CTA.
__device__ __forceinline__ void finish_row(const pagoda_sample_params &p, const Workspace &w, const Row &row) {
  const int lane = threadIdx.x;
  Best best{-INFINITY, 0};
  for (int i = lane; i < static_cast<int>(gridDim.x); i += kWarpSize) {
    const float2 other = __ldcg(reinterpret_cast<const float2 *>(w.cta_best + row.row_idx * kMaxSplits + i));
    best = better(best, Best{other.x, __float_as_int(other.y)});
  }
  best = warp_best(best);
  const bool none = best.value == -INFINITY;
  int token = -1;
  if (row.record.given >= 0) {
    token = row.record.given;
  } else if (none) {
    token = lowest_allowed(p, row);
  } else if (row.greedy() || best.value == INFINITY) {
    token = best.idx;
  }
  if (lane != 0) return;
  RowState *state_gmem = w.state + row.row_idx;
  state_gmem->max = best.value;
  state_gmem->threshold = static_cast<unsigned long long>(__float_as_uint(row.record.min_p)) << 32;
  state_gmem->token = -1;
  if (token >= 0) emit(p, row, state_gmem, token);
}

template <bool kVec> __global__ void __launch_bounds__(kThreads, 4) scan_kernel(const __grid_constant__ pagoda_sample_params p) {
  wait_then_allow_next();
  __shared__ Best best_smem[kWarps];
  const Row row(p, blockIdx.y);
  const Workspace w = workspace_of(p);
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const bool wants_logprobs = row.record.num_logprobs >= 0;
  Best best{-INFINITY, 0};
  for (int unit = blockIdx.x * kWarps + warp; unit < w.num_units; unit += gridDim.x * kWarps) {
    float x[kNumRuns][kRunLane];
#pragma unroll
    for (int j = 0; j < kNumRuns; ++j) load_run<kVec>(x[j], row.logits_gmem, unit * kUnit + j * kRun, p.vocab);
    if (wants_logprobs) {
      store_sum(w.unit_sums + static_cast<int64_t>(row.row_idx) * w.num_units + unit, x);
      store_groups(w.raw_groups + static_cast<int64_t>(row.row_idx) * w.num_groups, x, unit);
    }
    if (row.edited()) edit(x, p, row.record, unit * kUnit);
    if (!row.greedy()) store_groups(w.groups + static_cast<int64_t>(row.row_idx) * w.num_groups, x, unit);
    float max = -INFINITY;
#pragma unroll
    for (int j = 0; j < kNumRuns; ++j) max = fmaxf(max, max_of_run(x[j]));
    if (max > best.value) {
      best.value = max;
#pragma unroll
      for (int i = kNumRuns * kRunLane - 1; i >= 0; --i) {
        if (x[i / kRunLane][i % kRunLane] == max) best.idx = lane_token(unit * kUnit + i / kRunLane * kRun) + i % kRunLane;
      }
    }
  }
  best = warp_best(best);
  if (lane == 0) best_smem[warp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 1; i < kWarps; ++i) best = better(best, best_smem[i]);
    w.cta_best[row.row_idx * kMaxSplits + blockIdx.x] = best;
  }
  if (!last_of_row(&w.state[row.row_idx].arrivals, gridDim.x)) return;
  if (warp == 0) finish_row(p, w, row);
}

} // namespace
} // namespace pagoda::sampling

extern "C" pagoda_status pagoda_sample_scan(const pagoda_sample_params *p, pagoda_stream stream) {
  using namespace pagoda::sampling;
  return launch_rows(scan_kernel<true>, scan_kernel<false>, p, p ? p->num_splits : 1, kThreads, stream);
}

extern "C" pagoda_status pagoda_sample_workspace_bytes(int32_t vocab, int32_t max_rows, int64_t *bytes) {
  using namespace pagoda::sampling;
  if (!bytes || vocab <= 0 || vocab > kMaxVocab || max_rows <= 0) return PAGODA_INVALID_ARGUMENT;
  *bytes = Workspace(nullptr, vocab, max_rows).num_bytes;
  return PAGODA_OK;
}
