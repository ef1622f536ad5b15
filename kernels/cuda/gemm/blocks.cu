// pagoda_blocks_gemm: checks and dispatch. Instantiations: one token, most of decoding; up to 4; passes of 8.
#include "../common/launch.cuh"
#include "blocks.cuh"

namespace pagoda {
namespace {

using Params = pagoda_blocks_gemm_params;

pagoda_status check(const pagoda_skinny_gemm_params &p) {
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || p.gated == 1);
  const bool counts_ok = p.num_tokens >= 1 && p.n > 0 && p.k > 0 && p.ld_out >= skinny_out_cols(p) && !(p.gated && p.n % 2);
  if (!types_ok || !counts_ok || !p.out || !p.x || !p.w || p.offsets || p.kernel != PAGODA_SKINNY_GEMV) return PAGODA_INVALID_ARGUMENT;
  return (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w)) % 16 ? PAGODA_INVALID_ARGUMENT : PAGODA_OK;
}

template <typename Block, int kTokens> pagoda_status launch_passes(const Params &params, cudaStream_t stream) {
  constexpr int kMaxPasses = 65535;
  const int num_groups = params.gemm.gated ? params.gemm.n / 2 : (params.gemm.n + BlocksGemm::kRows - 1) / BlocksGemm::kRows;
  const int num_passes = (params.gemm.num_tokens + kTokens - 1) / kTokens;
  if (num_passes > kMaxPasses) return PAGODA_UNSUPPORTED;
  const dim3 grid((num_groups + BlocksGemm::kWarps - 1) / BlocksGemm::kWarps, num_passes);
  return launch(blocks_gemm_kernel<Block, kTokens>, {grid, BlocksGemm::kThreads}, params, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_blocks_gemm(const pagoda_blocks_gemm_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  const pagoda_status status = check(params->gemm);
  if (status != PAGODA_OK) return status;
  return with_block(params->format, [&](auto block) {
    using Block = decltype(block);
    if (params->gemm.k % Block::kValues) return PAGODA_INVALID_ARGUMENT;
    if (params->gemm.num_tokens == 1) return launch_passes<Block, 1>(*params, stream);
    if (params->gemm.num_tokens <= 4) return launch_passes<Block, 4>(*params, stream);
    return launch_passes<Block, 8>(*params, stream);
  });
}
