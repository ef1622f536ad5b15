// Host side of the products: launches with clusters and early starts, and tensor maps of bf16 matrices. Nothing here is in the way of a capture.
#pragma once
#include "../common/launch.cuh"
#include "../common/tensor_map.cuh"
#include "ring.cuh"

namespace pagoda {

struct Launch {
  const void *kernel;
  int num_ctas, num_threads, smem_bytes, cluster;
};

// Whether the current GPU has code for `kernel`, whose barriers lie in static shared memory: built for other architectures alone, its body
// is empty there, and a launch would succeed and write nothing. Asked once a kernel.
inline bool has_body(const void *kernel) {
  static std::mutex mutex;
  static std::map<const void *, bool> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(kernel);
  if (found != known.end()) return found->second;
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return true; // the launch will say what is wrong
  return known[kernel] = attributes.sharedSizeBytes > 0;
}

inline pagoda_status launch(const Launch &how, void **args, bool programmatic, cudaStream_t stream) {
  const cudaError_t granted = grant_smem(how.kernel, how.smem_bytes);
  if (granted != cudaSuccess) {
    (void)cudaGetLastError();
    return to_status(granted);
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(how.num_ctas);
  config.blockDim = dim3(how.num_threads);
  config.dynamicSmemBytes = how.smem_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (programmatic && can_start_early(how.kernel)) {
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

// Boxes of [rows, 128 bytes] of a row-major matrix [num_rows, k] whose elements have `element_bytes`.
inline bool encode_boxes(CUtensorMap *map, CUtensorMapDataType type, int element_bytes, const void *matrix, int64_t num_rows, int k, int rows) {
  const EncodeTiled encoder = tensor_map_encoder();
  if (!encoder) return false;
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(num_rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(k) * element_bytes};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(2 * kBoxK / element_bytes), static_cast<cuuint32_t>(rows)};
  const cuuint32_t steps[2] = {1, 1};
  return encoder(map, type, 2, const_cast<void *>(matrix), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Boxes of [rows, 64] of a row-major [num_rows, k] bf16 matrix.
inline bool encode(CUtensorMap *map, const void *matrix, int64_t num_rows, int k, int rows) {
  return encode_boxes(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, matrix, num_rows, k, rows);
}

// Boxes of [rows, 128] of a row-major [num_rows, k] matrix of bytes.
inline bool encode_bytes(CUtensorMap *map, const void *matrix, int64_t num_rows, int k, int rows) {
  return encode_boxes(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, matrix, num_rows, k, rows);
}

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

} // namespace pagoda
