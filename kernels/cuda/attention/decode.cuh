// Paged decode attention: one query row a sequence against its whole context.
//
//   S^T = K Q^T, O^T = V^T P^T:  16 keys (or 16 head dims) are the rows of a product, up to 8 query heads of one kv head its columns,
//   so that grouped queries share every k and v that is read and nothing is padded to 16 rows.
//
// Grid (splits of the context, kv heads * chunks of 8 query heads, sequences); 4 warps. A warp owns the 16-key tiles w, w + 4, ... of its
// split, copies them through its own two shared-memory stages, and keeps its own online softmax; the warps merge once at the end. With
// more than one split, each CTA leaves (o, m, l) in `partials` and the last one to arrive merges all in the order of splits: the result
// does not depend on which CTA is last. A split has a fixed length, so a sequence's sums do not depend on its batch.
//
// Bound by memory: 2 * head_dim * 2 bytes a key and kv head. Keys as rows after TurboMind's decode attention (lmdeploy, Apache-2.0);
// split and merge after Flash-Decoding (BSD-3-Clause).
#pragma once
#include "../common/reduce.cuh"
#include "../common/status.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/mma.cuh"
#include "paged_kv.cuh"
#include "softmax.cuh"

namespace pagoda {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeHeads = 8; // columns of the product
constexpr int kDecodeKeys = 16; // rows of the product
constexpr int kDecodeStages = 2;

template <int kHeadDim> struct DecodeSmem {
  static_assert(kHeadDim % 16 == 0, "a head is a whole number of k steps of the product");
  static constexpr int kStride = kHeadDim + 8; // an odd number of 16-byte columns: ldmatrix reads 8 rows without bank conflicts
  static constexpr int kTile = kDecodeKeys * kStride;
  struct Merge {
    float o[kDecodeWarps][kDecodeHeads][kHeadDim];
    float m[kDecodeWarps][kDecodeHeads];
    float l[kDecodeWarps][kDecodeHeads];
  };
  union {
    bf16 kv[kDecodeWarps][kDecodeStages][2][kTile];
    Merge merge;
  };
};

// What one CTA works on; keys lo <= key < hi.
struct DecodeWork {
  int seq, row, kv_head, first_head, num_heads; // of this CTA's chunk of at most 8
  int lo, hi, split, first_split, last_split;
};

__device__ __forceinline__ bool decode_work(const pagoda_attention_params &p, DecodeWork &w) {
  w.seq = blockIdx.z;
  w.row = p.cu_seqlens_q[w.seq];
  if (p.cu_seqlens_q[w.seq + 1] - w.row != 1) return false;
  const int group = p.num_heads / p.num_kv_heads;
  const int chunks = (group + kDecodeHeads - 1) / kDecodeHeads;
  const int chunk = blockIdx.y % chunks;
  w.kv_head = blockIdx.y / chunks;
  w.first_head = w.kv_head * group + chunk * kDecodeHeads;
  w.num_heads = min(kDecodeHeads, group - chunk * kDecodeHeads);
  const int context = p.context_lens[w.seq];
  const int begin = p.window > 0 ? max(0, context - p.window) : 0;
  w.split = blockIdx.x;
  w.first_split = begin / p.split_len;
  w.last_split = (context - 1) / p.split_len;
  w.lo = max(begin, w.split * p.split_len);
  w.hi = min(context, (w.split + 1) * p.split_len);
  return w.split >= w.first_split && w.split <= w.last_split;
}

// Starts the copies of k and v of keys first .. first + 16 into one stage; keys outside lo .. hi become zeros.
template <int kHeadDim> __device__ __forceinline__ void load_decode_tile(const pagoda_attention_params &p, const DecodeWork &w, bf16 (*stage)[DecodeSmem<kHeadDim>::kTile], int first, int lane) {
  constexpr int kChunks = kHeadDim / 8;
  const PagedKv cache{p.num_kv_heads, p.block_size, kHeadDim};
  const int32_t *table = p.block_tables + static_cast<int64_t>(w.seq) * p.max_blocks_per_seq;
  const bf16 *kv_gmem = static_cast<const bf16 *>(p.kv);
#pragma unroll
  for (int i = 0; i < kDecodeKeys * kChunks / kWarpSize; ++i) {
    const int chunk = lane + i * kWarpSize;
    const int row = chunk / kChunks, col = chunk % kChunks * 8;
    const int key = first + row;
    const bool valid = key >= w.lo && key < w.hi;
    const int block = valid ? table[key / p.block_size] : 0;
    const bf16 *k_gmem = kv_gmem + cache.k_offset(block, w.kv_head, valid ? key % p.block_size : 0) + col;
    const int smem_offset = row * DecodeSmem<kHeadDim>::kStride + col;
    ptx::copy_16b_async(ptx::smem_address(stage[0] + smem_offset), k_gmem, valid);
    ptx::copy_16b_async(ptx::smem_address(stage[1] + smem_offset), k_gmem + cache.v_distance(), valid);
  }
}

// One warp's state: columns 2t and 2t + 1 of the heads, rows g and g + 8 of every 16 head dims (lane = 4g + t).
template <int kHeadDim> struct DecodeState {
  float o[kHeadDim / 16][4] = {};
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0.0f, 0.0f}; // of this lane's keys
};

template <int kHeadDim>
__device__ __forceinline__ void decode_tile(const pagoda_attention_params &p, const DecodeWork &w, const uint32_t (&q)[kHeadDim / 16][2], const bf16 (*stage)[DecodeSmem<kHeadDim>::kTile], int first, int lane, DecodeState<kHeadDim> &state) {
  constexpr int kStride = DecodeSmem<kHeadDim>::kStride;
  const int matrix = lane / 8, matrix_row = lane % 8;
  float s[4] = {};
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t a[4];
    ptx::load_matrix_x4(a, ptx::smem_address(stage[0] + (matrix_row + matrix % 2 * 8) * kStride + i * 16 + matrix / 2 * 8));
    ptx::mma_bf16(s, a[0], a[1], a[2], a[3], q[i][0], q[i][1]);
  }
  const int key = first + lane / 4;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int row_key = key + e / 2 * 8;
    s[e] = row_key >= w.lo && row_key < w.hi ? score(s[e], p.scale, p.soft_cap) : -INFINITY;
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float m = fmaxf(s[c], s[c + 2]);
#pragma unroll
    for (int offset = 4; offset < kWarpSize; offset *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, offset));
    m = fmaxf(m, state.m[c]);
    const float base = finite_max(m);
    const float rescale = exp2f(state.m[c] - base);
    state.m[c] = m;
    s[c] = exp2f(s[c] - base);
    s[c + 2] = exp2f(s[c + 2] - base);
    state.l[c] = state.l[c] * rescale + s[c] + s[c + 2];
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      state.o[i][c] *= rescale;
      state.o[i][c + 2] *= rescale;
    }
  }
  const uint32_t p_low = ptx::transpose_8x8(pack_bf16(s[0], s[1]));
  const uint32_t p_high = ptx::transpose_8x8(pack_bf16(s[2], s[3]));
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t a[4];
    ptx::load_matrix_x4_trans(a, ptx::smem_address(stage[1] + (matrix_row + matrix / 2 * 8) * kStride + i * 16 + matrix % 2 * 8));
    ptx::mma_bf16(state.o[i], a[0], a[1], a[2], a[3], p_low, p_high);
  }
}

// Leaves a warp's state in shared memory.
template <int kHeadDim> __device__ __forceinline__ void store_decode_state(typename DecodeSmem<kHeadDim>::Merge &merge, DecodeState<kHeadDim> &state, int warp, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int offset = 4; offset < kWarpSize; offset *= 2) state.l[c] += __shfl_xor_sync(0xffffffffu, state.l[c], offset);
    if (g == 0) {
      merge.m[warp][2 * t + c] = state.m[c];
      merge.l[warp][2 * t + c] = state.l[c];
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      merge.o[warp][2 * t + c][i * 16 + g] = state.o[i][c];
      merge.o[warp][2 * t + c][i * 16 + g + 8] = state.o[i][c + 2];
    }
  }
}

// Merges the splits of this CTA's heads, if this CTA is the last of them.
template <int kHeadDim> __device__ __forceinline__ void merge_splits(const pagoda_attention_params &p, const DecodeWork &w) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t *counter = p.counters + static_cast<int64_t>(w.seq) * gridDim.y + blockIdx.y;
    is_last = atomicAdd(counter, 1) == w.last_split - w.first_split;
    if (is_last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  for (int i = threadIdx.x; i < w.num_heads * kHeadDim; i += blockDim.x) {
    const int head = w.first_head + i / kHeadDim, d = i % kHeadDim;
    const float *base = p.partials + (static_cast<int64_t>(w.seq) * p.num_heads + head) * p.num_splits * (kHeadDim + 2);
    float m = -INFINITY, l = 0.0f, o = 0.0f;
    for (int split = w.first_split; split <= w.last_split; ++split) m = fmaxf(m, __ldcg(base + split * (kHeadDim + 2) + kHeadDim));
    for (int split = w.first_split; split <= w.last_split; ++split) {
      const float *part = base + split * (kHeadDim + 2);
      const float weight = exp2f(__ldcg(part + kHeadDim) - finite_max(m));
      o += weight * __ldcg(part + d);
      l += weight * __ldcg(part + kHeadDim + 1);
    }
    static_cast<bf16 *>(p.out)[(static_cast<int64_t>(w.row) * p.num_heads + head) * kHeadDim + d] = from_f32<bf16>(o / l);
  }
}

template <int kHeadDim> __global__ void __launch_bounds__(kDecodeWarps *kWarpSize) attention_decode_kernel(const __grid_constant__ pagoda_attention_params p) {
  using Smem = DecodeSmem<kHeadDim>;
  extern __shared__ __align__(16) char smem_bytes[];
  Smem &smem = *reinterpret_cast<Smem *>(smem_bytes);
  DecodeWork w;
  if (!decode_work(p, w)) return;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  uint32_t q[kHeadDim / 16][2];
  const int64_t qkv_heads = p.num_heads + 2 * p.num_kv_heads;
  const bool has_head = lane / 4 < w.num_heads;
  const bf16 *q_gmem = static_cast<const bf16 *>(p.qkv) + (w.row * qkv_heads + w.first_head + (has_head ? lane / 4 : 0)) * kHeadDim + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    q[i][0] = has_head ? *reinterpret_cast<const uint32_t *>(q_gmem + i * 16) : 0u;
    q[i][1] = has_head ? *reinterpret_cast<const uint32_t *>(q_gmem + i * 16 + 8) : 0u;
  }

  DecodeState<kHeadDim> state;
  const int first = w.lo / kDecodeKeys * kDecodeKeys;
  const int num_tiles = (w.hi - first + kDecodeKeys - 1) / kDecodeKeys;
  if (warp < num_tiles) load_decode_tile<kHeadDim>(p, w, smem.kv[warp][0], first + warp * kDecodeKeys, lane);
  ptx::commit_copies();
  int stage = 0;
  for (int tile = warp; tile < num_tiles; tile += kDecodeWarps, stage ^= 1) {
    const int next = tile + kDecodeWarps;
    if (next < num_tiles) load_decode_tile<kHeadDim>(p, w, smem.kv[warp][stage ^ 1], first + next * kDecodeKeys, lane);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncwarp();
    decode_tile<kHeadDim>(p, w, q, smem.kv[warp][stage], first + tile * kDecodeKeys, lane, state);
    __syncwarp();
  }
  __syncthreads(); // the merge area lies over the stages
  store_decode_state<kHeadDim>(smem.merge, state, warp, lane);
  __syncthreads();

  for (int i = threadIdx.x; i < w.num_heads * kHeadDim; i += blockDim.x) {
    const int h = i / kHeadDim, d = i % kHeadDim;
    float m = -INFINITY, l = 0.0f, o = 0.0f;
#pragma unroll
    for (int v = 0; v < kDecodeWarps; ++v) m = fmaxf(m, smem.merge.m[v][h]);
#pragma unroll
    for (int v = 0; v < kDecodeWarps; ++v) {
      const float weight = exp2f(smem.merge.m[v][h] - finite_max(m));
      o += weight * smem.merge.o[v][h][d];
      l += weight * smem.merge.l[v][h];
    }
    const int64_t head = w.first_head + h;
    if (w.first_split == w.last_split) {
      static_cast<bf16 *>(p.out)[(w.row * static_cast<int64_t>(p.num_heads) + head) * kHeadDim + d] = from_f32<bf16>(o / l);
      continue;
    }
    float *part = p.partials + ((static_cast<int64_t>(w.seq) * p.num_heads + head) * p.num_splits + w.split) * (kHeadDim + 2);
    part[d] = o;
    if (d == 0) part[kHeadDim] = m, part[kHeadDim + 1] = l;
  }
  if (w.first_split != w.last_split) merge_splits<kHeadDim>(p, w);
}

} // namespace pagoda
