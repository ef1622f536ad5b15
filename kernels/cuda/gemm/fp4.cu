// pagoda_fp4_gemm and pagoda_has_fp4_gemm: checks and launch of the product in NVFP4.
#include "fp4_sm120.cuh"
#include "launch.cuh"

namespace pagoda {
namespace {

using Params = pagoda_fp4_gemm_params;

// Whether codes of the matrix are e2m1 with a scale for 16 columns.
bool is_nvfp4(const pagoda_w4_matrix &w) {
  constexpr float kBook[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  for (int i = 0; i < 16; ++i) {
    if (w.book[i] != (i < 8 ? kBook[i] : -kBook[i - 8])) return false;
  }
  return w.scales_per_tile == Fp4Gemm::kScales && !w.has_zeros && w.short_scales;
}

pagoda_status check(const Params &p) {
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || (p.gated == 1 && p.w.interleaved == 1));
  if (!w4_is_valid(p.w) || !types_ok || !p.out || !p.codes || !p.scales || !p.factors) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p.codes) | reinterpret_cast<uintptr_t>(p.scales)) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p.num_tokens < 1 || p.ld_out < w4_out_cols(p) || p.ld_scales < p.num_tokens || p.ld_scales % 4) return PAGODA_INVALID_ARGUMENT;
  return is_nvfp4(p.w) ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_has_fp4_gemm(void) {
  using namespace pagoda;
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return to_status(error);
  return major == 12 && has_body(reinterpret_cast<const void *>(fp4_sm120_kernel)) ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

extern "C" pagoda_status pagoda_fp4_gemm(const pagoda_fp4_gemm_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  pagoda_status status = check(*params);
  if (status == PAGODA_OK) status = pagoda_has_fp4_gemm();
  if (status != PAGODA_OK) return status;
  constexpr unsigned kMaxGridY = 65535;
  const dim3 grid(ceil_div(params->num_tokens, Fp4Gemm::kTokens), ceil_div(w4_row_tiles(params->w), Fp4Gemm::kRowTiles));
  if (grid.y > kMaxGridY) return PAGODA_UNSUPPORTED;
  return launch(fp4_sm120_kernel, {grid, Fp4Gemm::kThreads}, *params, stream);
}
