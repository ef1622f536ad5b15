// pagoda_skinny_gemm: checks, dispatch and the instantiation tables of the three skinny kernels.
#include "launch.cuh"
#include "skinny_gemv.cuh"
#include "skinny_sm80.cuh"
#include "skinny_sm90.cuh"

namespace pagoda {
namespace {

using Params = pagoda_skinny_gemm_params;

// One tile of the ring kernel.
struct RingKernel {
  int token_tiles, block_n, grouped, num_threads, stage_bytes, fixed_bytes;
  const void *kernel;
};

template <int kTokenTiles, int kBoxes, int kWarpgroups, bool kGrouped = false> constexpr RingKernel ring_kernel() {
  using Tile = SkinnySm90<kTokenTiles, kBoxes, kWarpgroups, kGrouped>;
  return {kTokenTiles, Tile::kBlockN, kGrouped, Tile::kThreads, Tile::kStageBytes, Tile::smem_bytes(0), reinterpret_cast<const void *>(skinny_gemm_sm90_kernel<Tile>)};
}

// Tokens in tiles of 8 doubled up to 128; stages of 12 to 32 KB. Tiles of 128 rows read the tokens half as often.
const RingKernel kRingKernels[] = {ring_kernel<1, 2, 1>(), ring_kernel<2, 2, 1>(), ring_kernel<4, 1, 1>(), ring_kernel<8, 1, 1>(),
                                   ring_kernel<4, 1, 2>(), ring_kernel<8, 1, 2>(), ring_kernel<16, 1, 2>()};
// In groups: the same, for groups of few rows and of many.
const RingKernel kGroupedKernels[] = {ring_kernel<1, 2, 1, true>(), ring_kernel<2, 2, 1, true>(), ring_kernel<4, 1, 1, true>(), ring_kernel<8, 1, 1, true>(),
                                      ring_kernel<16, 1, 2, true>()};

template <int kCount> const RingKernel *find_ring_kernel(const RingKernel (&kernels)[kCount], int num_tokens, int block_n) {
  for (const RingKernel &row : kernels) {
    if (row.block_n == block_n && num_tokens <= 8 * row.token_tiles) return &row;
  }
  return nullptr;
}

// Tokens in tiles of 8 doubled up to 64.
const void *const kSm80Kernels[] = {
    reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<1>), reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<2>),
    reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<4>), reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<8>)};

// Rows a warp times loads a row: 8 loads under way in all.
const void *const kGemvKernels[] = {reinterpret_cast<const void *>(skinny_gemv_kernel<1, 8>), reinterpret_cast<const void *>(skinny_gemv_kernel<2, 4>)};
const void *const kDeepGemvKernel = reinterpret_cast<const void *>(skinny_gemv_kernel<1, SkinnyGemv::kDeepLoads>);

// 0..3 for up to 8, 16, 32, 64 tokens.
int token_class(int num_tokens) { return num_tokens <= 8 ? 0 : num_tokens <= 16 ? 1 : num_tokens <= 32 ? 2 : 3; }

pagoda_status check(const Params &p) {
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || p.gated == 1);
  const bool counts_ok = p.num_tokens >= 1 && p.n > 0 && p.k > 0 && p.ld_out >= skinny_out_cols(p) && !(p.gated && p.n % 2);
  if (!types_ok || !counts_ok || !p.out || !p.x || !p.w) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w)) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p.offsets && p.kernel != PAGODA_SKINNY_SM90) return PAGODA_UNSUPPORTED;
  return (p.offsets || p.num_tokens <= kMaxSkinnyTokens) && p.k % 8 == 0 ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

pagoda_status launch_ring(Params p, cudaStream_t stream) {
  const bool ok = p.split_k >= 1 && p.split_k <= kMaxSkinnySplit && p.num_stages >= 2 && p.num_stages <= kMaxSkinnyStages && p.max_ctas >= 1;
  if (!ok) return PAGODA_INVALID_ARGUMENT;
  const bool grouped = p.offsets;
  if (grouped && (p.split_k != 1 || p.num_groups < 1 || p.num_groups > kMaxGroups)) return PAGODA_INVALID_ARGUMENT;
  const RingKernel *found = grouped ? find_ring_kernel(kGroupedKernels, p.block_tokens, p.block_n) : find_ring_kernel(kRingKernels, p.num_tokens, p.block_n);
  if (!found) return PAGODA_UNSUPPORTED;
  const RingKernel &row = *found;
  if (!has_body(row.kernel)) return PAGODA_UNSUPPORTED;
  const int tile_cols = p.gated ? row.block_n / 2 : row.block_n;
  const int unit_rows = 8 * row.token_tiles;
  // At most: every group, but no more than there are rows, has one unit that is not full.
  const int num_units = grouped ? p.num_tokens / unit_rows + (p.num_tokens < p.num_groups ? p.num_tokens : p.num_groups) : 1;
  if (num_units > 65535) return PAGODA_UNSUPPORTED;
  const int num_tiles = ceil_div(skinny_out_cols(p), tile_cols) * num_units;
  CUtensorMap w_map, x_map;
  if (!encode(&w_map, p.w, static_cast<int64_t>(p.n) * (grouped ? p.num_groups : 1), p.k, tile_cols) || !encode(&x_map, p.x, p.num_tokens, p.k, 8 * row.token_tiles)) return PAGODA_UNSUPPORTED;
  const int num_ctas = p.split_k > 1 ? num_tiles * p.split_k : num_tiles < p.max_ctas ? num_tiles : p.max_ctas;
  void *args[] = {&p, &w_map, &x_map};
  return launch({row.kernel, num_ctas, row.num_threads, row.fixed_bytes + p.num_stages * row.stage_bytes, p.split_k}, args, p.programmatic, stream);
}

pagoda_status launch_gemv(Params p, cudaStream_t stream) {
  const int rows = p.block_n;
  if (p.num_tokens != 1 || (rows != 1 && rows != 2) || (p.gated && rows == 1) || p.max_ctas < 1) return PAGODA_UNSUPPORTED;
  const int num_groups = ceil_div(skinny_out_cols(p), p.gated ? rows / 2 : rows);
  const int num_ctas = ceil_div(num_groups, SkinnyGemv::kWarps);
  void *args[] = {&p};
  const void *kernel = rows == 1 && p.num_stages == SkinnyGemv::kDeepLoads ? kDeepGemvKernel : kGemvKernels[rows - 1];
  return launch({kernel, num_ctas < p.max_ctas ? num_ctas : p.max_ctas, SkinnyGemv::kThreads, p.k * 2, 1}, args, p.programmatic, stream);
}

pagoda_status launch_sm80(Params p, cudaStream_t stream) {
  if (p.num_tokens > 64) return PAGODA_UNSUPPORTED;
  const int num_ctas = ceil_div(skinny_out_cols(p), p.gated ? SkinnySm80::kRows / 2 : SkinnySm80::kRows);
  void *args[] = {&p};
  return launch({kSm80Kernels[token_class(p.num_tokens)], num_ctas, SkinnySm80::kThreads, 0, 1}, args, p.programmatic, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_skinny_gemm(const pagoda_skinny_gemm_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  const pagoda_status status = check(*params);
  if (status != PAGODA_OK) return status;
  switch (params->kernel) {
  case PAGODA_SKINNY_GEMV: return launch_gemv(*params, stream);
  case PAGODA_SKINNY_SM80: return launch_sm80(*params, stream);
  case PAGODA_SKINNY_SM90: return launch_ring(*params, stream);
  }
  return PAGODA_INVALID_ARGUMENT;
}
