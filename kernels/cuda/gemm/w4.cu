// pagoda_w4_gemm: checks, dispatch and the instantiation tables of the three products with 4-bit weights.
#include "launch.cuh"
#include "w4_columns_sm90.cuh"
#include "w4_rows_sm90.cuh"
#include "w4_sm80.cuh"

namespace pagoda {
namespace {

using Params = pagoda_w4_gemm_params;

// One instantiation. Shared memory: bytes for params whose plan is in range.
struct W4Kernel {
  int token_tiles;
  W4Scaling scaling;
  const void *kernel;
  int (*smem_bytes)(const Params &);
};

// Of matrices with so many scales a row in a tile.
struct W4ColumnsKernel {
  W4Decoding decoding;
  int scales, zeros;
  W4Kernel kernel;
};
template <W4Decoding kDecoding, int kScales, bool kZeros> constexpr W4ColumnsKernel columns_kernel() {
  using Kernel = W4Columns<kDecoding, kScales, kZeros>;
  return {kDecoding, kScales, kZeros, {1, Kernel::kScaling, reinterpret_cast<const void *>(w4_columns_sm90_kernel<Kernel>), w4_columns_smem_bytes<Kernel>}};
}
template <int kTiles, W4Scaling kScaling> constexpr W4Kernel rows_kernel() {
  using Kernel = W4Rows<kTiles, kScaling>;
  return {kTiles, kScaling, reinterpret_cast<const void *>(w4_rows_sm90_kernel<Kernel>), w4_rows_smem_bytes<Kernel>};
}
template <int kTiles, W4Scaling kScaling> constexpr W4Kernel sm80_kernel() {
  using Kernel = W4Sm80<kTiles, kScaling>;
  return {kTiles, kScaling, reinterpret_cast<const void *>(w4_sm80_kernel<Kernel>), [](const Params &) { return kPairTableBytes + Kernel::kSumBytes; }};
}

// Tokens in tiles of 8 doubled up to what the kernel holds, for each kind of scales.
// NF4, MXFP4 and NVFP4 through the table; whole numbers with groups of 64 or more and of 32 columns.
const W4ColumnsKernel kColumnsKernels[] = {columns_kernel<kPairTable, 1, false>(), columns_kernel<kPairTable, 2, false>(), columns_kernel<kPairTable, 4, false>(),
                                           columns_kernel<kWhole, 1, false>(),     columns_kernel<kWhole, 1, true>(),      columns_kernel<kWhole, 2, false>(),
                                           columns_kernel<kWhole, 2, true>()};
// Where scales are short, the kernel of such is tried first.
const W4Kernel kRowsKernels[] = {rows_kernel<1, kTileScales>(),      rows_kernel<2, kTileScales>(),      rows_kernel<4, kTileScales>(),      rows_kernel<8, kTileScales>(),
                                 rows_kernel<1, kTileScalesZeros>(), rows_kernel<2, kTileScalesZeros>(), rows_kernel<4, kTileScalesZeros>(), rows_kernel<8, kTileScalesZeros>(),
                                 rows_kernel<1, kStepShortScales>(), rows_kernel<2, kStepShortScales>(), rows_kernel<4, kStepShortScales>(), rows_kernel<8, kStepShortScales>(),
                                 rows_kernel<1, kStepScales>(),      rows_kernel<2, kStepScales>(),      rows_kernel<4, kStepScales>(),      rows_kernel<8, kStepScales>(),
                                 rows_kernel<1, kStepScalesZeros>(), rows_kernel<2, kStepScalesZeros>(), rows_kernel<4, kStepScalesZeros>(), rows_kernel<8, kStepScalesZeros>()};
const W4Kernel kSm80Kernels[] = {sm80_kernel<1, kTileScales>(),      sm80_kernel<2, kTileScales>(),      sm80_kernel<4, kTileScales>(),      sm80_kernel<8, kTileScales>(),
                                 sm80_kernel<1, kTileScalesZeros>(), sm80_kernel<2, kTileScalesZeros>(), sm80_kernel<4, kTileScalesZeros>(), sm80_kernel<8, kTileScalesZeros>(),
                                 sm80_kernel<1, kStepScales>(),      sm80_kernel<2, kStepScales>(),      sm80_kernel<4, kStepScales>(),      sm80_kernel<8, kStepScales>(),
                                 sm80_kernel<1, kStepScalesZeros>(), sm80_kernel<2, kStepScalesZeros>(), sm80_kernel<4, kStepScalesZeros>(), sm80_kernel<8, kStepScalesZeros>()};

// Whether kernels of such scales multiply the matrix.
bool takes(W4Scaling scaling, const pagoda_w4_matrix &w) {
  if (w.scales_per_tile == 1) return scaling == (w.has_zeros ? kTileScalesZeros : kTileScales);
  if (w.has_zeros) return scaling == kStepScalesZeros;
  return scaling == kStepScales || (scaling == kStepShortScales && w.short_scales);
}

template <int kCount> const W4Kernel *find_kernel(const W4Kernel (&kernels)[kCount], const Params &p) {
  for (const W4Kernel &row : kernels) {
    if (takes(row.scaling, p.w) && p.num_tokens <= 8 * row.token_tiles) return &row;
  }
  return nullptr;
}

// The book in the units of those tried that bf16 holds best: NF4 in the second has half the error (0.085 % rms), whole numbers none in the first.
W4Book bf16_book(const pagoda_w4_matrix &w) {
  constexpr float kUnits[] = {1.0f, 1.43675f};
  W4Book best = {};
  float least = -1.0f;
  for (const float unit : kUnits) {
    W4Book book = {{}, w.scale_factor / unit};
    float error = 0.0f;
    for (int i = 0; i < 16; ++i) {
      book.values[i] = w.book[i] * unit;
      const float off = book.values[i] != 0.0f ? __bfloat162float(__float2bfloat16(book.values[i])) / book.values[i] - 1.0f : 0.0f;
      error += off * off;
    }
    if (least < 0.0f || error < least) least = error, best = book;
  }
  return best;
}

pagoda_status check(const Params &p) {
  const bool types_ok = (p.out_dtype == PAGODA_F32 || p.out_dtype == PAGODA_BF16) && (p.gated == 0 || (p.gated == 1 && p.w.interleaved == 1));
  if (!w4_is_valid(p.w) || !types_ok || !p.out || !p.x || reinterpret_cast<uintptr_t>(p.x) % 16) return PAGODA_INVALID_ARGUMENT;
  if (p.num_tokens < 1 || p.ld_out < w4_out_cols(p)) return PAGODA_INVALID_ARGUMENT;
  return p.num_tokens <= kMaxW4Tokens ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

bool has_stages(const Params &p) { return p.num_stages >= 2 && p.num_stages <= kMaxW4Stages; }

// Where the rings do not fit, `launch` would fail for others too.
bool fits(const W4Kernel &found, const Params &p) { return found.smem_bytes(p) <= kMaxSmemBytes; }

// Whether the book is neighbouring whole numbers that bf16 holds beside 128.
bool is_whole(const pagoda_w4_matrix &w) {
  for (int i = 0; i < 16; ++i) {
    if (w.book[i] != w.book[0] + i) return false;
  }
  return w.book[0] == static_cast<int>(w.book[0]) && w.book[0] >= -16.0f && w.book[0] <= 0.0f;
}

const W4Kernel *find_columns_kernel(const Params &p) {
  const W4Decoding decoding = is_whole(p.w) ? kWhole : kPairTable;
  for (const W4ColumnsKernel &row : kColumnsKernels) {
    if (row.decoding == decoding && row.scales == p.w.scales_per_tile && row.zeros == p.w.has_zeros) return &row.kernel;
  }
  return nullptr;
}

pagoda_status launch_columns(Params p, cudaStream_t stream) {
  if (p.split_k < 1 || p.split_k > kMaxW4Split || p.max_ctas < p.split_k || p.split_k > p.w.k / W4Tile::kCols) return PAGODA_INVALID_ARGUMENT;
  if (p.num_warps < 1 || p.num_warps > kW4ColumnsWarps || W4Deal(p).row_warps > p.num_warps || (p.split_k > 1 && (!p.partials || !p.counters))) return PAGODA_INVALID_ARGUMENT;
  const W4Kernel *found = p.num_tokens <= 8 ? find_columns_kernel(p) : nullptr;
  if (!found || !has_body(found->kernel)) return PAGODA_UNSUPPORTED;
  W4Book book = bf16_book(p.w);
  void *args[] = {&p, &book};
  return launch({found->kernel, w4_columns_ctas(p), p.num_warps * kWarpSize, found->smem_bytes(p), 1}, args, p.programmatic, stream);
}

pagoda_status launch_rows(Params p, cudaStream_t stream) {
  if (!has_stages(p) || p.split_k < 1 || p.split_k > kMaxW4Split || p.max_ctas < p.split_k) return PAGODA_INVALID_ARGUMENT;
  if (p.split_k > p.w.k / W4Tile::kCols || p.num_warps < 4 || p.num_warps > kMaxW4RowsWarps || p.num_warps % 4) return PAGODA_INVALID_ARGUMENT;
  const W4Kernel *found = find_kernel(kRowsKernels, p);
  CUtensorMap x_map;
  if (!found || !fits(*found, p) || !has_body(found->kernel) || !encode(&x_map, p.x, p.num_tokens, p.w.k, 8 * found->token_tiles)) return PAGODA_UNSUPPORTED;
  const int num_blocks = ceil_div(w4_row_tiles(p.w), p.num_warps), num_clusters = p.max_ctas / p.split_k;
  W4Book book = bf16_book(p.w);
  void *args[] = {&p, &book, &x_map};
  return launch({found->kernel, (num_blocks < num_clusters ? num_blocks : num_clusters) * p.split_k, p.num_warps * kWarpSize, found->smem_bytes(p), p.split_k}, args, p.programmatic, stream);
}

pagoda_status launch_sm80(Params p, cudaStream_t stream) {
  const W4Kernel *found = find_kernel(kSm80Kernels, p);
  if (!found || p.max_ctas < 1) return PAGODA_INVALID_ARGUMENT;
  const int rows = w4_row_tiles(p.w);
  W4Book book = bf16_book(p.w);
  void *args[] = {&p, &book};
  return launch({found->kernel, rows < p.max_ctas ? rows : p.max_ctas, W4Sm80<1, kTileScales>::kThreads, found->smem_bytes(p), 1}, args, p.programmatic, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_w4_gemm(const pagoda_w4_gemm_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  const pagoda_status status = check(*params);
  if (status != PAGODA_OK) return status;
  switch (params->kernel) {
  case PAGODA_W4_SM80: return launch_sm80(*params, stream);
  case PAGODA_W4_COLUMNS: return launch_columns(*params, stream);
  case PAGODA_W4_ROWS: return launch_rows(*params, stream);
  }
  return PAGODA_INVALID_ARGUMENT;
}
