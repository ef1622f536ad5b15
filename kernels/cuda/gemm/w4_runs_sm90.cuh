// Product with 4-bit weights for sm_90 and later, up to 8 tokens: out[t, i] = sum_c x[t, c] * w[i, c], w in tiles of 16 x 64 (pagoda_w4.h).
//
// A CTA has some tile rows. Its tiles, row after row, are dealt to the warps in runs of equal length; a warp keeps a ring of its own full with
// bulk copies of up to four tiles and eats it, the weights as the m side of mma.m16n8k16 and the tokens as its n side. x lies in shared memory.
//
//   3 rows x 5 columns, 4 warps:   0 0 0 0 1     a piece is what one warp has of one row: 16 x tokens sums that go to slot
//                                  1 1 1 2 2     row + warp, and are added in order of warp
//                                  2 2 3 3 3
//
// The order of additions depends on n, k and the number of CTAs alone. Weights never change, so the rings are filled before waiting for the
// previous kernel, and so is the table of pairs. Bound by traffic of shared memory (some 28 passes of 128 bytes a tile, 16 of them the table)
// as much as by HBM.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/tensor_copy.cuh"
#include "ring.cuh"
#include "w4_factors.cuh"
#include "w4_output.cuh"
#include "w4_ring.cuh"

namespace pagoda {

template <W4Scaling kScale, int kCtaWarps = 16, int kCopy = 4, int kAhead = 4, int kCtas = 1> struct W4Runs {
  static constexpr int kWarps = kCtaWarps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kCopyTiles = kCopy; // of one bulk copy
  static constexpr int kUnroll = kAhead;   // tiles whose loads are under way
  static constexpr int kMinCtas = kCtas;   // of a multiprocessor
  static constexpr W4Scaling kScaling = kScale;
};

constexpr int kSlotStride = 20; // floats from one token's 16 sums to the next: a warp's stores meet in no bank
constexpr int kXPad = 16;       // bytes behind a row of x, so that neighbouring rows lie in different banks

inline int w4_runs_ctas(const pagoda_w4_gemm_params &p) {
  const int rows = w4_row_tiles(p.w);
  return rows < p.max_ctas ? rows : p.max_ctas;
}

template <typename Kernel> int w4_runs_smem_bytes(const pagoda_w4_gemm_params &p) {
  const int ctas = w4_runs_ctas(p), num_rows = (w4_row_tiles(p.w) + ctas - 1) / ctas;
  const int ring = Kernel::kWarps * p.num_stages * Kernel::kCopyTiles * W4Tile(p.w).bytes(), slots = (num_rows + Kernel::kWarps - 1) * p.num_tokens * kSlotStride * 4;
  return kPairTableBytes + p.num_tokens * (p.w.k * 2 + kXPad) + ring + slots;
}

#if __CUDA_ARCH__ >= 900

// Tile rows of a CTA, and how its tiles are dealt.
template <typename Kernel> struct W4RunsWork {
  int row_begin, num_rows, num_cols, num_tiles;
  __device__ __forceinline__ explicit W4RunsWork(const pagoda_w4_gemm_params &p) {
    const int rows = w4_row_tiles(p.w), base = rows / gridDim.x, more = rows % gridDim.x;
    row_begin = base * blockIdx.x + min(static_cast<int>(blockIdx.x), more);
    num_rows = base + (blockIdx.x < more ? 1 : 0);
    num_cols = p.w.k / W4Tile::kCols;
    num_tiles = num_rows * num_cols;
  }
  // Runs begin at whole copies: where K / 64 is a multiple of four, every copy then begins with a line of memory.
  __device__ __forceinline__ int num_copies() const { return (num_tiles + Kernel::kCopyTiles - 1) / Kernel::kCopyTiles; }
  // Warps that have a run, the first ones: there is no empty run between two others, whose slot nobody would write.
  __device__ __forceinline__ int num_runs() const { return min(Kernel::kWarps, num_copies()); }
  __device__ __forceinline__ int run_begin(int warp) const { return min(num_copies() * warp / num_runs() * Kernel::kCopyTiles, num_tiles); }
  // The warp that has a tile.
  __device__ __forceinline__ int warp_of(int tile) const { return ((tile / Kernel::kCopyTiles + 1) * num_runs() - 1) / num_copies(); }
};

// One warp: sums += kCount tiles side by side times x, whose columns lie as w4_put_x leaves them. Operands of lanes without a token stay zero.
template <typename Kernel, int kCount>
__device__ __forceinline__ void w4_multiply(float (&sums)[4], const W4Lane<Kernel::kScaling> &mine, uint32_t tile_smem, uint32_t tile_bytes, uint32_t x_smem, bool has_token) {
  constexpr int kSteps = kScaledSteps<Kernel::kScaling>;
  uint4 codes[kCount], x_frag[kCount][2] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) codes[i] = ptx::load_shared_16b(tile_smem + i * tile_bytes + mine.lane_offset * 4);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    ptx::load_shared_16b_if(x_frag[i][0], x_smem + i * 128, has_token);
    ptx::load_shared_16b_if(x_frag[i][1], x_smem + i * 128 + 16, has_token);
    const uint32_t words[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
    const uint4 &low = x_frag[i][0], &high = x_frag[i][1];
    const uint32_t b[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int first = 0; first < 4; first += kSteps) {
      const W4LaneFactors<Kernel::kScaling> factors = mine.factors(tile_smem + i * tile_bytes, first);
      float part[4] = {};
#pragma unroll
      for (int j = first; j < first + kSteps; ++j) {
        uint32_t a[4];
        mine.decode(a, words[j], factors);
        ptx::mma_bf16(part, a[0], a[1], a[2], a[3], b[2 * j], b[2 * j + 1]);
      }
      factors.add(sums, part);
    }
  }
}

// One warp: a piece to its slot, [token][16 rows].
__device__ __forceinline__ void w4_put(float (&sums)[4], uint32_t slot_smem, int num_tokens, int lane) {
  const uint32_t address = slot_smem + (lane % 4 * 2 * kSlotStride + lane / 4) * 4;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (lane % 4 * 2 + e % 2 < num_tokens) ptx::store_shared(address + (e % 2 * kSlotStride + e / 2 * 8) * 4, sums[e]);
    sums[e] = 0.0f;
  }
}

// Adds `count` floats `stride` bytes apart in order; four loads are under way at a time.
__device__ __forceinline__ float w4_add_pieces(uint32_t smem, int stride, int count) {
  float sum = 0.0f;
  for (int i = 0; i < count; i += 4, smem += 4 * stride) {
    uint32_t v[4] = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e < count) v[e] = ptx::load_shared_4b(smem + e * stride);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) sum += __uint_as_float(v[e]);
  }
  return sum;
}

// One output of a thread. Sixteen neighbouring threads have the rows of one tile row, or twice eight when gated. What does not depend on the sums
// is read before they are there.
template <typename Kernel> struct W4RunsOutput {
  W4Output out;
  uint32_t slot_smem = 0;
  int count = 0; // pieces; 0: there is no such output

  __device__ __forceinline__ W4RunsOutput(const pagoda_w4_gemm_params &p, const W4RunsWork<Kernel> &work, uint32_t slots_smem, int index) {
    const int row_bits = p.gated ? 3 : 4, row = threadIdx.x & ((1 << row_bits) - 1), i = index + (threadIdx.x >> row_bits);
    if (i >= work.num_rows * p.num_tokens) return;
    const int tile = p.num_tokens == 1 ? i : i / p.num_tokens, token = i - tile * p.num_tokens;
    const int first = work.warp_of(tile * work.num_cols);
    count = work.warp_of((tile + 1) * work.num_cols - 1) - first + 1;
    slot_smem = slots_smem + ((tile + first) * p.num_tokens + token) * kSlotStride * 4 + row * 4;
    out.place(p, work.row_begin + tile, row, token);
  }
  __device__ __forceinline__ void finish(const pagoda_w4_gemm_params &p, float factor) const {
    if (count == 0) return;
    const int slot_bytes = p.num_tokens * kSlotStride * 4;
    const float sum = w4_add_pieces(slot_smem, slot_bytes, count), up_sum = p.gated ? w4_add_pieces(slot_smem + 32, slot_bytes, count) : 0.0f;
    out.write(p, sum * factor, up_sum * factor);
  }
  // From an index to that of a thread's next output.
  __device__ __forceinline__ static int stride(const pagoda_w4_gemm_params &p) { return Kernel::kThreads >> (p.gated ? 3 : 4); }
};

// x to shared memory. Within 64 columns lane t finds its operands of step j, columns 16 j + 2 t, + 1 and + 8, + 9, at 32 t + 8 j.
template <typename Kernel> __device__ __forceinline__ void w4_put_x(const pagoda_w4_gemm_params &p, uint32_t x_smem, int x_stride) {
  constexpr int kLoads = 4; // under way in a thread
  const int row_vecs = p.w.k / 8;
  for (int token = 0; token < p.num_tokens; ++token) {
    const bf16 *row_gmem = static_cast<const bf16 *>(p.x) + static_cast<int64_t>(token) * p.w.k;
    for (int first = threadIdx.x; first < row_vecs; first += kLoads * Kernel::kThreads) {
      uint4 v[kLoads];
#pragma unroll
      for (int e = 0; e < kLoads; ++e) v[e] = ptx::load_16b(row_gmem + min(first + e * Kernel::kThreads, row_vecs - 1) * 8);
#pragma unroll
      for (int e = 0; e < kLoads; ++e) {
        const int i = first + e * Kernel::kThreads;
        const uint32_t address = x_smem + token * x_stride + i / 8 * 128 + i % 8 * 4;
        if (i >= row_vecs) break;
        ptx::store_shared_4b(address, v[e].x);
        ptx::store_shared_4b(address + 32, v[e].y);
        ptx::store_shared_4b(address + 64, v[e].z);
        ptx::store_shared_4b(address + 96, v[e].w);
      }
    }
  }
}

#endif

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinCtas) w4_runs_sm90_kernel(const __grid_constant__ pagoda_w4_gemm_params p, const __grid_constant__ W4Book book) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char dynamic_smem[];
  __shared__ alignas(8) uint64_t barriers_smem[Kernel::kWarps * kMaxW4Stages];
  const int lane = ptx::lane_id(), warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const W4RunsWork<Kernel> work(p);
  const W4Tile tile(p.w);
  const int tile_bytes = tile.bytes(), stage_bytes = Kernel::kCopyTiles * tile_bytes, x_stride = p.w.k * 2 + kXPad, slot_bytes = p.num_tokens * kSlotStride * 4;
  const uint32_t x_smem = ptx::smem_address(dynamic_smem) + kPairTableBytes, rings = x_smem + p.num_tokens * x_stride, ring = rings + warp * p.num_stages * stage_bytes;
  const uint32_t slots = rings + Kernel::kWarps * p.num_stages * stage_bytes, full = ptx::smem_address(barriers_smem) + warp * kMaxW4Stages * 8;

  // A run lies in one piece. By the first lane: the next copy of it.
  const int begin = work.run_begin(warp), end = work.run_begin(warp + 1);
  const unsigned char *next_gmem = static_cast<const unsigned char *>(p.w.tiles) + tile.offset(work.row_begin, 0) + static_cast<int64_t>(begin) * tile_bytes;
  int not_copied = end - begin;
  auto fill = [&](int stage) {
    const int bytes = min(Kernel::kCopyTiles, not_copied) * tile_bytes;
    ptx::arrive_expecting(full + 8 * stage, bytes);
    ptx::copy_bytes(ring + stage * stage_bytes, next_gmem, bytes, full + 8 * stage, ptx::evict_first_policy());
    not_copied -= Kernel::kCopyTiles, next_gmem += stage_bytes;
  };
  if (lane == 0) {
#pragma unroll 1
    for (int stage = 0; stage < p.num_stages; ++stage) ptx::init_barrier(full + 8 * stage, 1);
    ptx::fence_barrier_init();
#pragma unroll 1
    for (int stage = 0; stage < p.num_stages && not_copied > 0; ++stage) fill(stage);
  }
  fill_pair_table<Kernel::kWarps == 12 ? 8 : Kernel::kWarps>(dynamic_smem, book, warp, lane);
  W4RunsOutput<Kernel> first_output(p, work, slots, 0);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  w4_put_x<Kernel>(p, x_smem, x_stride);
  first_output.out.read(p);
  __syncthreads();

  const W4Lane<Kernel::kScaling> mine(tile, dynamic_smem, lane);
  const bool has_token = lane / 4 < p.num_tokens;
  const uint32_t x_lane = x_smem + min(lane / 4, p.num_tokens - 1) * x_stride + lane % 4 * 32;
  float sums[4] = {};
  int row = begin / work.num_cols, col = begin - row * work.num_cols;
  RingSlot slot;
  for (int left = end - begin; left > 0; left -= Kernel::kCopyTiles, slot.advance(p.num_stages)) {
    ptx::wait_barrier(full + 8 * slot.stage, slot.parity);
    const uint32_t stage_smem = ring + slot.stage * stage_bytes, stage_end = stage_smem + min(Kernel::kCopyTiles, left) * tile_bytes;
#pragma unroll 1
    for (uint32_t at = stage_smem; at < stage_end;) {
      if (at + Kernel::kUnroll * tile_bytes <= stage_end && col + Kernel::kUnroll <= work.num_cols) {
        w4_multiply<Kernel, Kernel::kUnroll>(sums, mine, at, tile_bytes, x_lane + col * 128, has_token);
        at += Kernel::kUnroll * tile_bytes, col += Kernel::kUnroll;
      } else {
        w4_multiply<Kernel, 1>(sums, mine, at, tile_bytes, x_lane + col * 128, has_token);
        at += tile_bytes, ++col;
      }
      if (col == work.num_cols) w4_put(sums, slots + (row + warp) * slot_bytes, p.num_tokens, lane), col = 0, ++row;
    }
    __syncwarp();
    if (lane == 0 && not_copied > 0) fill(slot.stage);
  }
  if (col > 0) w4_put(sums, slots + (row + warp) * slot_bytes, p.num_tokens, lane);
  __syncthreads();
  first_output.finish(p, book.factor);
  for (int i = W4RunsOutput<Kernel>::stride(p); i < work.num_rows * p.num_tokens; i += W4RunsOutput<Kernel>::stride(p)) {
    W4RunsOutput<Kernel> output(p, work, slots, i);
    output.out.read(p);
    output.finish(p, book.factor);
  }
#endif
}

} // namespace pagoda
