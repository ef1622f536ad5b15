// One row of logits as the sampler reads it: by units of one warp, edited on the way, turned into weights.
//
//   unit     | 512 logits: a lane holds 4 runs of 4                                  |
//   run j    | 128 logits: lane 0: 0..3, lane 1: 4..7 ...                            |
//   group    | 64 logits, half a run: what `pick` and `logprobs` know the largest of |
//
// Every operation on a value is the CPU sampler's (engine/sampling), unfused, so that weights have the same bits. The exponential is the
// polynomial of Cephes' expf (Stephen Moshier, public domain use), as there.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/memory.cuh"
#include "workspace.cuh"

namespace pagoda::sampling {

constexpr int kRun = 128;   // logits that a warp loads at once
constexpr int kRunLane = 4; // of a lane
constexpr int kNumRuns = kUnit / kRun;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr uint16_t kInPrompt = 0x8000;

// What the kernels of a call know of the row of this CTA.
struct Row {
  pagoda_sample_row record;
  const float *logits_gmem;
  int row_idx; // in the workspace

  __device__ __forceinline__ Row(const pagoda_sample_params &p, int launch_row) : row_idx(p.first_row + launch_row) {
    static_assert(sizeof(pagoda_sample_row) % 16 == 0, "records are read by 16 bytes");
    const uint4 *from = reinterpret_cast<const uint4 *>(p.rows + row_idx);
    uint4 *to = reinterpret_cast<uint4 *>(&record);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(pagoda_sample_row) / 16); ++i) to[i] = __ldcg(from + i);
    logits_gmem = p.logits + static_cast<int64_t>(record.logits_row) * p.vocab;
  }
  __device__ __forceinline__ bool edited() const { return record.num_edits > 0 || record.penalized || record.mask_row >= 0; }
  __device__ __forceinline__ bool greedy() const { return record.inv_temperature == 0.0f || record.top_k == 1; }
  __device__ __forceinline__ bool picks() const { return !greedy() && record.top_k > 1 && record.top_k <= kMaxPick; }
  __device__ __forceinline__ bool filters() const { return !greedy() && !picks() && (record.top_k > 0 || record.top_p < 1.0f); }
};

// Token of element 0 of a lane's run that begins at `run_start`.
__device__ __forceinline__ int lane_token(int run_start) { return run_start + (threadIdx.x % kWarpSize) * kRunLane; }

// One lane's part of a run; -inf behind the row's end. kVec: vocab is a multiple of 4.
template <bool kVec> __device__ __forceinline__ void load_run(float (&x)[kRunLane], const float *row_gmem, int run_start, int vocab) {
  const int token = lane_token(run_start);
  if (kVec) {
    if (token < vocab) {
      const uint4 bits = ptx::load_16b(row_gmem + token);
      x[0] = __uint_as_float(bits.x), x[1] = __uint_as_float(bits.y), x[2] = __uint_as_float(bits.z), x[3] = __uint_as_float(bits.w);
    } else {
      x[0] = x[1] = x[2] = x[3] = -INFINITY;
    }
  } else {
#pragma unroll
    for (int e = 0; e < kRunLane; ++e) x[e] = token + e < vocab ? __ldcg(row_gmem + token + e) : -INFINITY;
  }
}

__device__ __forceinline__ float penalized(float x, const pagoda_sample_row &r, unsigned count) {
  if (r.repetition_penalty != 1.0f) x = x > 0.0f ? __fdiv_rn(x, r.repetition_penalty) : __fmul_rn(x, r.repetition_penalty);
  const unsigned times = count & (kInPrompt - 1u);
  if (times > 0) x = __fsub_rn(x, __fadd_rn(r.presence_penalty, __fmul_rn(r.frequency_penalty, static_cast<float>(times))));
  return x;
}

// Allowed tokens, then the slot's edits in order, then penalties, as engine/sampling/sampler.rs has them: of kRuns runs from `start` on.
// All lanes of a warp call it.
template <int kRuns> __device__ __forceinline__ void edit(float (&x)[kRuns][kRunLane], const pagoda_sample_params &p, const pagoda_sample_row &r, int start) {
  const int first_token = lane_token(start);
  const int lane = threadIdx.x % kWarpSize;
  uint2 counts[kRuns];
  unsigned allowed[kRuns];
#pragma unroll
  for (int j = 0; j < kRuns; ++j) {
    const int token = first_token + j * kRun;
    counts[j] = make_uint2(0, 0);
    allowed[j] = kAllLanes;
    if (token >= p.vocab) continue;
    if (r.penalized) counts[j] = __ldcg(reinterpret_cast<const uint2 *>(p.counts + static_cast<int64_t>(r.slot) * p.count_stride + token));
    if (r.mask_row >= 0) allowed[j] = __ldcg(p.masks + static_cast<int64_t>(r.mask_row) * p.mask_stride + token / 32) >> (token % 32);
  }
#pragma unroll
  for (int i = 0; i < kRuns * kRunLane; ++i) {
    if (!(allowed[i / kRunLane] >> (i % kRunLane) & 1)) x[i / kRunLane][i % kRunLane] = -INFINITY;
  }
  const int2 *edits_gmem = reinterpret_cast<const int2 *>(p.edits + static_cast<int64_t>(r.slot) * p.edit_stride);
  for (int first = 0; first < r.num_edits; first += kWarpSize) {
    int2 entry = {-1, 0};
    if (first + lane < r.num_edits) entry = __ldcg(edits_gmem + first + lane);
    for (unsigned hits = __ballot_sync(kAllLanes, entry.x >= start && entry.x < start + kRuns * kRun); hits != 0; hits &= hits - 1) {
      const int offset = __shfl_sync(kAllLanes, entry.x, __ffs(hits) - 1) - start;
      const float value = __int_as_float(__shfl_sync(kAllLanes, entry.y, __ffs(hits) - 1));
      const int element = lane == offset % kRun / kRunLane ? offset / kRun * kRunLane + offset % kRunLane : -1;
#pragma unroll
      for (int i = 0; i < kRuns * kRunLane; ++i) {
        float &logit = x[i / kRunLane][i % kRunLane];
        if (i == element) logit = value == -INFINITY ? value : __fadd_rn(logit, value);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kRuns; ++j) {
    if ((counts[j].x | counts[j].y) == 0) continue;
#pragma unroll
    for (int e = 0; e < kRunLane; ++e) {
      const unsigned count = (e < 2 ? counts[j].x : counts[j].y) >> (16 * (e % 2)) & 0xffffu;
      if (count != 0) x[j][e] = penalized(x[j][e], r, count);
    }
  }
}

// A lane's part of a unit, edited.
template <bool kVec> __device__ __forceinline__ void load_unit(float (&x)[kNumRuns][kRunLane], const pagoda_sample_params &p, const Row &row, int unit) {
#pragma unroll
  for (int j = 0; j < kNumRuns; ++j) load_run<kVec>(x[j], row.logits_gmem, unit * kUnit + j * kRun, p.vocab);
  if (row.edited()) edit(x, p, row.record, unit * kUnit);
}

// exp((x - max) * scale) for x <= max: 0 or a normal number; NaN gives 0. The largest gives 1.
__device__ __forceinline__ float weight_of(float x, float max, float scale) {
  constexpr float kRound = 12582912.0f; // 1.5 * 2^23: adding it leaves a rounded integer in the low bits
  const float y = __fmul_rn(__fsub_rn(x, max), scale);
  const float shifted = __fadd_rn(__fmul_rn(y, 1.44269504088896340736f), kRound);
  const float n = __fsub_rn(shifted, kRound);
  float r = __fsub_rn(y, __fmul_rn(n, 0.6933594f));
  r = __fsub_rn(r, __fmul_rn(n, -2.1219444e-4f));
  float v = 1.9875691e-4f;
  v = __fadd_rn(__fmul_rn(v, r), 1.3981999e-3f);
  v = __fadd_rn(__fmul_rn(v, r), 8.333452e-3f);
  v = __fadd_rn(__fmul_rn(v, r), 4.1665796e-2f);
  v = __fadd_rn(__fmul_rn(v, r), 1.6666665e-1f);
  v = __fadd_rn(__fmul_rn(v, r), 0.5f);
  v = __fadd_rn(__fadd_rn(__fmul_rn(v, __fmul_rn(r, r)), r), 1.0f);
  const unsigned exponent = (__float_as_uint(shifted) - __float_as_uint(kRound) + 127u) << 23;
  return y >= -87.0f ? __fmul_rn(v, __uint_as_float(exponent)) : 0.0f;
}

// A weight in units of 2^-35, to nearest even: sums of 2^18 of them are exact in f64, as the CPU adds them.
__device__ __forceinline__ unsigned long long mass_of(float weight) { return __float2ull_rn(weight * 34359738368.0f); }

// Masses of larger weights are at least 1, those of smaller ones 0: such tokens are never drawn.
constexpr float kLeastWeight = 1.0f / (1ull << 36);

// Whether the unit may have a weight of at least `least`: by the largest of its groups. One warp; a row that is not greedy.
__device__ __forceinline__ bool unit_reaches(const Workspace &w, const Row &row, float max, float least, int unit) {
  constexpr int kGroups = kUnit / kGroup;
  const float *groups_gmem = w.groups + static_cast<int64_t>(row.row_idx) * w.num_groups + unit * kGroups;
  const float largest = __ldcg(groups_gmem + threadIdx.x % kGroups);
  // The polynomial falls here and there by a unit in the last place.
  return __any_sync(kAllLanes, __float_as_uint(weight_of(largest, max, row.record.inv_temperature)) + 16 >= __float_as_uint(least));
}

// Weights in this order, the lower token first among equals: no two tokens have one key.
__device__ __forceinline__ unsigned long long key_of(float weight, int token) {
  return static_cast<unsigned long long>(__float_as_uint(weight)) << 32 | (0xffffffffu - static_cast<unsigned>(token));
}

// The row's token is known: writes it. One thread.
__device__ __forceinline__ void emit(const pagoda_sample_params &p, const Row &row, RowState *state_gmem, int token) {
  state_gmem->token = token;
  if (row.record.given >= 0) return;
  p.tokens[row.record.out] = token;
  p.last_tokens[row.record.slot] = token;
  if (row.record.penalized) {
    uint16_t *count_gmem = p.counts + static_cast<int64_t>(row.record.slot) * p.count_stride + token;
    const unsigned count = __ldcg(count_gmem);
    if ((count & (kInPrompt - 1u)) < kInPrompt - 1u) *count_gmem = static_cast<uint16_t>(count + 1);
  }
}

// True in the CTA that arrives last of the `num` of its row; it sees what the others wrote. All threads call it.
__device__ __forceinline__ bool last_of_row(unsigned *arrivals_gmem, unsigned num) {
  __shared__ bool last_smem;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last_smem = num == 1 || atomicAdd(arrivals_gmem, 1) == num - 1;
    if (last_smem && num > 1) *arrivals_gmem = 0;
    __threadfence();
  }
  __syncthreads();
  return last_smem;
}

} // namespace pagoda::sampling
