// pagoda_blocks_gemm: checks and dispatch. Instantiations: 8, 16 and 32 tokens a pass, 1 to 8 warps a tile of rows.
#include "../common/launch.cuh"
#include "blocks.cuh"

namespace pagoda {
namespace {

using Params = pagoda_blocks_gemm_params;

pagoda_status check(const pagoda_skinny_gemm_params &p) {
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || p.gated == 1);
  const bool counts_ok = p.num_tokens >= 1 && p.n > 0 && p.k > 0 && p.ld_out >= skinny_out_cols(p) && !(p.gated && p.n % 2);
  if (!types_ok || !counts_ok || !p.out || !p.x || !p.w || p.offsets || p.kernel != PAGODA_SKINNY_GEMV || p.max_ctas < 1) return PAGODA_INVALID_ARGUMENT;
  return (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w)) % 16 ? PAGODA_INVALID_ARGUMENT : PAGODA_OK;
}

template <typename Block, int kTiles, int kSplit> pagoda_status launch_split(const Params &params, cudaStream_t stream) {
  using S = BlocksGemm;
  constexpr int kMaxPasses = 65535, kPassTokens = kTiles * S::kTileTokens, kGroupRows = S::kWarps / kSplit * S::kTileRows;
  const int tokens = params.gemm.num_tokens, num_passes = (tokens + kPassTokens - 1) / kPassTokens;
  if (num_passes > kMaxPasses) return PAGODA_UNSUPPORTED;
  const int most = tokens < kPassTokens ? tokens : kPassTokens;
  // The last of several passes may have fewer tokens and more columns at once, but never more bytes.
  const int x_bytes = num_passes > 1 ? S::kXBytes : 2 * most * S::chunk_cols(most, params.gemm.k, kSplit);
  const int smem_bytes = x_bytes + S::sums_bytes(kTiles, kSplit);
  const int num_groups = (params.gemm.n + kGroupRows - 1) / kGroupRows;
  const dim3 grid(S::walks(kTiles) && params.gemm.max_ctas < num_groups ? params.gemm.max_ctas : num_groups, num_passes);
  return launch(blocks_gemm_kernel<Block, kTiles, kSplit>, {grid, S::kThreads, static_cast<size_t>(smem_bytes)}, params, stream);
}

template <typename Block, int kTiles> pagoda_status launch_tiles(const Params &params, cudaStream_t stream) {
  switch (params.gemm.split_k) {
  case 8: return launch_split<Block, kTiles, 8>(params, stream);
  case 4: return launch_split<Block, kTiles, 4>(params, stream);
  case 2: return launch_split<Block, kTiles, 2>(params, stream);
  case 1: return launch_split<Block, kTiles, 1>(params, stream);
  default: return PAGODA_INVALID_ARGUMENT;
  }
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
    const int num_tiles = (params->gemm.num_tokens + BlocksGemm::kTileTokens - 1) / BlocksGemm::kTileTokens;
    if (num_tiles <= 1) return launch_tiles<Block, 1>(*params, stream);
    if (num_tiles <= 2) return launch_tiles<Block, 2>(*params, stream);
    return launch_tiles<Block, 4>(*params, stream);
  });
}
