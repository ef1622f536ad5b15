// pagoda_wide_gemm: checks, dispatch and the instantiation table of wide_sm90.cuh.
#include "launch.cuh"
#include "wide_sm90.cuh"

namespace pagoda {
namespace {

using Params = pagoda_wide_gemm_params;

struct WideKernel {
  int rows, cols, cluster, gated, ranges;
  int unit_rows, unit_cols, x_box_rows, num_threads, smem_bytes;
  const void *kernel;
};

template <int kRows, int kCols, WideShare kShare, bool kGated, bool kRanges> constexpr WideKernel wide_kernel() {
  using T = WideSm90<kRows, kCols, kShare, kGated, kRanges>;
  return {kRows, kCols, T::kCluster, kGated, kRanges, T::kUnitRows, T::kUnitCols, T::kXBoxRows, T::kThreads, T::kSmemBytes,
          reinterpret_cast<const void *>(wide_gemm_sm90_kernel<T>)};
}

constexpr WideShare kAlone = WideShare::kNothing, kWeights = WideShare::kWeights, kTokens = WideShare::kTokens;

// Pairs of CTAs need two tiles of tokens. Ranges hold the sums twice, so their tiles are half as large.
const WideKernel kKernels[] = {
    wide_kernel<128, 256, kWeights, false, false>(), wide_kernel<128, 256, kWeights, true, false>(),
    wide_kernel<128, 256, kAlone, false, false>(),   wide_kernel<128, 256, kAlone, true, false>(),
    wide_kernel<256, 128, kTokens, false, false>(),  wide_kernel<256, 128, kTokens, true, false>(),
    wide_kernel<128, 128, kWeights, false, true>(),  wide_kernel<128, 128, kWeights, true, true>(),
    wide_kernel<128, 128, kAlone, false, true>(),    wide_kernel<128, 128, kAlone, true, true>(),
};

const WideKernel *find_kernel(const Params &p) {
  for (const WideKernel &row : kKernels) {
    const bool tile = row.rows == p.block_rows && row.cols == p.block_cols && row.cluster == p.cluster;
    if (tile && row.gated == p.gated && row.ranges == (p.num_ranges > 1)) return &row;
  }
  return nullptr;
}

pagoda_status check(const Params &p) {
  const bool flags_ok = (p.gated == 0 || p.gated == 1) && p.num_ranges >= 1 && p.raster >= 1 && p.max_ctas >= p.cluster && p.cluster >= 1;
  const bool counts_ok = p.num_rows >= 0 && p.num_groups >= 1 && p.n > 0 && p.k > 0 && p.ld_out >= wide_out_cols(p) && !(p.gated && p.n % 2);
  if (!flags_ok || !counts_ok || !p.out || !p.x || !p.w || (!p.offsets && p.num_groups != 1)) return PAGODA_INVALID_ARGUMENT;
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w) | reinterpret_cast<uintptr_t>(p.out);
  if (p.num_groups > kMaxGroups) return PAGODA_UNSUPPORTED;
  const bool whole = p.k % 8 == 0 && wide_out_cols(p) % 8 == 0 && p.ld_out % 8 == 0;
  return whole && addresses % 16 == 0 ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_wide_gemm(const pagoda_wide_gemm_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  Params p = *params;
  const pagoda_status status = check(p);
  if (status != PAGODA_OK || p.num_rows == 0) return status;
  const WideKernel *kernel = find_kernel(p);
  if (!kernel || !has_body(kernel->kernel)) return PAGODA_UNSUPPORTED;
  CUtensorMap w_map, x_map;
  const int64_t w_rows = static_cast<int64_t>(p.n) * p.num_groups;
  if (!encode(&w_map, p.w, w_rows, p.k, p.block_cols / 2) || !encode(&x_map, p.x, p.num_rows, p.k, kernel->x_box_rows)) return PAGODA_UNSUPPORTED;
  // At most: every group, but no more than there are rows, has one tile that is not full.
  const int partial_units = p.num_rows < p.num_groups ? p.num_rows : p.num_groups;
  const int units = p.offsets ? p.num_rows / kernel->unit_rows + partial_units : ceil_div(p.num_rows, kernel->unit_rows);
  if (p.offsets && units > 65535) return PAGODA_UNSUPPORTED;
  const int64_t num_tiles = static_cast<int64_t>(units) * ceil_div(wide_out_cols(p), kernel->unit_cols);
  const int64_t max_clusters = p.max_ctas / p.cluster;
  const int num_ctas = static_cast<int>(num_tiles < max_clusters ? num_tiles : max_clusters) * p.cluster;
  void *args[] = {&p, &w_map, &x_map};
  return launch({kernel->kernel, num_ctas, kernel->num_threads, kernel->smem_bytes, p.cluster}, args, p.programmatic, stream);
}
