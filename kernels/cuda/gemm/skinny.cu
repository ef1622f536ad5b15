// pagoda_skinny_gemm: checks, dispatch and the instantiation tables of the three skinny kernels.
#include "../common/status.cuh"
#include "skinny_gemv.cuh"
#include "skinny_sm80.cuh"
#include "skinny_sm90.cuh"

namespace pagoda {
namespace {

using Params = pagoda_skinny_gemm_params;

struct Launch {
  const void *kernel;
  int num_ctas, num_threads, smem_bytes, cluster;
};

// One tile of the ring kernel.
struct RingKernel {
  int token_tiles, num_threads, stage_bytes, fixed_bytes;
  const void *kernel;
};

template <int kTokenTiles, int kBoxes> constexpr RingKernel ring_kernel() {
  using Tile = SkinnySm90<kTokenTiles, kBoxes>;
  return {kTokenTiles, Tile::kThreads, Tile::kStageBytes, Tile::smem_bytes(0), reinterpret_cast<const void *>(skinny_gemm_sm90_kernel<Tile>)};
}

// Tokens in tiles of 8 doubled up to 64; stages of 12 to 20 KB.
const RingKernel kRingKernels[] = {ring_kernel<1, 2>(), ring_kernel<2, 2>(), ring_kernel<4, 1>(), ring_kernel<8, 1>()};

// Tokens in tiles of 8 doubled up to 64.
const void *const kSm80Kernels[] = {
    reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<1>), reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<2>),
    reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<4>), reinterpret_cast<const void *>(skinny_gemm_sm80_kernel<8>)};

// Rows a warp times loads a row: 8 loads under way in all.
const void *const kGemvKernels[] = {reinterpret_cast<const void *>(skinny_gemv_kernel<1, 8>), reinterpret_cast<const void *>(skinny_gemv_kernel<2, 4>)};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// 0..3 for up to 8, 16, 32, 64 tokens.
int token_class(int num_tokens) { return num_tokens <= 8 ? 0 : num_tokens <= 16 ? 1 : num_tokens <= 32 ? 2 : 3; }

pagoda_status check(const Params &p) {
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || p.gated == 1);
  const bool counts_ok = p.num_tokens >= 1 && p.n > 0 && p.k > 0 && p.ld_out >= skinny_out_cols(p) && !(p.gated && p.n % 2);
  if (!types_ok || !counts_ok || !p.out || !p.x || !p.w) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w)) % 16) return PAGODA_INVALID_ARGUMENT;
  return p.num_tokens <= kMaxSkinnyTokens && p.k % 8 == 0 ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

pagoda_status launch(const Launch &how, void **args, bool programmatic, cudaStream_t stream) {
  if (how.smem_bytes > 0) {
    const cudaError_t error = cudaFuncSetAttribute(how.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.smem_bytes);
    if (error != cudaSuccess) {
      (void)cudaGetLastError();
      return to_status(error);
    }
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(how.num_ctas);
  config.blockDim = dim3(how.num_threads);
  config.dynamicSmemBytes = how.smem_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (programmatic) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = how.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelExC(&config, how.kernel, args);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return to_status(error);
}

using EncodeTiled = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's encoder, looked up once: the binary links no libcuda.
EncodeTiled find_encoder() {
  void *function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(function) : nullptr;
}

// Boxes of [rows, 64] of a row-major [num_rows, k] bf16 matrix.
bool encode(CUtensorMap *map, const void *matrix, int num_rows, int k, int rows) {
  static const EncodeTiled encoder = find_encoder();
  if (!encoder) return false;
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(num_rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kBoxK), static_cast<cuuint32_t>(rows)};
  const cuuint32_t steps[2] = {1, 1};
  return encoder(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void *>(matrix), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

pagoda_status launch_ring(Params p, cudaStream_t stream) {
  const bool ok = p.block_n == kSkinnyRows && p.split_k >= 1 && p.split_k <= kMaxSkinnySplit && p.num_stages >= 2 && p.num_stages <= kMaxSkinnyStages && p.max_ctas >= 1;
  if (!ok) return PAGODA_INVALID_ARGUMENT;
  const RingKernel &row = kRingKernels[token_class(p.num_tokens)];
  const int tile_cols = p.gated ? kSkinnyRows / 2 : kSkinnyRows;
  const int num_tiles = ceil_div(skinny_out_cols(p), tile_cols);
  CUtensorMap w_map, x_map;
  if (!encode(&w_map, p.w, p.n, p.k, tile_cols) || !encode(&x_map, p.x, p.num_tokens, p.k, 8 * row.token_tiles)) return PAGODA_UNSUPPORTED;
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
  const void *kernel = kGemvKernels[rows - 1];
  return launch({kernel, num_ctas < p.max_ctas ? num_ctas : p.max_ctas, SkinnyGemv::kThreads, p.k * 2, 1}, args, p.programmatic, stream);
}

pagoda_status launch_sm80(Params p, cudaStream_t stream) {
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
