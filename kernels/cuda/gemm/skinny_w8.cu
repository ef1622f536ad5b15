// pagoda_skinny_w8: checks, dispatch and the instantiation table of the skinny kernel for weights of 8 bits.
#include "launch.cuh"
#include "skinny_w8_sm90.cuh"

namespace pagoda {
namespace {

using Params = pagoda_skinny_w8_params;

// One tile of the ring kernel.
struct RingKernel {
  int token_tiles, block_n, code, blocks, num_threads, stage_bytes, fixed_bytes;
  const void *kernel;
};

template <int kTokenTiles, int kBoxes, int kWarpgroups, pagoda_w8_code kCode, bool kBlocks> constexpr RingKernel ring_kernel() {
  using Tile = SkinnyW8Sm90<kTokenTiles, kBoxes, kWarpgroups, kCode, kBlocks>;
  return {kTokenTiles,      Tile::kBlockN, kCode, kBlocks, Tile::kThreads, Tile::kStageBytes, Tile::smem_bytes(0),
          reinterpret_cast<const void *>(skinny_w8_sm90_kernel<Tile>)};
}

// Tokens in tiles of 8 doubled up to 64.
#define PAGODA_RING_KERNELS(code, blocks) ring_kernel<1, 2, 1, code, blocks>(), ring_kernel<2, 2, 1, code, blocks>(), ring_kernel<4, 1, 1, code, blocks>(), ring_kernel<8, 1, 1, code, blocks>()
const RingKernel kRingKernels[] = {PAGODA_RING_KERNELS(PAGODA_W8_E4M3, false), PAGODA_RING_KERNELS(PAGODA_W8_E4M3, true), PAGODA_RING_KERNELS(PAGODA_W8_INT8, false)};
#undef PAGODA_RING_KERNELS

const RingKernel *find_ring_kernel(const Params &p) {
  for (const RingKernel &row : kRingKernels) {
    if (row.block_n == p.gemm.block_n && p.gemm.num_tokens <= 8 * row.token_tiles && row.code == p.code && row.blocks == p.has_blocks) return &row;
  }
  return nullptr;
}

pagoda_status check(const Params &params) {
  const pagoda_skinny_gemm_params &p = params.gemm;
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || p.gated == 1);
  const bool codes_ok = (params.code == PAGODA_W8_E4M3 || params.code == PAGODA_W8_INT8) && (params.has_blocks == 0 || params.has_blocks == 1);
  const bool counts_ok = p.num_tokens >= 1 && p.n > 0 && p.k > 0 && p.ld_out >= skinny_out_cols(p) && !(p.gated && p.n % 2) && p.max_ctas >= 1;
  if (!types_ok || !codes_ok || !counts_ok || !p.out || !p.x || !p.w || !params.scales || p.offsets) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w)) % 16) return PAGODA_INVALID_ARGUMENT;
  return p.num_tokens <= 64 && p.k % 16 == 0 && p.kernel == PAGODA_SKINNY_SM90 ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

pagoda_status launch_ring(Params params, cudaStream_t stream) {
  const pagoda_skinny_gemm_params &p = params.gemm;
  if (p.split_k < 1 || p.split_k > kMaxSkinnySplit || p.num_stages < 2 || p.num_stages > kMaxSkinnyStages) return PAGODA_INVALID_ARGUMENT;
  const RingKernel *row = find_ring_kernel(params);
  if (!row || !has_body(row->kernel)) return PAGODA_UNSUPPORTED;
  const int tile_cols = p.gated ? row->block_n / 2 : row->block_n;
  const int num_tiles = ceil_div(skinny_out_cols(p), tile_cols);
  CUtensorMap w_map, x_map;
  if (!encode_bytes(&w_map, p.w, p.n, p.k, tile_cols) || !encode(&x_map, p.x, p.num_tokens, p.k, 8 * row->token_tiles)) return PAGODA_UNSUPPORTED;
  const int num_ctas = p.split_k > 1 ? num_tiles * p.split_k : num_tiles < p.max_ctas ? num_tiles : p.max_ctas;
  void *args[] = {&params, &w_map, &x_map};
  return launch({row->kernel, num_ctas, row->num_threads, row->fixed_bytes + p.num_stages * row->stage_bytes, p.split_k}, args, p.programmatic, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_skinny_w8(const pagoda_skinny_w8_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  const pagoda_status status = check(*params);
  if (status != PAGODA_OK) return status;
  return launch_ring(*params, stream);
}
