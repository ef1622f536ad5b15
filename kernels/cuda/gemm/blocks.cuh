// Product of few tokens, 32 a pass, with rows of GGUF's blocks: out[t, i] = sum_k x[t, k] * w[i, k], on tensor cores (sm_80 and later).
//
// A CTA takes a group of tiles of 16 rows (of a gated product 8 of gate and their 8 of up), or, of up to 8 tokens, walks over groups. A warp takes
// a tile and every kSplit-th step of 128 columns; a lane has codes of two rows (quant/block_formats.cuh). Codes are whole numbers, which bf16
// holds: the tensor core adds up code * x of a group exactly as it does any products, and its sum is multiplied with the group's scale in f32. What is added to all values of a group
// multiplies the sum of its x, which a product with ones gives; there codes stay 128 too large, and the sum of x makes up for it. So no weight is
// rounded.
//
//   row g:  | step 0 | step 1 | step 2 | step 3 | ...       warp (kSplit = 2): 0 1 0 1
//            lanes 4g .. 4g + 3 have eight columns each of every group of 32
//
// Codes of the next steps, over the borders of tiles, are under way meanwhile, those of the first before the wait for the previous kernel. x lies
// in shared memory: all of it, where it fits, for all tiles of a CTA, else some columns at a time. The sums of the kSplit warps meet in shared
// memory, in their order: a token's sum is added up in an order that depends on the matrix and the plan alone.
//
// Roof: memory (7B, gate and up in Q4_K: 76 MB, 17 us at 4.5 TB/s), and close to it instructions: about 260 a step, 2,048 weights, of a warp make
// 19 us of issue slots of 132 multiprocessors for that matrix. Measured in docs/performance.md.
#pragma once
#include "../ptx/async_copy.cuh"
#include "../ptx/dependent_launch.cuh"
#include "../ptx/mma.cuh"
#include "../quant/block_formats.cuh"
#include "skinny_output.cuh"

namespace pagoda {

struct BlocksGemm {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTileRows = 16;
  static constexpr int kTileTokens = 8;
  static constexpr int kStepBytes = kStepCols * 2; // of a token's x
  static constexpr int kXBytes = 64 << 10;         // of x in shared memory at once, at most

  // Whether CTAs walk over groups of tiles, which pays where they can keep x.
  __host__ __device__ static constexpr bool walks(int tiles) { return tiles == 1; }
  // Columns of x in shared memory at once: all, or whole rounds of the warps that share a tile.
  __host__ __device__ static int chunk_cols(int tokens, int k, int split) {
    const int all = (k + kStepCols - 1) / kStepCols * kStepCols, round = kStepCols * split;
    const int fit = kXBytes / (2 * tokens);
    return all <= fit ? all : fit / round * round;
  }
  // Sums of a CTA's warps, and of the tiles before them.
  __host__ __device__ static constexpr int sums_bytes(int tiles, int split) { return split > 1 ? 2 * kThreads * tiles * 16 : 0; }
};

// Where a byte of a token's columns lies: the lanes of half a warp read 32 bytes of each of four neighbouring tokens, and meet in no bank.
__device__ __forceinline__ int swizzled(int byte, int token) { return byte ^ (token & 3) << 5; }

// Columns first .. first + cols of the tokens, zeros past the last one.
__device__ __forceinline__ void fill_chunk(uint32_t x_smem, const pagoda_skinny_gemm_params &p, int first_token, int tokens, int first, int cols) {
  constexpr int kCopyCols = 8;
  const int copies = cols / kCopyCols;
  for (int i = threadIdx.x; i < tokens * copies; i += BlocksGemm::kThreads) {
    const int t = i / copies, c = i % copies, col = first + c * kCopyCols;
    const bf16 *x_gmem = static_cast<const bf16 *>(p.x) + static_cast<int64_t>(first_token + t) * p.k + col;
    ptx::copy_16b_async(x_smem + t * cols * 2 + swizzled(c * 16, t), col < p.k ? x_gmem : p.x, col < p.k);
  }
  ptx::commit_copies();
  ptx::wait_copies<0>();
}

// sums += scales of rows g and g + 8, times d.
__device__ __forceinline__ void add_scaled(float (&sums)[4], const float (&d)[4], float scale0, float scale1) {
  sums[0] = fmaf(scale0, d[0], sums[0]), sums[1] = fmaf(scale0, d[1], sums[1]);
  sums[2] = fmaf(scale1, d[2], sums[2]), sums[3] = fmaf(scale1, d[3], sums[3]);
}

// Adds the products of a step of two rows of each lane. `x_smem` is where each token's columns of this step lie, `place` where the lane's first
// quad of a group does.
template <typename Block, int kTiles> __device__ __forceinline__ void add_step(float (&sums)[kTiles][4], const Block (&blocks)[2], const float2 (&factors)[2], const uint32_t (&x_smem)[kTiles], int place, uint32_t base) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  constexpr SecondFactor kSecond = Block::kSecond;
#pragma unroll
  for (int group = 0; group < kStepGroups; ++group) {
    uint32_t w[2][4];
    float scale[2], second[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kSecond == SecondFactor::kShift) blocks[r].codes.raised_pairs(w[r], group, base);
      else blocks[r].pairs(w[r], group, base);
      scale[r] = of_group(factors[r].x, group);
      if constexpr (kSecond != SecondFactor::kNone) second[r] = of_group(factors[r].y, group);
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const uint2 x0 = ptx::load_shared_8b(x_smem[j] + (place ^ group * kGroupCols * 2));
      const uint2 x1 = ptx::load_shared_8b(x_smem[j] + (place ^ (group * kGroupCols * 2 + kGroupCols)));
      float d[4] = {};
      ptx::mma_bf16(d, w[0][0], w[1][0], w[0][1], w[1][1], x0.x, x0.y);
      if constexpr (kSecond == SecondFactor::kScale) {
        float later[4] = {};
        ptx::mma_bf16(later, w[0][2], w[1][2], w[0][3], w[1][3], x1.x, x1.y);
        add_scaled(sums[j], later, second[0], second[1]);
      } else {
        ptx::mma_bf16(d, w[0][2], w[1][2], w[0][3], w[1][3], x1.x, x1.y);
      }
      add_scaled(sums[j], d, scale[0], scale[1]);
      if constexpr (kSecond == SecondFactor::kShift) {
        float of_x[4] = {};
        ptx::mma_bf16(of_x, kOnes, kOnes, kOnes, kOnes, x0.x, x0.y);
        ptx::mma_bf16(of_x, kOnes, kOnes, kOnes, kOnes, x1.x, x1.y);
        add_scaled(sums[j], of_x, second[0], second[1]);
      }
    }
  }
}

// Sums of a tile's warps, in their order; of each tile of tokens one warp has them. `sums_smem` is not that of the call before.
template <int kTiles, int kSplit> __device__ __forceinline__ void add_warps(float (&sums)[kTiles][4], float4 *sums_smem, int warp, int lane) {
  const int part = warp % kSplit;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) sums_smem[(warp * kTiles + j) * 32 + lane] = make_float4(sums[j][0], sums[j][1], sums[j][2], sums[j][3]);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j % kSplit != part) continue;
    sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < kSplit; ++i) {
      const float4 more = sums_smem[((warp - part + i) * kTiles + j) * 32 + lane];
      sums[j][0] += more.x, sums[j][1] += more.y, sums[j][2] += more.z, sums[j][3] += more.w;
    }
  }
}

// The steps of a warp in the order of loading, of one tile or of all that a walk comes to.
template <typename Block, int kSplit, bool kWalks> struct BlocksCursor {
  using Row = BlockRow<Block>;
  const pagoda_skinny_gemm_params &p;
  const int num_tiles, num_steps, stride; // of tiles
  int tile, step;
  Row rows[2];

  __device__ __forceinline__ BlocksCursor(const pagoda_skinny_gemm_params &params, int first_tile, int tile_stride, int part, int g)
      : p(params), num_tiles((params.n + BlocksGemm::kTileRows - 1) / BlocksGemm::kTileRows), num_steps(Row::num_steps(params.k)), stride(tile_stride),
        tile(first_tile), step(part), rows{row_of(params, first_tile, g, 0), row_of(params, first_tile, g, 1)} {}

  // Row g or g + 8 of a tile; past the end the last row, whose sums are not stored.
  __device__ __forceinline__ static int index_of(const pagoda_skinny_gemm_params &p, int tile, int g, int second) {
    return p.gated ? second * (p.n / 2) + tile * 8 + g : tile * BlocksGemm::kTileRows + second * 8 + g;
  }
  __device__ __forceinline__ static Row row_of(const pagoda_skinny_gemm_params &p, int tile, int g, int second) {
    return Row(p.w, min(index_of(p, tile, g, second), p.n - 1), p.k);
  }
  // The next step's codes; leaves `blocks` alone where there is none.
  __device__ __forceinline__ void load(Block (&blocks)[2], int g, int t) {
    if (tile >= num_tiles || step >= num_steps) return;
    rows[0].load(blocks[0], step, t), rows[1].load(blocks[1], step, t);
    step += kSplit;
    if (!kWalks || step < num_steps) return;
    step %= kSplit, tile += stride;
    rows[0] = row_of(p, tile, g, 0), rows[1] = row_of(p, tile, g, 1);
  }
};

// Stores what a lane has of a tile: of rows row0 and row1 two tokens in every tile of them that its warp added up.
template <int kTiles, int kSplit>
__device__ __forceinline__ void store_sums(const pagoda_skinny_gemm_params &p, const float (&sums)[kTiles][4], int row0, int row1, int first_token, int tokens, int part, int t) {
  const int out_cols = skinny_out_cols(p);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j % kSplit != part) continue;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int in_pass = j * BlocksGemm::kTileTokens + 2 * t + e;
      if (in_pass >= tokens) continue;
      if (row0 < out_cols) skinny_finish(p, first_token + in_pass, row0, sums[j][e], sums[j][2 + e]);
      if (!p.gated && row1 < out_cols) skinny_finish(p, first_token + in_pass, row1, sums[j][2 + e], 0.0f);
    }
  }
}

template <typename Block, int kTiles, int kSplit>
__global__ void __launch_bounds__(BlocksGemm::kThreads, 2) blocks_gemm_kernel(const __grid_constant__ pagoda_blocks_gemm_params params) {
  using S = BlocksGemm;
  constexpr bool kWalks = S::walks(kTiles);
  using Cursor = BlocksCursor<Block, kSplit, kWalks>;
  constexpr int kAhead = kTiles <= 2 ? 2 : 1; // steps under way
  constexpr int kGroupTiles = S::kWarps / kSplit;
  extern __shared__ __align__(128) uint8_t smem[];
  const pagoda_skinny_gemm_params &p = params.gemm;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / kStepLanes, t = lane % kStepLanes, part = warp % kSplit;
  const int first_token = blockIdx.y * kTiles * S::kTileTokens, tokens = min(kTiles * S::kTileTokens, p.num_tokens - first_token);

  Cursor cursor(p, blockIdx.x * kGroupTiles + warp / kSplit, gridDim.x * kGroupTiles, part, g);
  Block ahead[kAhead][2];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) cursor.load(ahead[i], g, t);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  const int num_steps = cursor.num_steps, num_groups = (cursor.num_tiles + kGroupTiles - 1) / kGroupTiles;
  const int chunk_cols = S::chunk_cols(tokens, p.k, kSplit), chunk_steps = chunk_cols / kStepCols;
  const bool holds_all = chunk_steps >= num_steps;
  float4 *sums_smem = reinterpret_cast<float4 *>(smem);
  const uint32_t x_smem = ptx::smem_address(smem) + S::sums_bytes(kTiles, kSplit);
  // What a lane without a token adds up is stored nowhere: it reads the first one's x.
  uint32_t token_smem[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) token_smem[j] = x_smem + (j * S::kTileTokens + g < tokens ? (j * S::kTileTokens + g) * chunk_cols * 2 : 0);
  const uint32_t base = ptx::in_register(above_128(0));
  const int place = swizzled(t * kQuadCols * 2, g);

  for (int group = blockIdx.x, round = 0; group < num_groups; group += kWalks ? gridDim.x : num_groups, ++round) {
    float sums[kTiles][4] = {};
    int step = part;
    for (int first_step = 0; first_step < num_steps; first_step += chunk_steps) {
      if (!kWalks || round == 0 || !holds_all) {
        if (kWalks && round > 0 || first_step > 0) __syncthreads();
        fill_chunk(x_smem, p, first_token, tokens, first_step * kStepCols, chunk_cols);
        __syncthreads();
      }
      const int end = min(num_steps, first_step + chunk_steps);
#pragma unroll 1
      for (; step < end; step += kSplit) {
        const Block blocks[2] = {ahead[0][0], ahead[0][1]};
        float2 factors[2] = {blocks[0].factors(step, t), blocks[1].factors(step, t)};
        if constexpr (Block::kSecond == SecondFactor::kShift) {
#pragma unroll
          for (int r = 0; r < 2; ++r) factors[r].y = fmaf(-128.0f, factors[r].x, factors[r].y);
        }
#pragma unroll
        for (int i = 0; i + 1 < kAhead; ++i) ahead[i][0] = ahead[i + 1][0], ahead[i][1] = ahead[i + 1][1];
        cursor.load(ahead[kAhead - 1], g, t);
        uint32_t step_smem[kTiles];
#pragma unroll
        for (int j = 0; j < kTiles; ++j) step_smem[j] = token_smem[j] + (step - first_step) * S::kStepBytes;
        add_step<Block, kTiles>(sums, blocks, factors, step_smem, place, base);
      }
    }
    if constexpr (kSplit > 1) add_warps<kTiles, kSplit>(sums, sums_smem + round % 2 * S::kThreads * kTiles, warp, lane);
    const int tile = group * kGroupTiles + warp / kSplit;
    store_sums<kTiles, kSplit>(p, sums, Cursor::index_of(p, tile, g, 0), Cursor::index_of(p, tile, g, 1), first_token, tokens, part, t);
  }
}

} // namespace pagoda
