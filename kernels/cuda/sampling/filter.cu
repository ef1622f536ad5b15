// pagoda_sample_filter: top-k, top-p, min-p over whole rows, without sorting, and the draw.
//
// 1. histogram: weights are counted and summed by their leading bits (sign, exponent, 5 bits of mantissa), as the CPU sampler does it.
//    The last CTA of a row finds the buckets in which the boundaries lie.
// 2. draw: the weights of those buckets are gathered (a few hundred, as a rule), those above them stay and are summed by units; the last CTA
//    of the row selects among the gathered ones, which gives the smallest key that stays, and draws. If they are more than fit (equal
//    logits), it reads the row again instead.
#include "draw.cuh"
#include <algorithm>

namespace pagoda::sampling {
namespace {

// A mass less the smallest of its bucket, at most 2^30, is summed in two halves: 2^17 of them fit 32 bits.
constexpr int kLowBits = 15;
constexpr int kMaxUnitsOfCta = (1 << 17) / kUnit;
constexpr int kTokenBits = 20;
constexpr int kKeyBits = kBucketShift + kTokenBits; // of a key within one bucket

__device__ __forceinline__ int bucket_of(float weight) { return static_cast<int>(__float_as_uint(weight) >> kBucketShift); }

// The smallest mass of a bucket.
__device__ __forceinline__ unsigned long long floor_of(int bucket) { return mass_of(__uint_as_float(static_cast<unsigned>(bucket) << kBucketShift)); }

// Of a key within its bucket.
__device__ __forceinline__ unsigned long long low_key(float weight, int token) {
  constexpr unsigned kLowMask = (1u << kBucketShift) - 1;
  return static_cast<unsigned long long>(__float_as_uint(weight) & kLowMask) << kTokenBits | ((1u << kTokenBits) - 1 - token);
}

// f(weight, token) for the units of `first`, `first + stride`, ... that have weights of at least `least`; one unit a warp.
template <bool kVec, typename F>
__device__ __forceinline__ void for_weights(const pagoda_sample_params &p, const Workspace &w, const Row &row, float max, float least, int first, int stride, F f) {
  for (int unit = first; unit < w.num_units; unit += stride) {
    if (!unit_reaches(w, row, max, least, unit)) continue;
    float x[kNumRuns][kRunLane];
    load_unit<kVec>(x, p, row, unit);
#pragma unroll
    for (int j = 0; j < kNumRuns; ++j) {
#pragma unroll
      for (int e = 0; e < kRunLane; ++e) f(weight_of(x[j][e], max, row.record.inv_temperature), lane_token(unit * kUnit + j * kRun) + e);
    }
  }
}

// Sums of the row's buckets, those of this thread.
struct Histogram {
  Tally bins[kBinsOfThread<kNumBuckets>];
  int first;

  __device__ __forceinline__ Histogram(const Workspace &w, int row_idx) : first(first_bin<kNumBuckets>()) {
    const unsigned *counts_gmem = w.bucket_counts + static_cast<int64_t>(row_idx) * kNumBuckets;
    const Mass *masses_gmem = w.bucket_masses + static_cast<int64_t>(row_idx) * kNumBuckets;
#pragma unroll
    for (int i = 0; i < kBinsOfThread<kNumBuckets>; ++i) {
      bins[i] = {0, 0};
      if (first - i >= 0) bins[i] = {__ldcg(counts_gmem + first - i), __ldcg(masses_gmem + first - i)};
    }
  }
  __device__ __forceinline__ Cut cut(Want want, Tally *total) const { return cut_bins(bins, first, Tally{0, 0}, want, total); }
};

// Which buckets the second kernel must look into.
__device__ void publish_range(const pagoda_sample_params &p, const Workspace &w, const Row &row) {
  const Histogram histogram(w, row.row_idx);
  Tally total;
  Cut cut = histogram.cut(Want{static_cast<unsigned>(row.record.top_k), INFINITY}, &total);
  const bool by_count = row.record.top_k > 0 && static_cast<unsigned>(row.record.top_k) < total.count;
  const bool by_mass = row.record.top_p < 1.0f;
  int low = 1; // nothing to look into: all weights stay
  int high = 0;
  unsigned num = 0;
  if (by_count) {
    low = cut.bin;
    high = by_mass ? kNumBuckets - 1 : cut.bin;
    num = by_mass ? cut.with.count : cut.with.count - cut.above.count;
  } else if (by_mass) {
    cut = histogram.cut(Want{0, static_cast<double>(row.record.top_p) * static_cast<double>(total.mass)}, &total);
    low = high = cut.bin;
    num = cut.with.count - cut.above.count;
  }
  if (threadIdx.x != 0) return;
  RowState *state_gmem = w.state + row.row_idx;
  state_gmem->total = total;
  state_gmem->bucket_low = low;
  state_gmem->bucket_high = high;
  state_gmem->num_in_range = num;
  state_gmem->num_candidates = 0;
}

template <bool kVec> __global__ void __launch_bounds__(kSelectThreads) histogram_kernel(const __grid_constant__ pagoda_sample_params p) {
  wait_then_allow_next();
  __shared__ unsigned counts_smem[kNumBuckets];
  __shared__ unsigned low_smem[kNumBuckets];
  __shared__ unsigned high_smem[kNumBuckets];
  const Row row(p, blockIdx.y);
  const Workspace w = workspace_of(p);
  RowState *state_gmem = w.state + row.row_idx;
  if (__ldcg(&state_gmem->token) >= 0) return;
  for (int i = threadIdx.x; i < kNumBuckets; i += kSelectThreads) counts_smem[i] = low_smem[i] = high_smem[i] = 0;
  __syncthreads();
  const float max = __ldcg(&state_gmem->max);
  const int warp = threadIdx.x / kWarpSize;
  for_weights<kVec>(p, w, row, max, kLeastWeight, blockIdx.x * kSelectWarps + warp, gridDim.x * kSelectWarps, [&](float weight, int) {
    const unsigned long long mass = mass_of(weight);
    if (mass == 0) return; // never drawn, and the least of all
    const int bucket = bucket_of(weight);
    const unsigned rest = static_cast<unsigned>(mass - floor_of(bucket));
    const unsigned low = rest & ((1u << kLowBits) - 1);
    const unsigned high = rest >> kLowBits;
    atomicAdd(&counts_smem[bucket], 1u);
    if (low != 0) atomicAdd(&low_smem[bucket], low);
    if (high != 0) atomicAdd(&high_smem[bucket], high);
  });
  __syncthreads();
  unsigned *counts_gmem = w.bucket_counts + static_cast<int64_t>(row.row_idx) * kNumBuckets;
  Mass *masses_gmem = w.bucket_masses + static_cast<int64_t>(row.row_idx) * kNumBuckets;
  for (int i = threadIdx.x; i < kNumBuckets; i += kSelectThreads) {
    if (counts_smem[i] == 0) continue;
    atomicAdd(counts_gmem + i, counts_smem[i]);
    const unsigned long long rest = (static_cast<unsigned long long>(high_smem[i]) << kLowBits) + low_smem[i];
    atomicAdd(masses_gmem + i, counts_smem[i] * floor_of(i) + rest);
  }
  if (!last_of_row(&state_gmem->arrivals, gridDim.x)) return;
  publish_range(p, w, row);
}

// The smallest key that stays. for_each(f) calls f(weight, token) for every weight of the range, and perhaps others. Clears the histogram.
template <typename ForEach>
__device__ __forceinline__ unsigned long long threshold_of(const Workspace &w, const Row &row, ForEach for_each, BinsSmem *bins_smem) {
  const auto key_at = [&](Want want, Tally *kept) {
    Tally unused;
    const Cut cut = Histogram(w, row.row_idx).cut(want, &unused);
    const auto of_bucket = [&](auto f) {
      for_each([&](float weight, int token) {
        if (bucket_of(weight) == cut.bin && weight > kLeastWeight) f(low_key(weight, token), mass_of(weight));
      });
    };
    const unsigned long long key = select_key<kKeyBits>(of_bucket, bins_smem, cut.above, want, kept);
    const float weight = __uint_as_float(static_cast<unsigned>(cut.bin) << kBucketShift | static_cast<unsigned>(key >> kTokenBits));
    return key_of(weight, (1 << kTokenBits) - 1 - static_cast<int>(key & ((1u << kTokenBits) - 1)));
  };
  const RowState *state_gmem = w.state + row.row_idx;
  Tally kept{__ldcg(&state_gmem->total.count), __ldcg(&state_gmem->total.mass)};
  unsigned long long threshold = static_cast<unsigned long long>(__float_as_uint(row.record.min_p)) << 32;
  const unsigned top_k = static_cast<unsigned>(row.record.top_k);
  if (top_k > 0 && top_k < kept.count) threshold = max(threshold, key_at(Want{top_k, 0.0}, &kept));
  if (row.record.top_p < 1.0f) threshold = max(threshold, key_at(Want{0, static_cast<double>(row.record.top_p) * static_cast<double>(kept.mass)}, &kept));
  unsigned *counts_gmem = w.bucket_counts + static_cast<int64_t>(row.row_idx) * kNumBuckets;
  Mass *masses_gmem = w.bucket_masses + static_cast<int64_t>(row.row_idx) * kNumBuckets;
  for (int i = threadIdx.x; i < kNumBuckets; i += kSelectThreads) counts_gmem[i] = 0, masses_gmem[i] = 0;
  __syncthreads();
  return threshold;
}

// What a warp does with a unit of the second kernel: the mass of what stays for sure; what has to be looked into is gathered.
template <bool kVec>
__device__ __forceinline__ Mass gather_unit(const pagoda_sample_params &p, const Row &row, RowState *state_gmem, Candidate *candidates_gmem, float max, int low, int high, int unit) {
  float x[kNumRuns][kRunLane];
  load_unit<kVec>(x, p, row, unit);
  Mass sum = 0;
#pragma unroll
  for (int i = 0; i < kNumRuns * kRunLane; ++i) {
    const float weight = weight_of(x[i / kRunLane][i % kRunLane], max, row.record.inv_temperature);
    const int bucket = bucket_of(weight);
    if (bucket > high) {
      if (weight >= row.record.min_p) sum += mass_of(weight);
    } else if (bucket >= low && weight > kLeastWeight) {
      const unsigned at = atomicAdd(&state_gmem->num_candidates, 1u);
      if (at < kMaxCandidates) candidates_gmem[at] = {weight, lane_token(unit * kUnit + i / kRunLane * kRun) + i % kRunLane};
    }
  }
  return warp_total(sum);
}

template <bool kVec> __global__ void __launch_bounds__(kSelectThreads, 2) filtered_draw_kernel(const __grid_constant__ pagoda_sample_params p) {
  wait_then_allow_next();
  __shared__ BinsSmem bins_smem;
  const Row row(p, blockIdx.y);
  const Workspace w = workspace_of(p);
  RowState *state_gmem = w.state + row.row_idx;
  if (__ldcg(&state_gmem->token) >= 0) return;
  const float max = __ldcg(&state_gmem->max);
  const int low = __ldcg(&state_gmem->bucket_low);
  const int high = __ldcg(&state_gmem->bucket_high);
  const float least = __uint_as_float(static_cast<unsigned>(low) << kBucketShift);
  const bool fits = __ldcg(&state_gmem->num_in_range) <= kMaxCandidates;
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  Candidate *candidates_gmem = w.candidates + static_cast<int64_t>(row.row_idx) * kMaxCandidates;
  Mass *masses_gmem = w.unit_masses + static_cast<int64_t>(row.row_idx) * w.num_units;
  for (int unit = blockIdx.x * kSelectWarps + warp; fits && unit < w.num_units; unit += gridDim.x * kSelectWarps) {
    Mass sum = 0;
    if (unit_reaches(w, row, max, least, unit)) sum = gather_unit<kVec>(p, row, state_gmem, candidates_gmem, max, low, high, unit);
    if (lane == 0) masses_gmem[unit] = sum;
  }
  if (!last_of_row(&state_gmem->arrivals, gridDim.x)) return;
  unsigned long long threshold;
  if (fits) {
    const unsigned num_candidates = __ldcg(&state_gmem->num_candidates);
    const auto from_list = [&](auto f) {
      for (unsigned i = threadIdx.x; i < num_candidates; i += kSelectThreads) {
        const float2 c = __ldcg(reinterpret_cast<const float2 *>(candidates_gmem + i));
        f(c.x, __float_as_int(c.y));
      }
    };
    threshold = threshold_of(w, row, from_list, &bins_smem);
    from_list([&](float weight, int token) {
      if (key_of(weight, token) >= threshold) atomicAdd(masses_gmem + token / kUnit, mass_of(weight));
    });
  } else {
    threshold = threshold_of(w, row, [&](auto f) { for_weights<kVec>(p, w, row, max, least, warp, kSelectWarps, f); }, &bins_smem);
    for (int unit = warp; unit < w.num_units; unit += kSelectWarps) {
      const Mass sum = unit_mass<kVec>(p, row, max, threshold, unit);
      if (lane == 0) masses_gmem[unit] = sum;
    }
  }
  __syncthreads();
  draw_token<kVec>(p, w, row, max, threshold);
}

} // namespace
} // namespace pagoda::sampling

extern "C" pagoda_status pagoda_sample_filter(const pagoda_sample_params *p, pagoda_stream stream) {
  using namespace pagoda::sampling;
  if (!valid(p)) return PAGODA_INVALID_ARGUMENT;
  const int num_units = (p->vocab + kUnit - 1) / kUnit;
  const int num_splits = std::max(p->num_splits, (num_units + kMaxUnitsOfCta - 1) / kMaxUnitsOfCta);
  const pagoda_status status = launch_rows(histogram_kernel<true>, histogram_kernel<false>, p, num_splits, kSelectThreads, stream);
  if (status != PAGODA_OK) return status;
  return launch_rows(filtered_draw_kernel<true>, filtered_draw_kernel<false>, p, p->num_splits, kSelectThreads, stream);
}
