// From cudaError_t to pagoda_status.
#pragma once
#include "pagoda.h"
#include <cuda_runtime.h>

namespace pagoda {

inline pagoda_status to_status(cudaError_t error) {
  return error == cudaSuccess ? PAGODA_OK : static_cast<pagoda_status>(PAGODA_CUDA_ERROR + static_cast<int>(error));
}

// To be returned right after a launch: reports and clears the launch's own error, without synchronising.
inline pagoda_status launch_status() { return to_status(cudaGetLastError()); }

} // namespace pagoda
