// Varlen chunked prefill attention over the paged cache, sm_80 and later (mma.sync).
//
// Grid (query tiles of all sequences, kv heads); 4 warps of 16 rows. The rows of a tile are (token, query head of the kv head) pairs, so
// that every k and v in shared memory serves all query heads of its kv head:
//
//   packed row R = token * group + head in group;   tile i holds rows 64 i .. 64 i + 63 of one sequence
//
// K and V tiles pass through two shared-memory stages; tiles above the diagonal or left of the window are not visited. Online softmax in
// f32, P rounded to bf16 as the second product's operand. Bound by the tensor cores' shared-memory traffic: every warp reads the whole
// K and V tile. After FlashAttention-2 (BSD-3-Clause).
#pragma once
#include "../common/reduce.cuh"
#include "../common/status.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/mma.cuh"
#include "paged_kv.cuh"
#include "softmax.cuh"

namespace pagoda {

constexpr int kPrefillWarps = 4;
constexpr int kBlockM = 16 * kPrefillWarps;

template <int kHeadDim> struct PrefillSmem {
  static_assert(kHeadDim % 16 == 0, "a head is a whole number of k steps of the product");
  static constexpr int kBlockN = kHeadDim <= 128 ? 64 : 32; // two CTAs an SM
  static constexpr int kStride = kHeadDim + 8;              // an odd number of 16-byte columns: no bank conflicts in ldmatrix
  bf16 q[kBlockM * kStride];
  bf16 kv[2][2][kBlockN * kStride]; // [stage][k, v]
};

// A tile: rows of one sequence and the keys they see.
struct PrefillWork {
  int seq, row0, first_packed; // first row of the sequence in the step; first packed row of the tile
  int query_len, group;
  int computed;           // position of the sequence's first query token
  int key_begin, key_end; // union over the tile's rows
};

// The tile blockIdx.x of the step: sequences with more than one query token in order, each with its last (longest) tile first.
__device__ __forceinline__ bool prefill_work(const pagoda_attention_params &p, PrefillWork &w) {
  const int lane = threadIdx.x % kWarpSize;
  w.group = p.num_heads / p.num_kv_heads;
  int remaining = blockIdx.x;
  for (int base = 0; base < p.num_seqs; base += kWarpSize) {
    const int seq = base + lane;
    const int query_len = seq < p.num_seqs ? p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq] : 0;
    const int tiles = query_len > 1 ? (query_len * w.group + kBlockM - 1) / kBlockM : 0;
    int end = tiles; // inclusive prefix sum
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, end, offset);
      if (lane >= offset) end += below;
    }
    const unsigned holds = __ballot_sync(0xffffffffu, remaining < end);
    if (holds == 0) {
      remaining -= __shfl_sync(0xffffffffu, end, kWarpSize - 1);
      continue;
    }
    const int owner = __ffs(holds) - 1;
    const int tile = __shfl_sync(0xffffffffu, end, owner) - 1 - remaining;
    w.seq = base + owner;
    w.query_len = __shfl_sync(0xffffffffu, query_len, owner);
    w.row0 = p.cu_seqlens_q[w.seq];
    w.first_packed = tile * kBlockM;
    w.computed = p.context_lens[w.seq] - w.query_len;
    const int first_token = w.first_packed / w.group;
    const int last_token = min((w.first_packed + kBlockM - 1) / w.group, w.query_len - 1);
    w.key_end = w.computed + last_token + 1;
    w.key_begin = p.window > 0 ? max(0, w.computed + first_token - p.window + 1) : 0;
    return true;
  }
  return false;
}

template <int kHeadDim> __device__ __forceinline__ void load_q(const pagoda_attention_params &p, const PrefillWork &w, bf16 *q_smem) {
  constexpr int kChunks = kHeadDim / 8;
  const int64_t qkv_heads = p.num_heads + 2 * p.num_kv_heads;
  const int first_head = blockIdx.y * w.group;
  for (int i = threadIdx.x; i < kBlockM * kChunks; i += kPrefillWarps * kWarpSize) {
    const int row = i / kChunks, col = i % kChunks * 8;
    const int packed = w.first_packed + row;
    const int token = packed / w.group;
    const bool valid = token < w.query_len;
    const int64_t head = (w.row0 + (valid ? token : 0)) * qkv_heads + first_head + packed % w.group;
    ptx::copy_16b_async(ptx::smem_address(q_smem + row * PrefillSmem<kHeadDim>::kStride + col), static_cast<const bf16 *>(p.qkv) + head * kHeadDim + col, valid);
  }
}

template <int kHeadDim> __device__ __forceinline__ void load_kv(const pagoda_attention_params &p, const PrefillWork &w, bf16 (*stage)[PrefillSmem<kHeadDim>::kBlockN * PrefillSmem<kHeadDim>::kStride], int first_key) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kThreads = kPrefillWarps * kWarpSize;
  const PagedKv cache{p.num_kv_heads, p.block_size, kHeadDim};
  const int32_t *table = p.block_tables + static_cast<int64_t>(w.seq) * p.max_blocks_per_seq;
  const bf16 *kv_gmem = static_cast<const bf16 *>(p.kv);
#pragma unroll
  for (int i = threadIdx.x; i < PrefillSmem<kHeadDim>::kBlockN * kChunks; i += kThreads) {
    const int row = i / kChunks, col = i % kChunks * 8;
    const int key = first_key + row;
    const bool valid = key >= w.key_begin && key < w.key_end;
    const int block = valid ? table[key / p.block_size] : 0;
    const bf16 *k_gmem = kv_gmem + cache.k_offset(block, blockIdx.y, valid ? key % p.block_size : 0) + col;
    const int smem_offset = row * PrefillSmem<kHeadDim>::kStride + col;
    ptx::copy_16b_async(ptx::smem_address(stage[0] + smem_offset), k_gmem, valid);
    ptx::copy_16b_async(ptx::smem_address(stage[1] + smem_offset), k_gmem + cache.v_distance(), valid);
  }
}

// A warp's 16 rows: g and g + 8 in a lane (lane = 4g + t).
template <int kHeadDim> struct PrefillState {
  float o[kHeadDim / 8][4] = {};
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0.0f, 0.0f}; // of this lane's columns
};

// s = Q K^T of one warp: 16 rows, kBlockN keys.
template <int kHeadDim, int kTiles> __device__ __forceinline__ void scores(float (&s)[kTiles][4], const bf16 *q_smem, const bf16 *k_smem, int lane) {
  constexpr int kStride = PrefillSmem<kHeadDim>::kStride;
  const int matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t a[4];
    ptx::load_matrix_x4(a, ptx::smem_address(q_smem + (matrix_row + matrix % 2 * 8) * kStride + i * 16 + matrix / 2 * 8));
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      ptx::load_matrix_x4(b, ptx::smem_address(k_smem + (n * 8 + matrix_row + matrix / 2 * 8) * kStride + i * 16 + matrix % 2 * 8));
      ptx::mma_bf16(s[n], a[0], a[1], a[2], a[3], b[0], b[1]);
      ptx::mma_bf16(s[n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
}

// Products to probabilities; positions[r] is the query position of row r of this lane.
template <int kHeadDim, int kTiles>
__device__ __forceinline__ void softmax_step(const pagoda_attention_params &p, float (&s)[kTiles][4], PrefillState<kHeadDim> &state, const int (&positions)[2], int first_key, bool masked, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = state.m[r];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float &v = s[n][2 * r + e];
        v = score(v, p.scale, p.soft_cap);
        const int key = first_key + n * 8 + lane % 4 * 2 + e;
        const bool seen = key <= positions[r] && (p.window == 0 || key > positions[r] - p.window);
        if (masked && !seen) v = -INFINITY;
        m = fmaxf(m, v);
      }
    }
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const float base = finite_max(m);
    const float rescale = exp2f(state.m[r] - base);
    state.m[r] = m;
    state.l[r] *= rescale;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        s[n][2 * r + e] = exp2f(s[n][2 * r + e] - base);
        state.l[r] += s[n][2 * r + e];
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      state.o[i][2 * r] *= rescale;
      state.o[i][2 * r + 1] *= rescale;
    }
  }
}

// o += P V of one warp.
template <int kHeadDim, int kTiles> __device__ __forceinline__ void accumulate(PrefillState<kHeadDim> &state, const float (&s)[kTiles][4], const bf16 *v_smem, int lane) {
  constexpr int kStride = PrefillSmem<kHeadDim>::kStride;
  const int matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    const uint32_t a[4] = {pack_bf16(s[n][0], s[n][1]), pack_bf16(s[n][2], s[n][3]), pack_bf16(s[n + 1][0], s[n + 1][1]), pack_bf16(s[n + 1][2], s[n + 1][3])};
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      uint32_t b[4];
      ptx::load_matrix_x4_trans(b, ptx::smem_address(v_smem + (n * 8 + matrix_row + matrix % 2 * 8) * kStride + i * 16 + matrix / 2 * 8));
      ptx::mma_bf16(state.o[2 * i], a[0], a[1], a[2], a[3], b[0], b[1]);
      ptx::mma_bf16(state.o[2 * i + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
}

template <int kHeadDim> __device__ __forceinline__ void store_rows(const pagoda_attention_params &p, const PrefillWork &w, PrefillState<kHeadDim> &state, int warp, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    state.l[r] += __shfl_xor_sync(0xffffffffu, state.l[r], 1);
    state.l[r] += __shfl_xor_sync(0xffffffffu, state.l[r], 2);
    const int packed = w.first_packed + warp * 16 + lane / 4 + r * 8;
    const int token = packed / w.group;
    if (token >= w.query_len) continue;
    const int64_t head = static_cast<int64_t>(w.row0 + token) * p.num_heads + blockIdx.y * w.group + packed % w.group;
    uint32_t *out_gmem = reinterpret_cast<uint32_t *>(static_cast<bf16 *>(p.out) + head * kHeadDim) + lane % 4;
    const float inverse = 1.0f / state.l[r];
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) out_gmem[i * 4] = pack_bf16(state.o[i][2 * r] * inverse, state.o[i][2 * r + 1] * inverse);
  }
}

template <int kHeadDim> __global__ void __launch_bounds__(kPrefillWarps *kWarpSize) attention_prefill_kernel(const __grid_constant__ pagoda_attention_params p) {
  using Smem = PrefillSmem<kHeadDim>;
  constexpr int kBlockN = Smem::kBlockN;
  extern __shared__ __align__(16) char smem_bytes[];
  Smem &smem = *reinterpret_cast<Smem *>(smem_bytes);
  PrefillWork w;
  if (!prefill_work(p, w)) return;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int packed = w.first_packed + warp * 16 + lane / 4;
  const int positions[2] = {w.computed + packed / w.group, w.computed + (packed + 8) / w.group};

  PrefillState<kHeadDim> state;
  int first_key = w.key_begin / kBlockN * kBlockN;
  load_q<kHeadDim>(p, w, smem.q);
  load_kv<kHeadDim>(p, w, smem.kv[0], first_key);
  ptx::commit_copies();
  for (int stage = 0; first_key < w.key_end; first_key += kBlockN, stage ^= 1) {
    if (first_key + kBlockN < w.key_end) load_kv<kHeadDim>(p, w, smem.kv[stage ^ 1], first_key + kBlockN);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncthreads();
    float s[kBlockN / 8][4] = {};
    scores<kHeadDim>(s, smem.q + warp * 16 * Smem::kStride, smem.kv[stage][0], lane);
    const bool masked = p.window > 0 || first_key + kBlockN - 1 > w.computed + w.first_packed / w.group;
    softmax_step<kHeadDim>(p, s, state, positions, first_key, masked, lane);
    accumulate<kHeadDim>(state, s, smem.kv[stage][1], lane);
    __syncthreads();
  }
  store_rows<kHeadDim>(p, w, state, warp, lane);
}

} // namespace pagoda
