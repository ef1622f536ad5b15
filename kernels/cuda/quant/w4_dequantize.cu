// pagoda_w4_dequantize: tiles become rows of bf16, for products of many tokens; pagoda_w4_gather_rows: some rows, for the embedding.
//
// w = (book[code] - zero) * scale in f32, rounded once: the definition in engine/weights/quant/coded.rs but for the scale's own rounding.
// One warp a tile. A lane has eight pairs of columns, 8 columns apart, of two rows; the four lanes of a row swap them, so that each stores 16
// bytes, and a store of a warp fills whole sectors. The book lies in shared memory, a bank a value: no conflicts. Bound by memory: 0.53 bytes read and 2 written a weight.
#include "../common/launch.cuh"
#include "../common/vec.cuh"
#include "w4_tile.cuh"

namespace pagoda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

__device__ __forceinline__ void fill_book(float (&book_smem)[16], const pagoda_w4_matrix &m) {
  if (threadIdx.x < 16) book_smem[threadIdx.x] = m.book[threadIdx.x];
  __syncthreads();
}

// Columns 16 j + 2 t, the next, and those 8 further, of a lane's first row (half 0) or its second: two bytes of word j.
__device__ __forceinline__ void decode4(float (&v)[4], uint32_t word, int half, const W4Factors &factors, const float (&book_smem)[16]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = factors.weight(book_smem[word >> (8 * half + 16 * (e / 2) + 4 * (e % 2)) & 15]);
}

// Word i of lane t becomes word t of lane i, of four neighbours.
__device__ __forceinline__ void transpose_words(uint32_t (&v)[4], int t) {
  const bool odd = t & 1, late = t & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? v[i] : v[i + 1], 1);
    if (odd) v[i] = got;
    else v[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, late ? v[i] : v[i + 2], 2);
    if (late) v[i] = got;
    else v[i + 2] = got;
  }
}

// 16 columns of one row as bf16: pair i is columns 8 i + 2 t and the next.
struct LaneRow {
  uint32_t pairs[2][4];

  __device__ __forceinline__ LaneRow(const pagoda_w4_matrix &m, const W4Tile &tile, const uint8_t *tile_gmem, uint4 codes, int row, const float (&book_smem)[16]) {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    W4Factors factors(m, tile, tile_gmem, row, 0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j > 0 && j * tile.scales % 4 == 0) factors = W4Factors(m, tile, tile_gmem, row, j);
      float v[4];
      decode4(v, words[j], row / 8, factors, book_smem);
      pairs[j / 2][j % 2 * 2] = pack_bf16(v[0], v[1]);
      pairs[j / 2][j % 2 * 2 + 1] = pack_bf16(v[2], v[3]);
    }
  }

  // All lanes call it.
  __device__ __forceinline__ void store(bf16 *row_gmem, int t, bool inside) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      transpose_words(pairs[h], t);
      if (inside) ptx::store_16b(row_gmem + 32 * h + 8 * t, make_uint4(pairs[h][0], pairs[h][1], pairs[h][2], pairs[h][3]));
    }
  }

  __device__ __forceinline__ void scatter(bf16 *row_gmem, const int32_t *order, int t) const {
#pragma unroll
    for (int e = 0; e < W4Tile::kLaneCols; ++e) row_gmem[order[e / 2 * 8 + 2 * t + e % 2]] = __ushort_as_bfloat16(static_cast<uint16_t>(pairs[e / 8][e / 2 % 4] >> (16 * (e % 2))));
  }
};

__global__ void __launch_bounds__(kThreads) w4_dequantize_kernel(const __grid_constant__ pagoda_w4_dequantize_params p) {
  __shared__ float book_smem[16];
  const pagoda_w4_matrix &m = p.matrix;
  const W4Tile tile(m);
  fill_book(book_smem, m);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t idx = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int row_tile = static_cast<int>(idx / tile.num_cols), col_tile = static_cast<int>(idx % tile.num_cols);
  // Not before the wait: tiles may have been packed just now.
  wait_then_allow_next();
  if (row_tile * W4Tile::kRows >= p.num_rows) return;
  const uint8_t *tile_gmem = static_cast<const uint8_t *>(m.tiles) + tile.offset(p.first_tile + row_tile, col_tile);
  const uint4 codes = ptx::load_16b(tile_gmem + 16 * lane);
  LaneRow rows[2] = {{m, tile, tile_gmem, codes, g, book_smem}, {m, tile, tile_gmem, codes, g + 8, book_smem}};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = m.interleaved ? half * (p.num_rows / 2) + row_tile * 8 + g : row_tile * W4Tile::kRows + 8 * half + g;
    bf16 *row_gmem = static_cast<bf16 *>(p.out) + static_cast<int64_t>(row) * m.k;
    const int col = col_tile * W4Tile::kCols;
    if (!p.order) rows[half].store(row_gmem + col, t, row < p.num_rows);
    else if (row < p.num_rows) rows[half].scatter(row_gmem, p.order + col, t);
  }
}

// One CTA a row, a thread the 16 columns of a step at a time.
template <typename Out> __global__ void __launch_bounds__(kThreads) w4_gather_rows_kernel(const __grid_constant__ pagoda_w4_gather_rows_params p) {
  __shared__ float book_smem[16];
  const pagoda_w4_matrix &m = p.matrix;
  const W4Tile tile(m);
  fill_book(book_smem, m);
  wait_then_allow_next();
  const int index = __ldcg(p.index + blockIdx.x);
  const bool inside = index >= 0 && index < m.n;
  const int row_tile = inside ? index / W4Tile::kRows : 0, row = inside ? index % W4Tile::kRows : 0;
  Out *out_gmem = static_cast<Out *>(p.out) + static_cast<int64_t>(blockIdx.x) * m.k;
  for (int i = threadIdx.x; i < m.k / W4Tile::kStepCols; i += kThreads) {
    const int j = i % 4;
    const uint8_t *tile_gmem = static_cast<const uint8_t *>(m.tiles) + tile.offset(row_tile, i / 4);
    const W4Factors factors(m, tile, tile_gmem, row, j);
    float v[2][kOctet];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      float four[4];
      decode4(four, ptx::load_4b(tile_gmem + 16 * (4 * (row % 8) + t) + 4 * j), row / 8, factors, book_smem);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e / 2][2 * t + e % 2] = inside ? four[e] * p.scale : 0.0f;
    }
    store_octet(out_gmem, 2 * i, v[0]);
    store_octet(out_gmem, 2 * i + 1, v[1]);
  }
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_w4_dequantize(const pagoda_w4_dequantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !w4_is_valid(p->matrix) || !p->out || reinterpret_cast<uintptr_t>(p->out) % 16 || p->first_tile < 0 || p->num_rows < 0) return PAGODA_INVALID_ARGUMENT;
  const int64_t end = static_cast<int64_t>(p->first_tile) * W4Tile::kRows + p->num_rows;
  if (end > p->matrix.n || (p->num_rows % W4Tile::kRows && end != p->matrix.n)) return PAGODA_INVALID_ARGUMENT;
  const int64_t num_tiles = static_cast<int64_t>((p->num_rows + W4Tile::kRows - 1) / W4Tile::kRows) * (p->matrix.k / W4Tile::kCols);
  const int64_t num_ctas = (num_tiles + kWarps - 1) / kWarps;
  if (num_ctas == 0) return PAGODA_OK;
  if (num_ctas > 0x7fffffff) return PAGODA_UNSUPPORTED;
  return launch(w4_dequantize_kernel, {static_cast<unsigned>(num_ctas), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_w4_gather_rows(const pagoda_w4_gather_rows_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !w4_is_valid(p->matrix) || p->matrix.interleaved || !p->out || !p->index || p->num_rows < 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_rows == 0) return PAGODA_OK;
  const LaunchShape shape{static_cast<unsigned>(p->num_rows), kThreads};
  switch (p->out_dtype) {
  case PAGODA_F32: return launch(w4_gather_rows_kernel<float>, shape, *p, stream);
  case PAGODA_BF16: return launch(w4_gather_rows_kernel<bf16>, shape, *p, stream);
  default: return PAGODA_UNSUPPORTED;
  }
}
