// pagoda_blocks_dequantize: rows of GGUF's blocks as bf16, for products of many tokens, or as rows of an embedding.
//
// Four neighbouring threads have a step of a row, as in a product, and store four values at a time: with bf16 the four fill whole sectors of 32 bytes.
// Bound by memory: 0.56 to 1.06 bytes read and 2 written a weight.
#include "../common/launch.cuh"
#include "block_formats.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;
using Params = pagoda_blocks_dequantize_params;

// Four neighbours, of which the first is aligned.
__device__ __forceinline__ void store_quad(float *out_gmem, const float (&w)[kQuadCols]) { *reinterpret_cast<float4 *>(out_gmem) = make_float4(w[0], w[1], w[2], w[3]); }
__device__ __forceinline__ void store_quad(bf16 *out_gmem, const float (&w)[kQuadCols]) {
  *reinterpret_cast<uint2 *>(out_gmem) = make_uint2(pack_bf16(w[0], w[1]), pack_bf16(w[2], w[3]));
}

template <typename Block, typename Out> __global__ void __launch_bounds__(kThreads) blocks_dequantize_kernel(const __grid_constant__ Params p) {
  using Row = BlockRow<Block>;
  wait_then_allow_next();
  const uint32_t num_steps = Row::num_steps(p.k);
  const uint32_t idx = (blockIdx.x * kThreads + threadIdx.x) / kStepLanes;
  const int out_row = static_cast<int>(idx / num_steps), step = static_cast<int>(idx % num_steps), t = threadIdx.x % kStepLanes;
  const bool exists = out_row < p.num_rows;
  const int row = !exists ? 0 : p.index ? __ldcg(p.index + out_row) : p.first_row + out_row;
  const bool inside = row >= 0 && row < p.n;
  // Lanes without a row load the first one: all of a warp exchange factors.
  Block block;
  Row(p.rows, inside ? row : 0, p.k).load(block, step, t);
  const float2 factors = block.factors(step, t);
  Out *out_gmem = static_cast<Out *>(p.out) + static_cast<int64_t>(out_row) * p.k;
#pragma unroll
  for (int group = 0; group < kStepGroups; ++group) {
    uint32_t pairs[4];
    block.pairs(pairs, group, above_128(0));
    const float scale = of_group(factors.x, group), second = of_group(factors.y, group);
    const int col = step * kStepCols + group * kGroupCols + t * kQuadCols;
    if (!exists || col >= p.k) continue;
#pragma unroll
    for (int quad = 0; quad < 2; ++quad) {
      float w[kQuadCols];
#pragma unroll
      for (int i = 0; i < kQuadCols; ++i) {
        const uint32_t pair = pairs[2 * quad + i / 2];
        const float code = i % 2 ? high_f32(pair) : low_f32(pair);
        if constexpr (Block::kSecond == SecondFactor::kShift) w[i] = fmaf(scale, code, second);
        else w[i] = (Block::kSecond == SecondFactor::kScale && quad == 1 ? second : scale) * code;
        w[i] = inside ? w[i] * p.factor : 0.0f;
      }
      store_quad(out_gmem + col + quad * kGroupCols / 2, w);
    }
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
  const int64_t num_steps = (static_cast<int64_t>(p->k) + kStepCols - 1) / kStepCols;
  const int64_t num_ctas = (p->num_rows * num_steps * kStepLanes + kThreads - 1) / kThreads;
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
