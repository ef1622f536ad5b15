// pagoda_rope_kv: norm and rotation of q and k, and the way of k and v into the paged cache.
//
// Grid (tokens, groups of heads); one warp a head. A lane holds kPairs pairs of neighbouring elements; the head lies in shared memory
// (f32) between norm and rotation, since a pair of the rotation may belong to two lanes. Positions, slots, cosines and sines are read before
// the wait for the previous kernel. All arithmetic in f32, one rounding at the end.
// Bound by memory: each head is read once and written once or twice.
#include "attention/paged_kv.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 256;
constexpr int kPairs = kMaxHeadDim / 2 / kWarpSize;

// Which cosine and sine rotate element d < rotary_dim.
__device__ __forceinline__ int rotation_index(const pagoda_rope_kv_params &p, int d) {
  const int half = p.rotary_dim / 2;
  return p.interleaved ? d / 2 : d < half ? d : d - half;
}

// Of a lane's elements.
struct Rotation {
  float cos[2 * kPairs], sin[2 * kPairs];
};

__device__ __forceinline__ Rotation load_rotation(const pagoda_rope_kv_params &p, int position, int lane) {
  const int64_t first = static_cast<int64_t>(position) * (p.rotary_dim / 2);
  Rotation r;
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int d = 2 * (lane + i / 2 * kWarpSize) + i % 2;
    const bool rotates = d < p.rotary_dim;
    r.cos[i] = rotates ? __ldcg(p.cos + first + rotation_index(p, d)) : 1.0f;
    r.sin[i] = rotates ? __ldcg(p.sin + first + rotation_index(p, d)) : 0.0f;
  }
  return r;
}

// head[d] rotated, read from the f32 copy of the head in shared memory.
__device__ __forceinline__ float rotate(const pagoda_rope_kv_params &p, const float *head_smem, int d, float cos, float sin) {
  if (d >= p.rotary_dim) return head_smem[d];
  const int half = p.rotary_dim / 2;
  const bool first = p.interleaved ? d % 2 == 0 : d < half;
  const int partner = p.interleaved ? d ^ 1 : (first ? d + half : d - half);
  return first ? head_smem[d] * cos - head_smem[partner] * sin : head_smem[d] * cos + head_smem[partner] * sin;
}

__global__ void __launch_bounds__(kWarps *kWarpSize) rope_kv_kernel(const __grid_constant__ pagoda_rope_kv_params p) {
  __shared__ float heads_smem[kWarps][kMaxHeadDim];
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int head = blockIdx.y * kWarps + warp;
  const int num_rows = p.num_heads + 2 * p.num_kv_heads;
  const int64_t token = blockIdx.x;
  // Positions and slots were there before the first kernel of the step began.
  const int position = __ldcg(p.positions + token);
  const int slot = __ldcg(p.slot_mapping + token);
  const Rotation rotation = load_rotation(p, position, lane);
  wait_then_allow_next();
  if (head >= num_rows) return;
  uint32_t *row_gmem = reinterpret_cast<uint32_t *>(static_cast<bf16 *>(p.qkv) + (token * num_rows + head) * p.head_dim);
  const int num_pairs = p.head_dim / 2;
  const int kv_head = (head - p.num_heads) % p.num_kv_heads;
  const bool is_q = head < p.num_heads;
  const bool is_v = head >= p.num_heads + p.num_kv_heads;

  uint32_t pair_frag[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane + i * kWarpSize;
    if (pair < num_pairs) pair_frag[i] = __ldcg(row_gmem + pair);
  }
  if (!is_v) {
    float *head_smem = heads_smem[warp];
    const float *norm = is_q ? p.q_norm : p.k_norm;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = lane + i * kWarpSize;
      if (pair >= num_pairs) break;
      const float a = low_f32(pair_frag[i]), b = high_f32(pair_frag[i]);
      sum += a * a + b * b;
      head_smem[2 * pair] = a;
      head_smem[2 * pair + 1] = b;
    }
    if (norm) {
      const float scale = rsqrtf(warp_sum(sum) / static_cast<float>(p.head_dim) + p.eps);
      for (int pair = lane; pair < num_pairs; pair += kWarpSize) {
        head_smem[2 * pair] *= scale * norm[2 * pair];
        head_smem[2 * pair + 1] *= scale * norm[2 * pair + 1];
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = lane + i * kWarpSize;
      if (pair >= num_pairs) break;
      pair_frag[i] = pack_bf16(rotate(p, head_smem, 2 * pair, rotation.cos[2 * i], rotation.sin[2 * i]), rotate(p, head_smem, 2 * pair + 1, rotation.cos[2 * i + 1], rotation.sin[2 * i + 1]));
      row_gmem[pair] = pair_frag[i];
    }
  }
  if (is_q) return;
  const PagedKv cache{p.num_kv_heads, p.block_size, p.head_dim};
  if (slot < 0) return; // a row that only fills up the batch
  const int64_t offset = cache.k_offset(slot / p.block_size, kv_head, slot % p.block_size) + (is_v ? cache.v_distance() : 0);
  uint32_t *kv_gmem = reinterpret_cast<uint32_t *>(static_cast<bf16 *>(p.kv) + offset);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int pair = lane + i * kWarpSize;
    if (pair < num_pairs) kv_gmem[pair] = pair_frag[i];
  }
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_rope_kv(const pagoda_rope_kv_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->qkv || !p->kv || !p->positions || !p->slot_mapping || !p->cos || !p->sin) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens < 0 || p->num_heads <= 0 || p->num_kv_heads <= 0 || p->block_size <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->rotary_dim < 0 || p->rotary_dim > p->head_dim || p->rotary_dim % 2 != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->head_dim <= 0 || p->head_dim > kMaxHeadDim || p->head_dim % 2 != 0) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  const int num_rows = p->num_heads + 2 * p->num_kv_heads;
  const dim3 grid(static_cast<unsigned>(p->num_tokens), static_cast<unsigned>((num_rows + kWarps - 1) / kWarps));
  return launch(rope_kv_kernel, {grid, kWarps * kWarpSize}, *p, stream);
}
