// pagoda_sample_pick: top-k of at most 64, top-p, min-p and the draw, one CTA a row. Reads the largest of every group and the best groups.
#include "best.cuh"

namespace pagoda::sampling {
namespace {

struct PickSmem {
  float weights[kMaxPick];
  int tokens[kMaxPick];
  unsigned long long masses[kMaxPick];
  unsigned long long staying[kMaxPick]; // masses, 0 for what does not stay
};

// Of a weight and its token, in the order of the filters.
__device__ __forceinline__ bool comes_before(float weight, int token, float other_weight, int other_token) {
  return weight > other_weight || (weight == other_weight && token < other_token);
}

template <bool kVec> __global__ void __launch_bounds__(kSelectThreads) pick_kernel(const __grid_constant__ pagoda_sample_params p) {
  wait_then_allow_next();
  __shared__ BestSmem best_smem;
  __shared__ PickSmem pick_smem;
  const Row row(p, blockIdx.y);
  const Workspace w = workspace_of(p);
  RowState *state_gmem = w.state + row.row_idx;
  if (__ldcg(&state_gmem->token) >= 0) return;
  find_best(&best_smem, w.groups + static_cast<int64_t>(row.row_idx) * w.num_groups, w.num_groups, row.record.top_k, p.vocab,
            [&](float(&x)[1][kRunLane], int run_start) {
              load_run<kVec>(x[0], row.logits_gmem, run_start, p.vocab);
              if (row.edited()) edit(x, p, row.record, run_start);
            });
  const float max = __ldcg(&state_gmem->max);
  const int count = best_smem.num_best;
  const int i = threadIdx.x;
  if (i < kMaxPick) {
    const unsigned long long key = i < count ? best_smem.best[i] : 0;
    const float weight = i < count ? weight_of(value_of_key(key), max, row.record.inv_temperature) : 0.0f;
    pick_smem.weights[i] = weight;
    pick_smem.tokens[i] = i < count ? token_of_key(key) : 0x7fffffff;
    pick_smem.masses[i] = mass_of(weight);
  }
  __syncthreads();
  if (i < kMaxPick) {
    unsigned long long before = 0;
    unsigned long long total = 0;
    for (int j = 0; j < count; ++j) {
      total += pick_smem.masses[j];
      if (comes_before(pick_smem.weights[j], pick_smem.tokens[j], pick_smem.weights[i], pick_smem.tokens[i])) before += pick_smem.masses[j];
    }
    const bool in_top_p = row.record.top_p >= 1.0f || static_cast<double>(before) < static_cast<double>(row.record.top_p) * static_cast<double>(total);
    pick_smem.staying[i] = i < count && in_top_p && pick_smem.weights[i] >= row.record.min_p ? pick_smem.masses[i] : 0;
  }
  __syncthreads();
  if (i >= count) return;
  const unsigned long long mine = pick_smem.staying[i];
  if (mine == 0) return;
  unsigned long long before = 0;
  unsigned long long total = 0;
  for (int j = 0; j < count; ++j) {
    total += pick_smem.staying[j];
    if (pick_smem.tokens[j] < pick_smem.tokens[i]) before += pick_smem.staying[j];
  }
  const double target = fmin(row.record.uniform * static_cast<double>(total), static_cast<double>(total) - 0.5);
  if (static_cast<double>(before) <= target && static_cast<double>(before + mine) > target) emit(p, row, state_gmem, pick_smem.tokens[i]);
}

} // namespace
} // namespace pagoda::sampling

extern "C" pagoda_status pagoda_sample_pick(const pagoda_sample_params *p, pagoda_stream stream) {
  using namespace pagoda::sampling;
  return launch_rows(pick_kernel<true>, pick_kernel<false>, p, 1, kSelectThreads, stream);
}
