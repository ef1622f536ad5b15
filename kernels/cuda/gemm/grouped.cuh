// Products of row groups with a matrix of their own each (experts), sm_80 and later (mma.sync). With one group: a plain product.
//
// Grid (column tiles, row tiles of all groups); 4 warps in 2 x 2, each 32 rows x 32 columns. Rows of x are gathered through row_map.
// Which group a row tile belongs to is found from `offsets` on the device, so that the host need not know the groups' sizes:
//
//   tiles:  | g0 t0 | g0 t1 | g1 t0 | g3 t0 | ... surplus |        group g has ceil(rows / 64) tiles
//
// x and w pass through two shared-memory stages of 64 k. Bound by the tensor cores for many rows a group, by reading w for few.
#pragma once
#include "../common/reduce.cuh"
#include "../common/status.cuh"
#include "../common/types.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/mma.cuh"

namespace pagoda {

constexpr int kTileRows = 64;
constexpr int kTileCols = 64;
constexpr int kTileK = 64;
constexpr int kTileStride = kTileK + 8; // an odd number of 16-byte columns: no bank conflicts in ldmatrix
constexpr int kGemmThreads = 128;

struct GroupedSmem {
  bf16 x[2][kTileRows * kTileStride];
  bf16 w[2][kTileCols * kTileStride];
};
static_assert(sizeof(GroupedSmem) <= 48 * 1024, "static shared memory");

// Rows first .. end of out, of group `group`, for row tile blockIdx.y.
struct RowTile {
  int group, first, end;
};

__device__ __forceinline__ bool row_tile(const pagoda_grouped_gemm_params &p, RowTile &tile) {
  int remaining = blockIdx.y;
  for (int group = 0; group < p.num_groups; ++group) {
    const int first = p.offsets ? p.offsets[group] : 0;
    const int end = p.offsets ? p.offsets[group + 1] : p.num_rows;
    const int tiles = (end - first + kTileRows - 1) / kTileRows;
    if (remaining < tiles) {
      tile = {group, first + remaining * kTileRows, min(end, first + (remaining + 1) * kTileRows)};
      return true;
    }
    remaining -= tiles;
  }
  return false;
}

// Copies 64 k of the tile's rows of x and of w; rows and k outside become zeros. x_rows: source row of each row of the tile.
__device__ __forceinline__ void load_k_tile(const pagoda_grouped_gemm_params &p, const int *x_rows, const bf16 *w_gmem, int first_col, int first_k, bf16 *x_smem, bf16 *w_smem) {
  constexpr int kChunks = kTileK / 8;
#pragma unroll
  for (int i = 0; i < kTileRows * kChunks / kGemmThreads; ++i) {
    const int chunk = threadIdx.x + i * kGemmThreads;
    const int row = chunk / kChunks, col = chunk % kChunks * 8;
    const bool k_valid = first_k + col < p.k;
    const int k = k_valid ? first_k + col : 0;
    const int x_row = x_rows[row];
    const bool x_valid = k_valid && x_row >= 0;
    ptx::copy_16b_async(ptx::smem_address(x_smem + row * kTileStride + col), static_cast<const bf16 *>(p.x) + static_cast<int64_t>(x_valid ? x_row : 0) * p.k + k, x_valid);
    const bool w_valid = k_valid && first_col + row < p.n;
    ptx::copy_16b_async(ptx::smem_address(w_smem + row * kTileStride + col), w_gmem + static_cast<int64_t>(w_valid ? first_col + row : 0) * p.k + k, w_valid);
  }
}

// acc += the product of one stage; warp (wm, wn) has rows 32 wm .. and columns 32 wn ...
__device__ __forceinline__ void multiply_k_tile(float (&acc)[2][4][4], const bf16 *x_smem, const bf16 *w_smem, int wm, int wn, int lane) {
  const int matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
  for (int i = 0; i < kTileK / 16; ++i) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      ptx::load_matrix_x4(a[h], ptx::smem_address(x_smem + (wm * 32 + h * 16 + matrix_row + matrix % 2 * 8) * kTileStride + i * 16 + matrix / 2 * 8));
      ptx::load_matrix_x4(b[h], ptx::smem_address(w_smem + (wn * 32 + h * 16 + matrix_row + matrix / 2 * 8) * kTileStride + i * 16 + matrix % 2 * 8));
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) ptx::mma_bf16(acc[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
  }
}

__global__ void __launch_bounds__(kGemmThreads) grouped_gemm_kernel(const __grid_constant__ pagoda_grouped_gemm_params p) {
  __shared__ __align__(16) GroupedSmem smem;
  __shared__ int x_rows[kTileRows];
  RowTile tile;
  if (!row_tile(p, tile)) return;
  const int first_col = blockIdx.x * kTileCols;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int wm = warp / 2, wn = warp % 2;
  if (threadIdx.x < kTileRows) {
    const int row = tile.first + threadIdx.x;
    x_rows[threadIdx.x] = row >= tile.end ? -1 : (p.row_map ? p.row_map[row] / p.row_div : row);
  }
  __syncthreads();
  const bf16 *w_gmem = static_cast<const bf16 *>(p.w) + tile.group * p.w_stride;

  float acc[2][4][4] = {};
  load_k_tile(p, x_rows, w_gmem, first_col, 0, smem.x[0], smem.w[0]);
  ptx::commit_copies();
  for (int first_k = 0, stage = 0; first_k < p.k; first_k += kTileK, stage ^= 1) {
    if (first_k + kTileK < p.k) load_k_tile(p, x_rows, w_gmem, first_col, first_k + kTileK, smem.x[stage ^ 1], smem.w[stage ^ 1]);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncthreads();
    multiply_k_tile(acc, smem.x[stage], smem.w[stage], wm, wn, lane);
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = tile.first + wm * 32 + m * 16 + lane / 4 + e / 2 * 8;
        const int col = first_col + wn * 32 + n * 8 + lane % 4 * 2 + e % 2;
        if (row >= tile.end || col >= p.n) continue;
        const float value = p.bias ? acc[m][n][e] + p.bias[col] : acc[m][n][e];
        const int64_t offset = static_cast<int64_t>(row) * p.ld_out + col;
        if (p.out_dtype == PAGODA_F32)
          static_cast<float *>(p.out)[offset] = value;
        else
          static_cast<bf16 *>(p.out)[offset] = from_f32<bf16>(value);
      }
    }
  }
}

} // namespace pagoda
