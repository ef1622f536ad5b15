// The draw: a token at `uniform` of the mass of the weights that stay, in the order of tokens, from the masses of units.
#pragma once
#include "select.cuh"

namespace pagoda::sampling {

using Mass = unsigned long long;

// Of a lane's logit, 0 for what does not stay.
__device__ __forceinline__ Mass mass_that_stays(float x, float max, float scale, unsigned long long threshold, int token) {
  const float weight = weight_of(x, max, scale);
  return key_of(weight, token) >= threshold ? mass_of(weight) : 0;
}

__device__ __forceinline__ Mass warp_total(Mass v) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

// The lane's part of a unit.
template <bool kVec>
__device__ __forceinline__ void load_masses(Mass (&mass)[kNumRuns][kRunLane], const pagoda_sample_params &p, const Row &row, float max, unsigned long long threshold, int unit) {
  float x[kNumRuns][kRunLane];
  load_unit<kVec>(x, p, row, unit);
#pragma unroll
  for (int j = 0; j < kNumRuns; ++j) {
#pragma unroll
    for (int e = 0; e < kRunLane; ++e) mass[j][e] = mass_that_stays(x[j][e], max, row.record.inv_temperature, threshold, lane_token(unit * kUnit + j * kRun) + e);
  }
}

// The mass of what stays of a unit; every lane of the warp gets it.
template <bool kVec> __device__ __forceinline__ Mass unit_mass(const pagoda_sample_params &p, const Row &row, float max, unsigned long long threshold, int unit) {
  Mass mass[kNumRuns][kRunLane];
  load_masses<kVec>(mass, p, row, max, threshold, unit);
  Mass sum = 0;
#pragma unroll
  for (int j = 0; j < kNumRuns; ++j) sum += mass[j][0] + mass[j][1] + mass[j][2] + mass[j][3];
  return warp_total(sum);
}

// The token of the unit at which the sum, `before` included, passes `target`. One warp.
template <bool kVec>
__device__ __forceinline__ int token_in_unit(const pagoda_sample_params &p, const Row &row, float max, unsigned long long threshold, int unit, Mass before, double target) {
  Mass mass[kNumRuns][kRunLane];
  load_masses<kVec>(mass, p, row, max, threshold, unit);
  const int lane = threadIdx.x % kWarpSize;
  int token = -1;
  Mass sum_before = before;
#pragma unroll
  for (int j = 0; j < kNumRuns; ++j) {
    const Mass mine = mass[j][0] + mass[j][1] + mass[j][2] + mass[j][3];
    Mass sum = mine;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const Mass other = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += other;
    }
    const Mass run_total = __shfl_sync(kAllLanes, sum, kWarpSize - 1);
    Mass upto = sum_before + sum - mine;
    int found = -1;
#pragma unroll
    for (int e = 0; e < kRunLane; ++e) {
      upto += mass[j][e];
      if (found < 0 && mass[j][e] > 0 && static_cast<double>(upto) > target) found = lane_token(unit * kUnit + j * kRun) + e;
    }
    const unsigned any = __ballot_sync(kAllLanes, found >= 0);
    if (token < 0 && any != 0) token = __shfl_sync(kAllLanes, found, __ffs(any) - 1);
    sum_before += run_total;
  }
  return token;
}

// Draws when the masses of all units are known: finds the unit, then the token. The whole CTA.
template <bool kVec>
__device__ __forceinline__ void draw_token(const pagoda_sample_params &p, const Workspace &w, const Row &row, float max, unsigned long long threshold) {
  __shared__ int unit_smem;
  __shared__ Mass before_smem;
  const Mass *masses_gmem = w.unit_masses + static_cast<int64_t>(row.row_idx) * w.num_units;
  const int per_thread = (w.num_units + kSelectThreads - 1) / kSelectThreads;
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  Tally mine{0, 0};
  for (int i = first; i < first + per_thread && i < w.num_units; ++i) mine.mass += __ldcg(masses_gmem + i);
  Tally total;
  const Mass before = scan_before(mine, &total).mass;
  // Below the total even where the product rounds up: the last token that stays, as on the CPU.
  const double target = fmin(row.record.uniform * static_cast<double>(total.mass), static_cast<double>(total.mass) - 0.5);
  if (static_cast<double>(before) <= target && static_cast<double>(before + mine.mass) > target) {
    Mass upto = before;
    for (int i = first; i < first + per_thread && i < w.num_units; ++i) {
      const Mass mass = __ldcg(masses_gmem + i);
      if (static_cast<double>(upto + mass) > target) {
        unit_smem = i;
        before_smem = upto;
        break;
      }
      upto += mass;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return;
  const int token = token_in_unit<kVec>(p, row, max, threshold, unit_smem, before_smem, target);
  if (threadIdx.x == 0) emit(p, row, w.state + row.row_idx, token);
}

} // namespace pagoda::sampling
