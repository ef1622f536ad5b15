// Tensor maps, made on the host for each launch: the driver's encoder takes well under a microsecond.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

namespace pagoda {

using EncodeTiled = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's encoder, looked up once: the binary links no libcuda. nullptr where the driver has none.
inline EncodeTiled tensor_map_encoder() {
  static const EncodeTiled encoder = [] {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(function) : nullptr;
  }();
  return encoder;
}

// Boxes of box_rows rows of [num_matrices] row-major bf16 matrices [rows, cols], in the swizzle of 128 bytes. A box arrives as groups of 8
// rows, in each the panels of 64 columns, each 8 rows of 128 bytes: [box_rows / 8][cols / 64][8][64]. Both counts of rows are multiples of 8.
inline bool encode_row_groups(CUtensorMap *map, const void *matrices, int64_t num_matrices, int rows, int cols, int box_rows) {
  const EncodeTiled encoder = tensor_map_encoder();
  if (!encoder) return false;
  const cuuint64_t num_cols = cols, row_bytes = num_cols * 2;
  const cuuint64_t dims[5] = {64, 8, num_cols / 64, static_cast<cuuint64_t>(rows) / 8, static_cast<cuuint64_t>(num_matrices)};
  const cuuint64_t strides[4] = {row_bytes, 128, 8 * row_bytes, rows * row_bytes};
  const cuuint32_t box[5] = {64, 8, static_cast<cuuint32_t>(cols) / 64, static_cast<cuuint32_t>(box_rows) / 8, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  return encoder(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, const_cast<void *>(matrices), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

} // namespace pagoda
