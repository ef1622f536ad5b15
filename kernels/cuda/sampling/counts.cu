// pagoda_set_counts: a sampler slot begins a new life with the tokens it has already. One CTA.
#include "row.cuh"

namespace pagoda::sampling {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads) set_counts_kernel(const __grid_constant__ pagoda_set_counts_params p) {
  wait_then_allow_next();
  for (int i = threadIdx.x; i < p.count_stride / 4; i += kThreads) reinterpret_cast<uint2 *>(p.counts)[i] = make_uint2(0, 0);
  __syncthreads();
  for (int i = threadIdx.x; i < p.num_tokens; i += kThreads) p.counts[__ldcg(p.tokens + i)] = static_cast<uint16_t>(__ldcg(p.values + i));
}

} // namespace
} // namespace pagoda::sampling

extern "C" pagoda_status pagoda_set_counts(const pagoda_set_counts_params *p, pagoda_stream stream) {
  using namespace pagoda::sampling;
  if (!p || !p->counts || (p->num_tokens > 0 && (!p->tokens || !p->values)) || p->num_tokens < 0 || p->count_stride <= 0 || p->count_stride % 4 != 0)
    return PAGODA_INVALID_ARGUMENT;
  return pagoda::launch(set_counts_kernel, {1, kThreads}, *p, stream);
}
