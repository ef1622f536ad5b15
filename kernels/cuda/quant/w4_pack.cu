// pagoda_w4_pack: rows of 4-bit codes and a grid of scales become tiles. Once, when weights are loaded.
//
// One warp a tile: lane 4 g + t reads the 32 bytes of rows g and g + 8 (a sector each, the same for four lanes), picks bytes t, t + 4, .. of both
// and writes its 16 bytes, so that the warp writes one piece. Bound by memory: a byte and a bit for two weights.
#include "../common/launch.cuh"
#include "w4_tile.cuh"

namespace pagoda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

__device__ __forceinline__ uint32_t swap_nibbles(uint32_t v) { return (v & 0x0f0f0f0fu) << 4 | (v >> 4 & 0x0f0f0f0fu); }

// Bytes of a row in the tile, four columns further each word, in word order; none past the end of the matrix.
struct RowCodes {
  uint32_t words[8] = {};
  __device__ __forceinline__ RowCodes(const pagoda_w4_pack_params &p, int row, int col_tile) {
    if (row >= p.matrix.n) return;
    const uint8_t *codes_gmem = p.codes + static_cast<int64_t>(row) * (p.matrix.k / 2) + static_cast<int64_t>(col_tile) * (W4Tile::kCols / 2);
    const uint4 low = ptx::load_16b(codes_gmem), high = ptx::load_16b(codes_gmem + 16);
    const uint32_t all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = p.first_high ? swap_nibbles(all[i]) : all[i];
  }
};

__global__ void __launch_bounds__(kThreads) w4_pack_kernel(const __grid_constant__ pagoda_w4_pack_params p) {
  const pagoda_w4_matrix &m = p.matrix;
  const W4Tile tile(m);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  wait_then_allow_next();
  const int64_t idx = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (idx >= static_cast<int64_t>(w4_row_tiles(m)) * tile.num_cols) return;
  const int row_tile = static_cast<int>(idx / tile.num_cols), col_tile = static_cast<int>(idx % tile.num_cols);
  uint8_t *out_gmem = static_cast<uint8_t *>(m.tiles) + tile.offset(row_tile, col_tile);

  const RowCodes a(p, w4_matrix_row(m, row_tile, g), col_tile), b(p, w4_matrix_row(m, row_tile, g + 8), col_tile);
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // Columns 16 j + 2 t and the next of both rows, then those 8 further.
    const int of_both = t | (4 + t) << 4;
    words[j] = __byte_perm(__byte_perm(a.words[2 * j], b.words[2 * j], of_both), __byte_perm(a.words[2 * j + 1], b.words[2 * j + 1], of_both), 0x5410);
  }
  ptx::store_16b(out_gmem + 16 * lane, make_uint4(words[0], words[1], words[2], words[3]));

  const int groups = (m.k + p.group - 1) / p.group;
  const float inverse = 1.0f / m.scale_factor;
  for (int i = lane; i < tile.scales * W4Tile::kRows; i += 32) {
    const int tile_row = i % W4Tile::kRows, tile_group = i / W4Tile::kRows;
    const int row = w4_matrix_row(m, row_tile, tile_row);
    const int col = col_tile * W4Tile::kCols + tile_group * (W4Tile::kCols / tile.scales);
    const int place = W4Tile::place(tile_group, tile_row);
    const int64_t at = static_cast<int64_t>(row) * groups + col / p.group;
    const bool inside = row < m.n;
    __half *scales_gmem = reinterpret_cast<__half *>(out_gmem + W4Tile::kCodeBytes);
    scales_gmem[place] = __float2half_rn(inside ? __ldcg(p.scales + at) * inverse : 0.0f);
    if (tile.has_zeros) {
      const int zero = inside ? __ldcg(p.zeros + at) + p.zero_plus : 0;
      scales_gmem[tile.scales * W4Tile::kRows + place] = __int2half_rn(zero);
    }
  }
}

bool is_group(const pagoda_w4_pack_params &p) {
  const int scales = p.matrix.scales_per_tile;
  if (p.group == 16 || p.group == 32) return scales == W4Tile::kCols / p.group || (p.group >= p.matrix.k && scales == 1);
  return scales == 1 && p.group > 0 && (p.group % W4Tile::kCols == 0 || p.group >= p.matrix.k);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_w4_pack(const pagoda_w4_pack_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !w4_is_valid(p->matrix) || !p->codes || !p->scales || !is_group(*p)) return PAGODA_INVALID_ARGUMENT;
  if (reinterpret_cast<uintptr_t>(p->codes) % 16 || (p->matrix.has_zeros && !p->zeros) || !(p->matrix.scale_factor > 0.0f)) return PAGODA_INVALID_ARGUMENT;
  const int64_t num_tiles = static_cast<int64_t>(w4_row_tiles(p->matrix)) * (p->matrix.k / W4Tile::kCols);
  const int64_t num_ctas = (num_tiles + kWarps - 1) / kWarps;
  if (num_ctas > 0x7fffffff) return PAGODA_UNSUPPORTED;
  return launch(w4_pack_kernel, {static_cast<unsigned>(num_ctas), kThreads}, *p, stream);
}
