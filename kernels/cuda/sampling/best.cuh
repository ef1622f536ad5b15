// The few best logits of a row, without reading the row: they are in the groups whose largest are the best.
#pragma once
#include "select.cuh"

namespace pagoda::sampling {

constexpr int kMaxFound = kMaxPick * kGroup; // logits of the best groups
constexpr int kOrderedTokenBits = 20;
constexpr int kMaxGroups = kMaxVocab / kGroup;

struct BestSmem {
  BinsSmem bins;
  int groups[kMaxPick];
  int num_groups;
  int num_found;
  unsigned long long found[kMaxFound]; // the value, ordered, above the complement of the token
  unsigned long long best[kMaxPick];
  int num_best;
};

__device__ __forceinline__ unsigned long long ordered_key(float x, int token) {
  return static_cast<unsigned long long>(ordered(x)) << kOrderedTokenBits | ((1u << kOrderedTokenBits) - 1 - token);
}
__device__ __forceinline__ int token_of_key(unsigned long long key) { return (1 << kOrderedTokenBits) - 1 - static_cast<int>(key & ((1u << kOrderedTokenBits) - 1)); }
__device__ __forceinline__ float value_of_key(unsigned long long key) {
  const unsigned bits = static_cast<unsigned>(key >> kOrderedTokenBits);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// smem->best[0 .. num_best) = the `count` best of the row, in no order, NaN left out.
// load(x, run_start) gives a warp's run. One CTA of kSelectThreads.
template <typename Load>
__device__ __forceinline__ void find_best(BestSmem *smem, const float *groups_gmem, int num_groups, int count, int vocab, Load load) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x == 0) smem->num_groups = smem->num_found = smem->num_best = 0;
  __syncthreads();
  const auto group_keys = [&](auto f) {
    for (int i = threadIdx.x; i < num_groups; i += kSelectThreads) f(ordered_key(__ldcg(groups_gmem + i), i), 0ull);
  };
  Tally kept;
  constexpr int kKeyBits = 32 + kOrderedTokenBits;
  const unsigned wanted = static_cast<unsigned>(count < num_groups ? count : num_groups);
  const unsigned long long least = select_key<kKeyBits>(group_keys, &smem->bins, Tally{0, 0}, Want{wanted, 0.0}, &kept);
  group_keys([&](unsigned long long key, unsigned long long) {
    if (key < least) return;
    const int at = atomicAdd(&smem->num_groups, 1);
    if (at < kMaxPick) smem->groups[at] = token_of_key(key);
  });
  __syncthreads();
  const unsigned least_value = static_cast<unsigned>(least >> kOrderedTokenBits);
  for (int i = warp; i < smem->num_groups; i += kSelectWarps) {
    const int group = smem->groups[i];
    float x[1][kRunLane];
    load(x, group / 2 * kRun);
    if (lane / (kWarpSize / 2) != group % 2) continue;
#pragma unroll
    for (int e = 0; e < kRunLane; ++e) {
      const int token = lane_token(group / 2 * kRun) + e;
      const unsigned long long key = ordered_key(x[0][e], token);
      if (token >= vocab || x[0][e] != x[0][e] || (key >> kOrderedTokenBits) < least_value) continue;
      smem->found[atomicAdd(&smem->num_found, 1)] = key;
    }
  }
  __syncthreads();
  const int num_found = smem->num_found;
  const auto found_keys = [&](auto f) {
    for (int i = threadIdx.x; i < num_found; i += kSelectThreads) f(smem->found[i], 0ull);
  };
  unsigned long long last = 0;
  if (num_found > count) last = select_key<kKeyBits>(found_keys, &smem->bins, Tally{0, 0}, Want{static_cast<unsigned>(count), 0.0}, &kept);
  found_keys([&](unsigned long long key, unsigned long long) {
    if (key >= last) smem->best[atomicAdd(&smem->num_best, 1)] = key;
  });
  __syncthreads();
}

} // namespace pagoda::sampling
