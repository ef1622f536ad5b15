// pagoda_sample_draw: rows without top-k and top-p. num_splits CTAs a row sum the masses of their units; the one that ends last draws.
#include "draw.cuh"

namespace pagoda::sampling {
namespace {

template <bool kVec> __global__ void __launch_bounds__(kSelectThreads, 2) draw_kernel(const __grid_constant__ pagoda_sample_params p) {
  wait_then_allow_next();
  const Row row(p, blockIdx.y);
  const Workspace w = workspace_of(p);
  RowState *state_gmem = w.state + row.row_idx;
  if (__ldcg(&state_gmem->token) >= 0) return;
  const float max = __ldcg(&state_gmem->max);
  const unsigned long long threshold = __ldcg(&state_gmem->threshold);
  const float least = fmaxf(kLeastWeight, __uint_as_float(static_cast<unsigned>(threshold >> 32)));
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  Mass *masses_gmem = w.unit_masses + static_cast<int64_t>(row.row_idx) * w.num_units;
  for (int unit = blockIdx.x * kSelectWarps + warp; unit < w.num_units; unit += gridDim.x * kSelectWarps) {
    const Mass sum = unit_reaches(w, row, max, least, unit) ? unit_mass<kVec>(p, row, max, threshold, unit) : 0;
    if (lane == 0) masses_gmem[unit] = sum;
  }
  if (!last_of_row(&state_gmem->arrivals, gridDim.x)) return;
  draw_token<kVec>(p, w, row, max, threshold);
}

} // namespace
} // namespace pagoda::sampling

extern "C" pagoda_status pagoda_sample_draw(const pagoda_sample_params *p, pagoda_stream stream) {
  using namespace pagoda::sampling;
  return launch_rows(draw_kernel<true>, draw_kernel<false>, p, p ? p->num_splits : 1, kSelectThreads, stream);
}
