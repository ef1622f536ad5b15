// Product of few tokens with rows of GGUF's blocks: out[t, i] = sum_k x[t, k] * w[i, k], plain multiply-adds.
//
// A warp takes two rows (of a gated product a gate and its up), a lane a unit of 32 values of each (quant/block_formats.cuh) in every step of
// 1024 columns; the units of the next step are under way meanwhile, those of the first step before the wait for the previous kernel. Each value
// of a unit is made once and multiplied with all tokens. x lies in shared memory, kChunkCols columns at a time.
//
//   row: | lane 0 | lane 1 | ... | lane 31 | lane 0 | ...      16 bytes of codes and up to 36 others, of Q8_0 32
//
// A token's sum is added up in the same order whatever other tokens there are. Not measured yet. By counting instructions one token is bound by
// memory, and 8 tokens by multiply-adds, at about 1.6 times that.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/dependent_launch.cuh"
#include "../quant/block_formats.cuh"
#include "skinny_output.cuh"

namespace pagoda {

struct BlocksGemm {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = 2;
  static constexpr int kSmemBytes = 32 << 10;
  // Of x in shared memory: columns of each token, and as octets of 16 bytes.
  __host__ __device__ static constexpr int chunk_cols(int tokens) { return kSmemBytes / (2 * tokens); }
  __host__ __device__ static constexpr int chunk_octets(int tokens) { return chunk_cols(tokens) / kOctetValues; }
};

// Where octet `c` of columns lies: lanes read octets that are 2 to 16 apart, eight lanes at once, and meet in no bank.
__device__ __forceinline__ int swizzled(int c) { return c ^ (c >> 3 & 1) ^ (c >> 4 & 1) * 7; }

// Columns first .. of kTokens tokens; zeros for tokens past the end.
template <int kTokens> __device__ __forceinline__ void fill_chunk(uint4 *x_smem, const pagoda_skinny_gemm_params &p, int first_token, int first) {
  constexpr int kOctets = BlocksGemm::chunk_octets(kTokens);
  for (int i = threadIdx.x; i < kTokens * kOctets; i += BlocksGemm::kThreads) {
    const int t = i / kOctets, c = i % kOctets, token = first_token + t, col = first + c * kOctetValues;
    if (col >= p.k) continue;
    uint4 octet = make_uint4(0, 0, 0, 0);
    if (token < p.num_tokens) octet = ptx::load_16b(static_cast<const bf16 *>(p.x) + static_cast<int64_t>(token) * p.k + col);
    x_smem[t * kOctets + swizzled(c)] = octet;
  }
}

// sums += products of a unit of each row with all tokens; its runs begin at octets c0 and c1 of the chunk.
template <typename Block, int kTokens> __device__ __forceinline__ void add_unit(float (&sums)[BlocksGemm::kRows][kTokens], const Block (&blocks)[BlocksGemm::kRows], const uint4 *x_smem, int c0, int c1) {
#pragma unroll
  for (int run = 0; run < 2; ++run) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float w[BlocksGemm::kRows][kOctetValues];
#pragma unroll
      for (int r = 0; r < BlocksGemm::kRows; ++r) blocks[r].octet(w[r], run, half);
      const int place = swizzled((run ? c1 : c0) + half);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const uint4 x = x_smem[t * BlocksGemm::chunk_octets(kTokens) + place];
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < kOctetValues; ++i) {
          const float value = i % 2 ? high_f32(words[i / 2]) : low_f32(words[i / 2]);
#pragma unroll
          for (int r = 0; r < BlocksGemm::kRows; ++r) sums[r][t] = fmaf(w[r][i], value, sums[r][t]);
        }
      }
    }
  }
}

template <typename Block, int kTokens> __global__ void __launch_bounds__(BlocksGemm::kThreads, kTokens == 1 ? 3 : 2) blocks_gemm_kernel(const __grid_constant__ pagoda_blocks_gemm_params params) {
  using S = BlocksGemm;
  using Row = BlockRow<Block>;
  constexpr int kRows = S::kRows, kChunkCols = S::chunk_cols(kTokens);
  static_assert(kChunkCols % (kWarpSize * kUnitValues) == 0, "a lane's units go on from chunk to chunk, and no block lies in two");
  __shared__ uint4 x_smem[kTokens * S::chunk_octets(kTokens)];
  const pagoda_skinny_gemm_params &p = params.gemm;
  const int lane = threadIdx.x % kWarpSize;
  const int group = blockIdx.x * S::kWarps + threadIdx.x / kWarpSize;
  const int first_token = blockIdx.y * kTokens;
  const int num_units = p.k / kUnitValues;
  // Rows past the end repeat the last one; their sums are not stored.
  const int row0 = p.gated ? group : kRows * group, row1 = p.gated ? p.n / 2 + group : kRows * group + 1;
  const Row rows[kRows] = {{p.w, min(row0, p.n - 1), p.k}, {p.w, min(row1, p.n - 1), p.k}};

  Block next[kRows];
  auto load = [&](int unit) {
    if (unit >= num_units) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r].load(next[r], unit);
  };
  load(lane);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  float sums[kRows][kTokens] = {};
  for (int first = 0; first < p.k; first += kChunkCols) {
    if (first > 0) __syncthreads();
    fill_chunk<kTokens>(x_smem, p, first_token, first);
    __syncthreads();
    const int end = min(num_units, (first + kChunkCols) / kUnitValues);
#pragma unroll 1
    for (int unit = first / kUnitValues + lane; unit < end; unit += kWarpSize) {
      const Block blocks[kRows] = {next[0], next[1]};
      load(unit + kWarpSize);
      add_unit(sums, blocks, x_smem, (Row::first(unit, 0) - first) / kOctetValues, (Row::first(unit, 1) - first) / kOctetValues);
    }
  }

  const int out_cols = skinny_out_cols(p);
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sum0 = warp_sum(sums[0][t]), sum1 = warp_sum(sums[1][t]);
    const int token = first_token + t;
    if (token >= p.num_tokens) continue;
    if (lane == 0 && row0 < out_cols) skinny_finish(p, token, row0, sum0, sum1);
    if (lane == 1 && !p.gated && row1 < out_cols) skinny_finish(p, token, row1, sum1, 0.0f);
  }
}

} // namespace pagoda
