// pagoda_rms_norm: checks, dispatch and the instantiation table of norm.cuh.
#include "norm.cuh"

namespace pagoda {
namespace {

using Kernel = void (*)(const pagoda_rms_norm_params);

// A decoder has three norms, over a residual stream of f32 or bf16; the shape is a run-time argument: 6 rows.
constexpr int kNumKinds = 3;
const Kernel kF32[kNumKinds] = {rms_norm_kernel<float, PAGODA_NORM>, rms_norm_kernel<float, PAGODA_ADD_NORM>, rms_norm_kernel<float, PAGODA_NORM_ADD>};
const Kernel kBf16[kNumKinds] = {rms_norm_kernel<bf16, PAGODA_NORM>, rms_norm_kernel<bf16, PAGODA_ADD_NORM>, rms_norm_kernel<bf16, PAGODA_NORM_ADD>};

pagoda_status check(const pagoda_rms_norm_params &p) {
  const bool counts_ok = p.num_tokens >= 0 && p.num_tokens <= INT32_MAX && p.hidden > 0;
  const bool threads_ok = p.num_threads >= kWarpSize && p.num_threads <= kMaxWarps * kWarpSize && p.num_threads % kWarpSize == 0;
  if (p.kind < 0 || p.kind >= kNumKinds || !counts_ok || !threads_ok) return PAGODA_INVALID_ARGUMENT;
  const bool needs_out = p.kind != PAGODA_NORM_ADD;
  const bool needs_residual = p.kind != PAGODA_NORM;
  if (!p.x || !p.weight || (needs_out && !p.out) || (needs_residual && !p.residual)) return PAGODA_INVALID_ARGUMENT;
  const bool shape_ok = p.hidden % kOctet == 0 && p.hidden / kOctet <= kMaxVecs * p.num_threads;
  return shape_ok && (p.stream_dtype == PAGODA_F32 || p.stream_dtype == PAGODA_BF16) ? PAGODA_OK : PAGODA_UNSUPPORTED;
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_rms_norm(const pagoda_rms_norm_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params) return PAGODA_INVALID_ARGUMENT;
  const pagoda_status status = check(*params);
  if (status != PAGODA_OK || params->num_tokens == 0) return status;
  return launch((params->stream_dtype == PAGODA_F32 ? kF32 : kBf16)[params->kind], {static_cast<unsigned>(params->num_tokens), static_cast<unsigned>(params->num_threads)}, *params, stream);
}
