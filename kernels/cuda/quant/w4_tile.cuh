// Tiles of 4-bit weights as pagoda_w4.h draws them: where a lane's codes, scales and zeros are.
#pragma once
#include "../common/types.cuh"
#include "../ptx/memory.cuh"
#include "pagoda.h"

namespace pagoda {

struct W4Tile {
  static constexpr int kRows = 16;
  static constexpr int kCols = 64;
  static constexpr int kCodeBytes = kRows * kCols / 2;
  static constexpr int kLaneCols = 16; // of each of its two rows: four for each of the steps
  static constexpr int kStepCols = 16; // of one mma: word j of a lane holds columns of step j

  int num_cols, scales, has_zeros;

  __host__ __device__ explicit W4Tile(const pagoda_w4_matrix &m) : num_cols(m.k / kCols), scales(m.scales_per_tile), has_zeros(m.has_zeros) {}

  // Bytes of a plane of scales, or of zeros.
  __host__ __device__ int plane_bytes() const { return scales * kRows * 2; }
  __host__ __device__ int bytes() const { return kCodeBytes + plane_bytes() * (1 + has_zeros); }
  __device__ __forceinline__ int64_t offset(int row_tile, int col_tile) const { return (static_cast<int64_t>(row_tile) * num_cols + col_tile) * bytes(); }

  // Place in a plane of group `group` of row `row`: rows g and g + 8 are neighbours.
  __host__ __device__ static int place(int group, int row) { return group * kRows + 2 * (row % 8) + row / 8; }
  // Scale of row `row` of the tile for the columns of step j.
  __device__ __forceinline__ int scale_offset(int row, int j) const { return kCodeBytes + 2 * place(j * scales / 4, row); }
  __device__ __forceinline__ int zero_offset(int row, int j) const { return scale_offset(row, j) + plane_bytes(); }
};

// Row of the matrix at row `row` of tile `row_tile`; n and beyond: none.
__host__ __device__ __forceinline__ int w4_matrix_row(const pagoda_w4_matrix &m, int row_tile, int row) {
  if (!m.interleaved) return row_tile * W4Tile::kRows + row;
  return row < 8 ? row_tile * 8 + row : m.n / 2 + row_tile * 8 + row - 8;
}

__host__ __device__ __forceinline__ int w4_row_tiles(const pagoda_w4_matrix &m) { return (m.n + W4Tile::kRows - 1) / W4Tile::kRows; }

// What pagoda_w4.h asks of a matrix.
inline bool w4_is_valid(const pagoda_w4_matrix &m) {
  const bool flags_ok = (m.has_zeros == 0 || m.has_zeros == 1) && (m.short_scales == 0 || m.short_scales == 1) && (m.interleaved == 0 || (m.interleaved == 1 && m.n % 16 == 0));
  const bool scales_ok = m.scales_per_tile == 1 || m.scales_per_tile == 2 || m.scales_per_tile == 4;
  return m.tiles && reinterpret_cast<uintptr_t>(m.tiles) % 16 == 0 && m.n > 0 && m.k > 0 && m.k % W4Tile::kCols == 0 && flags_ok && scales_ok;
}

__device__ __forceinline__ float w4_half_at(const uint8_t *gmem) { return __half2float(__ushort_as_half(ptx::load_2b(gmem))); }

// Scale and zero of one row for the columns of step j.
struct W4Factors {
  float scale, zero;

  __device__ __forceinline__ W4Factors(const pagoda_w4_matrix &m, const W4Tile &tile, const uint8_t *tile_gmem, int row, int j)
      : scale(w4_half_at(tile_gmem + tile.scale_offset(row, j)) * m.scale_factor), zero(tile.has_zeros ? w4_half_at(tile_gmem + tile.zero_offset(row, j)) : 0.0f) {}

  __device__ __forceinline__ float weight(float value) const { return (value - zero) * scale; }
};

} // namespace pagoda
