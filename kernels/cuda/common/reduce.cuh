// Sums over a warp and over a CTA, and the best of a warp. The order of additions depends on the number of threads alone, so results repeat bit for bit.
#pragma once

namespace pagoda {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;

// Every lane gets the sum.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Every thread gets the sum; blockDim.x is a multiple of 32. Called once a kernel: it does not guard `partial_smem` against reuse.
__device__ __forceinline__ float block_sum(float v) {
  __shared__ float partial_smem[kMaxWarps];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  v = warp_sum(v);
  if (lane == 0) partial_smem[warp] = v;
  __syncthreads();
  const int num_warps = blockDim.x / kWarpSize;
  return warp_sum(lane < num_warps ? partial_smem[lane] : 0.0f);
}

// A value and where it stands.
struct Best {
  float value;
  int idx;
};

// The larger value, the lower index among equals; NaN never wins.
__device__ __forceinline__ Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.idx < a.idx) ? b : a; }

// Every lane gets the best.
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(0xffffffffu, best.value, offset), __shfl_xor_sync(0xffffffffu, best.idx, offset)};
    best = better(best, other);
  }
  return best;
}

} // namespace pagoda
