// Which of many keys are the largest, without sorting: a CTA counts them by 10 bits at a time, from the leading bits down, and looks into
// the bin in which the boundary lies. Keys are distinct, so the answer does not depend on any order.
#pragma once
#include "row.cuh"

namespace pagoda::sampling {

constexpr int kSelectThreads = 512;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kDigitBits = 10;
constexpr int kNumBins = 1 << kDigitBits;

__device__ __forceinline__ Tally operator+(Tally a, Tally b) { return {a.count + b.count, a.mass + b.mass}; }

// Where to stop, from the largest key down: at a number of keys, or at a mass.
struct Want {
  unsigned count; // 0: by mass
  double mass;
  __device__ __forceinline__ bool reached(Tally t) const { return count > 0 ? t.count >= count : static_cast<double>(t.mass) >= mass; }
};

// The bin in which a running sum reaches what is wanted.
struct Cut {
  int bin;     // -1: it never does
  Tally above; // without the bin
  Tally with;
};

// Sum over the CTA of `mine` of the threads before this one; `total` gets the sum of all.
__device__ __forceinline__ Tally scan_before(Tally mine, Tally *total) {
  __shared__ Tally warp_smem[kSelectWarps];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  Tally sum = mine;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const Tally other{__shfl_up_sync(kAllLanes, sum.count, offset), __shfl_up_sync(kAllLanes, sum.mass, offset)};
    if (lane >= offset) sum = sum + other;
  }
  __syncthreads(); // the one before has been read
  if (lane == kWarpSize - 1) warp_smem[warp] = sum;
  __syncthreads();
  Tally before{0, 0};
  Tally all{0, 0};
#pragma unroll
  for (int i = 0; i < kSelectWarps; ++i) {
    const Tally t = warp_smem[i];
    if (i < warp) before = before + t;
    all = all + t;
  }
  *total = all;
  return before + Tally{sum.count - mine.count, sum.mass - mine.mass};
}

// Bins are walked from the largest down. A thread holds a few: bins[i] is that of bin first_bin() - i.
template <int kCount> constexpr int kBinsOfThread = (kCount + kSelectThreads - 1) / kSelectThreads;
template <int kCount> __device__ __forceinline__ int first_bin() { return kCount - 1 - static_cast<int>(threadIdx.x) * kBinsOfThread<kCount>; }

// `above` is added to everything; `total` gets the sum of all. Bins below 0 are empty.
template <int kPerThread> __device__ __forceinline__ Cut cut_bins(const Tally (&bins)[kPerThread], int first_bin, Tally above, Want want, Tally *total) {
  __shared__ Cut cut_smem;
  Tally mine{0, 0};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) mine = mine + bins[i];
  Tally sum = above + scan_before(mine, total);
  *total = above + *total;
  if (threadIdx.x == 0) cut_smem.bin = -1;
  __syncthreads();
  if (!want.reached(sum) && want.reached(sum + mine)) {
    bool found = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Tally with = sum + bins[i];
      if (!found && want.reached(with)) {
        cut_smem = {first_bin - i, sum, with};
        found = true;
      }
      sum = with;
    }
  }
  __syncthreads();
  return cut_smem;
}

static_assert(kNumBins % kSelectThreads == 0, "every thread holds as many bins");

struct BinsSmem {
  unsigned counts[kNumBins];
  unsigned long long masses[kNumBins];
};

// The smallest key that belongs to the largest ones wanted; `kept` gets their sums. for_each(f) calls f(key, mass) for every key of
// kBits bits, each by one thread of the CTA. The keys together reach what is wanted.
template <int kBits, typename ForEach>
__device__ __forceinline__ unsigned long long select_key(ForEach for_each, BinsSmem *bins_smem, Tally above, Want want, Tally *kept) {
  unsigned long long prefix = 0;
  int shift = kBits;
  while (shift > 0) {
    const int bits = shift < kDigitBits ? shift : kDigitBits;
    const int top = shift;
    shift -= bits;
    for (int i = threadIdx.x; i < kNumBins; i += kSelectThreads) bins_smem->counts[i] = 0, bins_smem->masses[i] = 0;
    __syncthreads();
    for_each([&](unsigned long long key, unsigned long long mass) {
      if ((key >> top) != prefix) return;
      const int bin = static_cast<int>(key >> shift) & ((1 << bits) - 1);
      atomicAdd(&bins_smem->counts[bin], 1u);
      if (mass != 0) atomicAdd(&bins_smem->masses[bin], mass);
    });
    __syncthreads();
    Tally total;
    const int first = first_bin<kNumBins>();
    Tally bins[kBinsOfThread<kNumBins>];
#pragma unroll
    for (int i = 0; i < kBinsOfThread<kNumBins>; ++i) bins[i] = {bins_smem->counts[first - i], bins_smem->masses[first - i]};
    const Cut cut = cut_bins(bins, first, above, want, &total);
    *kept = cut.bin < 0 ? total : cut.with;
    if (cut.bin < 0) return prefix << top;
    prefix = prefix << bits | static_cast<unsigned>(cut.bin);
    above = cut.above;
    if (cut.with.count - cut.above.count == 1) break; // nobody else has these bits
    __syncthreads();
  }
  return prefix << shift;
}

// A float as an integer of the same order: NaN below everything, both zeros equal.
__device__ __forceinline__ unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);
  if (x != x) return 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

} // namespace pagoda::sampling
