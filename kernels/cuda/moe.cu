// Mixture of experts around the grouped product: choice of experts, pairs sorted by expert, weighted sum.
//
//   route: one warp a token; lane l holds the logits of experts l, l + 32, ...
//   sort:  one CTA an expert; pairs are compacted in order, so that positions do not depend on timing
//   combine: one CTA a token, choices added in their order: results repeat bit for bit
//
// Bound by launch latency for few tokens; every CTA of sort reads all chosen experts (L2).
#include "common/reduce.cuh"
#include "common/status.cuh"
#include "common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kPerLane = kMaxExperts / kWarpSize;
constexpr int kRouteWarps = 4;
constexpr int kSortThreads = 256;

__global__ void __launch_bounds__(kRouteWarps *kWarpSize) route_kernel(const __grid_constant__ pagoda_moe_route_params p) {
  const int token = blockIdx.x * kRouteWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (token >= p.num_tokens) return;
  const float *row_gmem = p.logits + static_cast<int64_t>(token) * p.num_experts;
  float logit[kPerLane];
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + i * kWarpSize;
    logit[i] = expert < p.num_experts ? row_gmem[expert] : -INFINITY;
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

// Sum over the CTA, for every thread; may be called repeatedly.
__device__ __forceinline__ int cta_sum(int v) {
  __shared__ int partial_smem[kSortThreads / kWarpSize];
  const int total = __reduce_add_sync(0xffffffffu, v);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) partial_smem[threadIdx.x / kWarpSize] = total;
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int w = 0; w < kSortThreads / kWarpSize; ++w) sum += partial_smem[w];
  return sum;
}

__global__ void __launch_bounds__(kSortThreads) sort_kernel(const __grid_constant__ pagoda_moe_route_params p) {
  __shared__ int warp_count_smem[kSortThreads / kWarpSize];
  const int expert = blockIdx.x;
  const int num_pairs = p.num_tokens * p.top_k;
  int below = 0;
  for (int pair = threadIdx.x; pair < num_pairs; pair += kSortThreads) below += p.experts[pair] < expert;
  int next = cta_sum(below);
  if (threadIdx.x == 0) {
    p.offsets[expert] = next;
    if (expert == 0) p.offsets[p.num_experts] = num_pairs;
  }
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int base = 0; base < num_pairs; base += kSortThreads) {
    const int pair = base + threadIdx.x;
    const bool mine = pair < num_pairs && p.experts[pair] == expert;
    const unsigned votes = __ballot_sync(0xffffffffu, mine);
    __syncthreads(); // the counts of the round before have been read
    if (lane == 0) warp_count_smem[warp] = __popc(votes);
    __syncthreads();
    int position = next + __popc(votes & ((1u << lane) - 1));
    for (int w = 0; w < kSortThreads / kWarpSize; ++w) {
      if (w < warp) position += warp_count_smem[w];
      next += warp_count_smem[w];
    }
    if (mine) {
      p.sorted[position] = pair;
      p.position[pair] = position;
    }
  }
}

__global__ void combine_kernel(const __grid_constant__ pagoda_moe_combine_params p) {
  using V = Vec<bf16>;
  const int64_t token = blockIdx.x;
  for (int vec_idx = threadIdx.x; vec_idx < p.hidden / V::kSize; vec_idx += blockDim.x) {
    float sum[V::kSize] = {};
    for (int choice = 0; choice < p.top_k; ++choice) {
      const int64_t pair = token * p.top_k + choice;
      const float weight = p.weights[pair];
      const V y = V::load(static_cast<const bf16 *>(p.y) + static_cast<int64_t>(p.position[pair]) * p.hidden, vec_idx);
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
  if (!p || !p->experts || !p->weights || !p->offsets || !p->sorted || !p->position || !p->logits) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens < 0 || p->num_experts <= 0 || p->top_k <= 0 || p->top_k > p->num_experts) return PAGODA_INVALID_ARGUMENT;
  if (p->num_experts > kMaxExperts || p->top_k > kMaxTopK || p->num_tokens > INT32_MAX / kMaxTopK) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  route_kernel<<<(p->num_tokens + kRouteWarps - 1) / kRouteWarps, kRouteWarps * kWarpSize, 0, stream>>>(*p);
  const pagoda_status status = launch_status();
  if (status != PAGODA_OK) return status;
  sort_kernel<<<p->num_experts, kSortThreads, 0, stream>>>(*p);
  return launch_status();
}

extern "C" pagoda_status pagoda_moe_combine(const pagoda_moe_combine_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->y || !p->weights || !p->position) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens < 0 || p->hidden <= 0 || p->top_k <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->hidden % Vec<bf16>::kSize != 0) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  combine_kernel<<<p->num_tokens, 256, 0, stream>>>(*p);
  return launch_status();
}
