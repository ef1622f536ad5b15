// Mixture of experts around the grouped product: choice of experts, pairs sorted by expert, weighted sum.
//
//   route: one warp a token; lane l holds the logits of experts l, l + 32, ...
//   sort:  one CTA an expert; each warp compacts a run of pairs in order, so that positions do not depend on timing
//   combine: one CTA a token, choices added in their order: results repeat bit for bit
//
// Bound by launch latency for few tokens; every CTA of sort reads all chosen experts (L2).
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kPerLane = kMaxExperts / kWarpSize;
constexpr int kRouteWarps = 4;
constexpr int kSortThreads = 1024;
constexpr int kSortWarps = kSortThreads / kWarpSize;
constexpr int kCombineThreads = 256;

__global__ void __launch_bounds__(kRouteWarps *kWarpSize) route_kernel(const __grid_constant__ pagoda_moe_route_params p) {
  const int token = blockIdx.x * kRouteWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  wait_then_allow_next();
  if (token >= p.num_tokens) return;
  const float *row_gmem = p.logits + static_cast<int64_t>(token) * p.num_experts;
  float logit[kPerLane];
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + i * kWarpSize;
    logit[i] = expert < p.num_experts ? __ldcg(row_gmem + expert) : -INFINITY;
    max = fmaxf(max, logit[i]);
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, offset));
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sum += lane + i * kWarpSize < p.num_experts ? expf(logit[i] - max) : 0.0f;
  sum = warp_sum(sum);

  float chosen_weight = 0.0f; // lane c holds choice c
  int chosen_expert = 0;
  float chosen_sum = 0.0f;
  for (int choice = 0; choice < p.top_k; ++choice) {
    Best best{-INFINITY, kMaxExperts};
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = better(best, {logit[i], lane + i * kWarpSize});
    best = warp_best(best);
    const float weight = expf(best.value - max) / sum;
    chosen_sum += weight;
    if (lane == choice) chosen_weight = weight, chosen_expert = min(best.idx, p.num_experts - 1);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) logit[i] = lane + i * kWarpSize == best.idx ? -INFINITY : logit[i];
  }
  if (lane >= p.top_k) return;
  const int64_t pair = static_cast<int64_t>(token) * p.top_k + lane;
  p.experts[pair] = chosen_expert;
  p.weights[pair] = p.renormalise ? chosen_weight / chosen_sum : chosen_weight;
}

__global__ void __launch_bounds__(kSortThreads) sort_kernel(const __grid_constant__ pagoda_moe_route_params p) {
  __shared__ int mine_smem[kSortWarps], below_smem[kSortWarps];
  wait_then_allow_next();
  const int expert = blockIdx.x;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_pairs = p.num_tokens * p.top_k;
  const int run = (num_pairs + kSortThreads - 1) / kSortThreads * kWarpSize; // pairs of a warp
  const int begin = warp * run, end = min(num_pairs, begin + run);
  int mine = 0, below = 0;
#pragma unroll 4
  for (int pair = begin + lane; pair < end; pair += kWarpSize) {
    const int chosen = __ldcg(p.experts + pair);
    mine += chosen == expert, below += chosen < expert;
  }
  mine = __reduce_add_sync(0xffffffffu, mine), below = __reduce_add_sync(0xffffffffu, below);
  if (lane == 0) mine_smem[warp] = mine, below_smem[warp] = below;
  __syncthreads();
  const int first = __reduce_add_sync(0xffffffffu, below_smem[lane]);
  int next = first + __reduce_add_sync(0xffffffffu, lane < warp ? mine_smem[lane] : 0);
  static_assert(kSortWarps == kWarpSize, "a lane a warp");
  if (threadIdx.x == 0) {
    p.offsets[expert] = first;
    if (expert == 0) p.offsets[p.num_experts] = num_pairs;
  }
#pragma unroll 4
  for (int base = begin; base < end; base += kWarpSize) {
    const int pair = base + lane;
    const bool is_mine = pair < end && __ldcg(p.experts + pair) == expert;
    const unsigned votes = __ballot_sync(0xffffffffu, is_mine);
    const int position = next + __popc(votes & ((1u << lane) - 1));
    next += __popc(votes);
    if (!is_mine) continue;
    p.sorted[position] = pair;
    p.tokens[position] = pair / p.top_k;
    p.position[pair] = position;
  }
}

__global__ void combine_kernel(const __grid_constant__ pagoda_moe_combine_params p) {
  using V = Vec<bf16>;
  wait_then_allow_next();
  const int64_t token = blockIdx.x;
  for (int vec_idx = threadIdx.x; vec_idx < p.hidden / V::kSize; vec_idx += blockDim.x) {
    float sum[V::kSize] = {};
    for (int choice = 0; choice < p.top_k; ++choice) {
      const int64_t pair = token * p.top_k + choice;
      const float weight = __ldcg(p.weights + pair);
      const V y = V::load(static_cast<const bf16 *>(p.y) + static_cast<int64_t>(__ldcg(p.position + pair)) * p.hidden, vec_idx);
#pragma unroll
      for (int e = 0; e < V::kSize; ++e) sum[e] = fmaf(weight, to_f32(y.elems[e]), sum[e]);
    }
    V out;
#pragma unroll
    for (int e = 0; e < V::kSize; ++e) out.elems[e] = from_f32<bf16>(sum[e]);
    out.store(static_cast<bf16 *>(p.out) + token * p.hidden, vec_idx);
  }
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_moe_route(const pagoda_moe_route_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->experts || !p->weights || !p->offsets || !p->sorted || !p->tokens || !p->position || !p->logits) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens < 0 || p->num_experts <= 0 || p->top_k <= 0 || p->top_k > p->num_experts) return PAGODA_INVALID_ARGUMENT;
  if (p->num_experts > kMaxExperts || p->top_k > kMaxTopK || p->num_tokens > INT32_MAX / kMaxTopK) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  const unsigned route_ctas = (p->num_tokens + kRouteWarps - 1) / kRouteWarps;
  const pagoda_status status = launch(route_kernel, {route_ctas, kRouteWarps * kWarpSize}, *p, stream);
  return status == PAGODA_OK ? launch(sort_kernel, {static_cast<unsigned>(p->num_experts), kSortThreads}, *p, stream) : status;
}

extern "C" pagoda_status pagoda_moe_combine(const pagoda_moe_combine_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->y || !p->weights || !p->position) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens < 0 || p->hidden <= 0 || p->top_k <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->hidden % Vec<bf16>::kSize != 0) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  return launch(combine_kernel, {static_cast<unsigned>(p->num_tokens), kCombineThreads}, *p, stream);
}
