// Versions and names: what `pagoda doctor` and error messages need of the CUDA runtime.
#include "common/status.cuh"

extern "C" pagoda_status pagoda_get_runtime_info(pagoda_runtime_info *info) {
  if (!info) return PAGODA_INVALID_ARGUMENT;
  *info = pagoda_runtime_info{};
  const cudaError_t runtime = cudaRuntimeGetVersion(&info->runtime_version);
  if (runtime != cudaSuccess) return pagoda::to_status(runtime);
  // Answers success and 0 where there is no driver; any other failure means the same to the caller.
  if (cudaDriverGetVersion(&info->driver_version) != cudaSuccess) info->driver_version = 0;
  return PAGODA_OK;
}

extern "C" const char *pagoda_status_string(pagoda_status status) {
  switch (status) {
  case PAGODA_OK: return "ok";
  case PAGODA_INVALID_ARGUMENT: return "invalid argument";
  case PAGODA_UNSUPPORTED: return "unsupported shape or type";
  default: break;
  }
  if (status < PAGODA_CUDA_ERROR) return "unknown status";
  const char *text = cudaGetErrorString(static_cast<cudaError_t>(status - PAGODA_CUDA_ERROR));
  return text ? text : "unknown CUDA error";
}
