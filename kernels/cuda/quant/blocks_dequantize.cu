// pagoda_blocks_dequantize: rows of GGUF's blocks as bf16, for products of many tokens, or as rows of an embedding.
//
// Two neighbouring lanes share a unit (block_formats.cuh) and store half of each of its runs: with bf16 the two fill whole sectors of 32 bytes.
// Bound by memory: 0.56 to 1.06 bytes read and 2 written a weight.
#include "../common/launch.cuh"
#include "../common/vec.cuh"
#include "block_formats.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;
using Params = pagoda_blocks_dequantize_params;

template <typename Block, typename Out> __global__ void __launch_bounds__(kThreads) blocks_dequantize_kernel(const __grid_constant__ Params p) {
  using Row = BlockRow<Block>;
  wait_then_allow_next();
  const uint32_t halves = p.k / kRunValues; // of a row
  const uint32_t idx = blockIdx.x * kThreads + threadIdx.x;
  const int out_row = static_cast<int>(idx / halves), unit = static_cast<int>(idx % halves / 2), half = idx % 2;
  if (out_row >= p.num_rows) return;
  const int row = p.index ? __ldcg(p.index + out_row) : p.first_row + out_row;
  const bool inside = row >= 0 && row < p.n;
  Block block;
  if (inside) Row(p.rows, row, p.k).load(block, unit);
  Out *out_gmem = static_cast<Out *>(p.out) + static_cast<int64_t>(out_row) * p.k;
#pragma unroll
  for (int run = 0; run < 2; ++run) {
    float w[kOctetValues] = {};
    if (inside) block.octet(w, run, half);
#pragma unroll
    for (int i = 0; i < kOctetValues; ++i) w[i] *= p.factor;
    store_octet(out_gmem, Row::first(unit, run) / kOctetValues + half, w);
  }
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_blocks_dequantize(const pagoda_blocks_dequantize_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->rows || p->num_rows < 0 || p->n < 1 || p->k < 1) return PAGODA_INVALID_ARGUMENT;
  if ((reinterpret_cast<uintptr_t>(p->out) | reinterpret_cast<uintptr_t>(p->rows)) % 16) return PAGODA_INVALID_ARGUMENT;
  const bool rows_ok = p->index ? p->first_row == 0 : p->first_row >= 0 && static_cast<int64_t>(p->first_row) + p->num_rows <= p->n;
  if (!rows_ok) return PAGODA_INVALID_ARGUMENT;
  const int64_t num_ctas = (static_cast<int64_t>(p->num_rows) * (p->k / kRunValues) + kThreads - 1) / kThreads;
  if (num_ctas > 0xffffffff / kThreads) return PAGODA_UNSUPPORTED;
  return with_block(p->format, [&](auto block) {
    using Block = decltype(block);
    if (p->k % Block::kValues) return PAGODA_INVALID_ARGUMENT;
    if (num_ctas == 0) return PAGODA_OK;
    const LaunchShape shape{static_cast<unsigned>(num_ctas), kThreads};
    switch (p->out_dtype) {
    case PAGODA_F32: return launch(blocks_dequantize_kernel<Block, float>, shape, *p, stream);
    case PAGODA_BF16: return launch(blocks_dequantize_kernel<Block, bf16>, shape, *p, stream);
    default: return PAGODA_UNSUPPORTED;
    }
  });
}
