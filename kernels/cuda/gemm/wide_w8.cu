// pagoda_wide_w8: checks, dispatch and the instantiation table of wide_w8_sm90.cuh.
#include "launch.cuh"
#include "wide_w8_sm90.cuh"

namespace pagoda {
namespace {

using Params = pagoda_wide_w8_params;

struct WideKernel {
  int rows, cols, cluster, gated, blocks;
  int unit_rows, unit_cols, x_box_rows, num_threads, smem_bytes;
  const void *kernel;
};

template <int kRows, int kCols, WideShare kShare, bool kGated, bool kBlocks> constexpr WideKernel wide_kernel() {
  using T = WideW8Sm90<kRows, kCols, kShare, kGated, kBlocks>;
  return {kRows, kCols, T::kCluster, kGated, kBlocks, T::kUnitRows, T::kUnitCols, T::kXBoxRows, T::kThreads, T::kSmemBytes,
          reinterpret_cast<const void *>(wide_w8_sm90_kernel<T>)};
}

constexpr WideShare kAlone = WideShare::kNothing, kWeights = WideShare::kWeights, kTokens = WideShare::kTokens;

// As in wide.cu. Blocks hold the sums twice, so their tiles are half as large.
const WideKernel kKernels[] = {
    wide_kernel<128, 256, kWeights, false, false>(), wide_kernel<128, 256, kWeights, true, false>(),
    wide_kernel<128, 256, kAlone, false, false>(),   wide_kernel<128, 256, kAlone, true, false>(),
    wide_kernel<256, 128, kTokens, false, false>(),  wide_kernel<256, 128, kTokens, true, false>(),
    wide_kernel<128, 128, kWeights, false, false>(), wide_kernel<128, 128, kWeights, true, false>(),
    wide_kernel<128, 128, kAlone, false, false>(),   wide_kernel<128, 128, kAlone, true, false>(),
    wide_kernel<128, 128, kWeights, false, true>(),  wide_kernel<128, 128, kWeights, true, true>(),
    wide_kernel<128, 128, kAlone, false, true>(),    wide_kernel<128, 128, kAlone, true, true>(),
};

const WideKernel *find_kernel(const Params &p) {
  for (const WideKernel &row : kKernels) {
    const bool tile = row.rows == p.gemm.block_rows && row.cols == p.gemm.block_cols && row.cluster == p.gemm.cluster;
    if (tile && row.gated == p.gemm.gated && row.blocks == p.has_blocks) return &row;
  }
  return nullptr;
}

pagoda_status check(const Params &params) {
  const pagoda_wide_gemm_params &p = params.gemm;
  const bool flags_ok = (p.gated == 0 || p.gated == 1) && (params.has_blocks == 0 || params.has_blocks == 1) && p.raster >= 1 && p.max_ctas >= p.cluster && p.cluster >= 1;
  const bool counts_ok = p.num_rows >= 0 && p.n > 0 && p.k > 0 && p.ld_out >= wide_out_cols(p) && !(p.gated && p.n % 2) && p.num_ranges == 1;
  if (!flags_ok || !counts_ok || !p.out || !p.x || !p.w || !params.x_scales || !params.w_scales || p.offsets) return PAGODA_INVALID_ARGUMENT;
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w) | reinterpret_cast<uintptr_t>(p.out);
  const bool whole = p.k % 16 == 0 && wide_out_cols(p) % 8 == 0 && p.ld_out % 8 == 0 && reinterpret_cast<uintptr_t>(params.w_scales) % 8 == 0;
  const bool blocks_ok = !params.has_blocks || (wide_out_cols(p) % 128 == 0 && params.ld_x_scales >= p.num_rows);
  return whole && blocks_ok && addresses % 16 == 0 ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_wide_w8(const pagoda_wide_w8_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  Params args_params = *params;
  const pagoda_wide_gemm_params &p = args_params.gemm;
  const pagoda_status status = check(args_params);
  if (status != PAGODA_OK || p.num_rows == 0) return status;
  const WideKernel *kernel = find_kernel(args_params);
  if (!kernel || !has_body(kernel->kernel)) return PAGODA_UNSUPPORTED;
  CUtensorMap w_map, x_map;
  if (!encode_bytes(&w_map, p.w, p.n, p.k, p.block_cols / 2) || !encode_bytes(&x_map, p.x, p.num_rows, p.k, kernel->x_box_rows)) return PAGODA_UNSUPPORTED;
  const int64_t num_tiles = static_cast<int64_t>(ceil_div(p.num_rows, kernel->unit_rows)) * ceil_div(wide_out_cols(p), kernel->unit_cols);
  const int64_t max_clusters = p.max_ctas / p.cluster;
  const int num_ctas = static_cast<int>(num_tiles < max_clusters ? num_tiles : max_clusters) * p.cluster;
  void *args[] = {&args_params, &w_map, &x_map};
  return launch({kernel->kernel, num_ctas, kernel->num_threads, kernel->smem_bytes, p.cluster}, args, p.programmatic, stream);
}
