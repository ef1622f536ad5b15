// pagoda_gated_activation: out[t, i] = act(gate[t, i]) * up[t, i], in f32.
//
// One thread a 16-byte vector of the output: it reads the same vector of gate and of up. Bound by memory: 6 bytes an element.
#include "common/activate.cuh"
#include "common/launch.cuh"
#include "common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;

template <pagoda_activation kAct> __global__ void gated_activation_kernel(const __grid_constant__ pagoda_gated_activation_params p) {
  using V = Vec<bf16>;
  const int vecs_per_row = p.cols / V::kSize;
  wait_then_allow_next();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<int64_t>(p.num_tokens) * vecs_per_row) return;
  const int64_t row = i / vecs_per_row;
  const int64_t vec_idx = i % vecs_per_row;
  const bf16 *gate_gmem = static_cast<const bf16 *>(p.gate_up) + row * 2 * p.cols;
  const V gate = V::load(gate_gmem, vec_idx);
  const V up = V::load(gate_gmem + p.cols, vec_idx);
  V out;
#pragma unroll
  for (int e = 0; e < V::kSize; ++e) out.elems[e] = from_f32<bf16>(activate<kAct>(to_f32(gate.elems[e])) * to_f32(up.elems[e]));
  out.store(static_cast<bf16 *>(p.out) + row * p.cols, vec_idx);
}

using Kernel = void (*)(const pagoda_gated_activation_params);
const Kernel kKernels[] = {gated_activation_kernel<PAGODA_SILU>, gated_activation_kernel<PAGODA_GELU_TANH>, gated_activation_kernel<PAGODA_GELU>};

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_gated_activation(const pagoda_gated_activation_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->gate_up || p->num_tokens < 0 || p->cols <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->activation < PAGODA_SILU || p->activation > PAGODA_GELU) return PAGODA_INVALID_ARGUMENT;
  if (p->cols % Vec<bf16>::kSize != 0) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  const int64_t num_vecs = static_cast<int64_t>(p->num_tokens) * (p->cols / Vec<bf16>::kSize);
  return launch(kKernels[p->activation], {static_cast<unsigned>((num_vecs + kThreads - 1) / kThreads), kThreads}, *p, stream);
}
