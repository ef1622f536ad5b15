// Varlen chunked prefill attention over the paged cache, sm_80 and later (mma.sync).
//
// Grid (query tiles of all sequences, kv heads): one item of prefill_items.cuh a CTA. 4 warps of kRowTiles * 16 rows.
//
// K and V tiles of 32 keys pass through two shared-memory stages; the lanes of a warp hold where the keys of the next tile lie, looked up a
// tile ahead. Tiles above the diagonal or left of the window are not visited. Online softmax in f32, P rounded to bf16 as the second
// product's operand. Bound by the tensor cores' shared-memory traffic: every warp reads the whole K and V tile, once for all its rows.
// H100, 8192 tokens at context 16384, 28 / 4 heads, TFLOP/s: 193 for heads of 64, 217 of 80, 250 of 128, 214 of 256.
// After FlashAttention-2 (BSD-3-Clause).
#pragma once
#include "../common/launch.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/math.cuh"
#include "../ptx/mma.cuh"
#include "codes.cuh"
#include "paged_kv.cuh"
#include "prefill_items.cuh"
#include "softmax.cuh"
#include <type_traits>

namespace pagoda {

constexpr int kPrefillWarps = 4;

template <int kDim, bool kCacheCodes> struct PrefillSmem {
  static constexpr int kHeadDim = kDim;
  static constexpr bool kCodes = kCacheCodes; // e4m3 in fragment order
  using Element = std::conditional_t<kCodes, uint8_t, bf16>;
  static_assert(kHeadDim % 16 == 0, "a head is a whole number of k steps of the product");
  static constexpr int kRowTiles = kHeadDim <= 128 ? 2 : 1; // as many as leave the sums in registers
  static constexpr int kBlockM = 16 * kRowTiles * kPrefillWarps;
  static constexpr int kBlockN = 32;           // at most 99 KB: every GPU has them
  static constexpr int kStride = kHeadDim + 8; // an odd number of 16-byte columns: no bank conflicts in ldmatrix
  // Of keys and values: an odd number of 16-byte columns too, but for heads of 16 codes times an even number.
  static constexpr int kKvStride = kHeadDim + 16 / static_cast<int>(sizeof(Element));
  bf16 q[kBlockM * kStride];
  Element kv[2][2][kBlockN * kKvStride]; // [stage][k, v]
};

template <typename Smem> __device__ __forceinline__ void load_q(const pagoda_attention_params &p, const PrefillItem &item, bf16 *q_smem) {
  constexpr int kChunks = Smem::kHeadDim / 8;
  const int group = p.num_heads / p.num_kv_heads;
  const int64_t qkv_heads = p.num_heads + 2 * p.num_kv_heads;
  for (int i = threadIdx.x; i < Smem::kBlockM * kChunks; i += kPrefillWarps * kWarpSize) {
    const int row = i / kChunks, col = i % kChunks * 8;
    const int packed = item.first_packed + row;
    const int token = packed / group;
    const bool valid = token < item.query_len;
    const int64_t head = (item.row0 + (valid ? token : 0)) * qkv_heads + item.kv_head * group + packed % group;
    ptx::copy_16b_async(ptx::smem_address(q_smem + row * Smem::kStride + col), static_cast<const bf16 *>(p.qkv) + head * Smem::kHeadDim + col, valid);
  }
}

// One warp: element offset of k of key first_key + lane; negative where the item sees no such key.
template <typename Smem> __device__ __forceinline__ int64_t find_key(const pagoda_attention_params &p, const PrefillItem &item, int first_key) {
  static_assert(Smem::kBlockN == kWarpSize, "a lane holds the place of one key");
  const PagedKv cache{p.num_kv_heads, p.block_size, Smem::kHeadDim};
  const int key = first_key + threadIdx.x % kWarpSize;
  if (key < item.key_begin || key >= item.key_end) return -1;
  const int block = __ldcg(p.block_tables + static_cast<int64_t>(item.seq) * p.max_blocks_per_seq + key / p.block_size);
  return cache.k_offset(block, item.kv_head, key % p.block_size);
}

// Starts to copy a tile of keys whose places the lanes of every warp hold.
template <typename Smem> __device__ __forceinline__ void load_kv(const pagoda_attention_params &p, typename Smem::Element (*stage)[Smem::kBlockN * Smem::kKvStride], int64_t place) {
  using Element = typename Smem::Element;
  constexpr int kPerChunk = 16 / sizeof(Element), kChunks = Smem::kHeadDim / kPerChunk;
  constexpr int kThreads = kPrefillWarps * kWarpSize;
  const int64_t v_distance = PagedKv{p.num_kv_heads, p.block_size, Smem::kHeadDim}.v_distance();
#pragma unroll
  for (int i = threadIdx.x; i < Smem::kBlockN * kChunks; i += kThreads) { // whole warps
    const int row = i / kChunks, col = i % kChunks * kPerChunk;
    const int64_t offset = __shfl_sync(0xffffffffu, place, row);
    const bool valid = offset >= 0;
    const Element *k_gmem = static_cast<const Element *>(p.kv) + (valid ? offset : 0) + col;
    const int smem_offset = row * Smem::kKvStride + col;
    ptx::copy_16b_async(ptx::smem_address(stage[0] + smem_offset), k_gmem, valid);
    ptx::copy_16b_async(ptx::smem_address(stage[1] + smem_offset), k_gmem + v_distance, valid);
  }
}

// A warp's tiles of 16 rows: g and g + 8 of each in a lane (lane = 4g + t).
template <typename Smem> struct PrefillState {
  float o[Smem::kRowTiles][Smem::kHeadDim / 8][4] = {};
  float s[Smem::kRowTiles][Smem::kBlockN / 8][4];
  float m[Smem::kRowTiles][2];
  float l[Smem::kRowTiles][2] = {}; // of this lane's columns

  __device__ __forceinline__ PrefillState() {
#pragma unroll
    for (int t = 0; t < Smem::kRowTiles; ++t) m[t][0] = m[t][1] = -INFINITY;
  }

  // Packed row of row r of tile t.
  __device__ __forceinline__ static int packed_row(const PrefillItem &item, int t, int r) {
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    return item.first_packed + (warp * Smem::kRowTiles + t) * 16 + lane / 4 + r * 8;
  }
};

// Keys n * 8 .. + 16 by dims i * 16 .. + 16 as the second operand of two products: keys are their columns (k).
template <typename Smem> __device__ __forceinline__ void load_k(uint32_t (&b)[4], const typename Smem::Element *k_smem, int n, int i, int lane) {
  const int matrix = lane / 8, matrix_row = lane % 8;
  if constexpr (!Smem::kCodes) {
    ptx::load_matrix_x4(b, ptx::smem_address(k_smem + (n * 8 + matrix_row + matrix / 2 * 8) * Smem::kKvStride + i * 16 + matrix % 2 * 8));
  } else {
    uint32_t codes[2];
    ptx::load_matrix_x2(codes, ptx::smem_address(k_smem + (n * 8 + lane % 16) * Smem::kKvStride + i * 16));
    const CodePairs first = decode_e4m3(codes[0]), second = decode_e4m3(codes[1]);
    b[0] = first.low, b[1] = first.high, b[2] = second.low, b[3] = second.high;
  }
}

// The same of values: dims i * 16 .. + 8 and the next 8 are the columns.
template <typename Smem> __device__ __forceinline__ void load_v(uint32_t (&b)[4], const typename Smem::Element *v_smem, int n, int i, int lane) {
  const int matrix = lane / 8, matrix_row = lane % 8;
  if constexpr (!Smem::kCodes) {
    ptx::load_matrix_x4_trans(b, ptx::smem_address(v_smem + (n * 8 + matrix_row + matrix % 2 * 8) * Smem::kKvStride + i * 16 + matrix / 2 * 8));
  } else {
    uint32_t codes[2];
    ptx::load_matrix_x2_trans(codes, ptx::smem_address(v_smem + (n * 8 + lane % 16) * Smem::kKvStride + i * 16));
    const CodePairs low_keys = decode_e4m3(codes[0]), high_keys = decode_e4m3(codes[1]);
    b[0] = low_keys.low, b[1] = high_keys.low, b[2] = low_keys.high, b[3] = high_keys.high;
  }
}

// s = Q K^T of one warp.
template <typename Smem> __device__ __forceinline__ void scores(PrefillState<Smem> &state, const bf16 *q_smem, const typename Smem::Element *k_smem, int lane) {
  const int matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
  for (int t = 0; t < Smem::kRowTiles; ++t) {
#pragma unroll
    for (int n = 0; n < Smem::kBlockN / 8; ++n) state.s[t][n][0] = state.s[t][n][1] = state.s[t][n][2] = state.s[t][n][3] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < Smem::kHeadDim / 16; ++i) {
    uint32_t a[Smem::kRowTiles][4];
#pragma unroll
    for (int t = 0; t < Smem::kRowTiles; ++t) {
      ptx::load_matrix_x4(a[t], ptx::smem_address(q_smem + (t * 16 + matrix_row + matrix % 2 * 8) * Smem::kStride + i * 16 + matrix / 2 * 8));
    }
#pragma unroll
    for (int n = 0; n < Smem::kBlockN / 8; n += 2) {
      uint32_t b[4];
      load_k<Smem>(b, k_smem, n, i, lane);
#pragma unroll
      for (int t = 0; t < Smem::kRowTiles; ++t) {
        ptx::mma_bf16(state.s[t][n], a[t][0], a[t][1], a[t][2], a[t][3], b[0], b[1]);
        ptx::mma_bf16(state.s[t][n + 1], a[t][0], a[t][1], a[t][2], a[t][3], b[2], b[3]);
      }
    }
  }
}

// Products to what the softmax takes to capped scores by `factor`.
template <typename Smem> __device__ __forceinline__ void cap_scores(PrefillState<Smem> &state, float cap_factor) {
#pragma unroll
  for (int t = 0; t < Smem::kRowTiles; ++t) {
#pragma unroll
    for (int n = 0; n < Smem::kBlockN / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state.s[t][n][e] = ptx::tanh_approx(state.s[t][n][e] * cap_factor);
    }
  }
}

// Keys that a row does not see get no weight.
template <typename Smem> __device__ __forceinline__ void mask_keys(const pagoda_attention_params &p, const PrefillItem &item, PrefillState<Smem> &state, int first_key) {
  const int group = p.num_heads / p.num_kv_heads;
  const int first = first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int t = 0; t < Smem::kRowTiles; ++t) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int last_seen = item.computed() + state.packed_row(item, t, r) / group - first;
      const int last_unseen = p.window > 0 ? last_seen - p.window : -1;
#pragma unroll
      for (int n = 0; n < Smem::kBlockN / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = n * 8 + e;
          if (key > last_seen || key <= last_unseen) state.s[t][n][2 * r + e] = -INFINITY;
        }
      }
    }
  }
}

// Scores of row r of tile t to probabilities.
template <typename Smem> __device__ __forceinline__ void softmax_step(PrefillState<Smem> &state, float factor, int t, int r) {
  float m = state.m[t][r];
#pragma unroll
  for (int n = 0; n < Smem::kBlockN / 8; ++n) m = fmaxf(m, fmaxf(state.s[t][n][2 * r], state.s[t][n][2 * r + 1]));
  m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
  m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
  const float finite = finite_max(m);
  const float base = finite * factor;
  const float rescale = ptx::exp2_approx((state.m[t][r] - finite) * factor); // exactly 1 where no larger product came
  state.m[t][r] = m;
  float l = state.l[t][r] * rescale;
#pragma unroll
  for (int n = 0; n < Smem::kBlockN / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float &v = state.s[t][n][2 * r + e];
      v = ptx::exp2_approx(v * factor - base);
      l += v;
    }
  }
  state.l[t][r] = l;
#pragma unroll
  for (int i = 0; i < Smem::kHeadDim / 8; ++i) {
    state.o[t][i][2 * r] *= rescale;
    state.o[t][i][2 * r + 1] *= rescale;
  }
}

// o += P V of one warp.
template <typename Smem> __device__ __forceinline__ void accumulate(PrefillState<Smem> &state, const typename Smem::Element *v_smem, int lane) {
#pragma unroll
  for (int n = 0; n < Smem::kBlockN / 8; n += 2) {
    uint32_t a[Smem::kRowTiles][4];
#pragma unroll
    for (int t = 0; t < Smem::kRowTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[t][j] = pack_bf16(state.s[t][n + j / 2][j % 2 * 2], state.s[t][n + j / 2][j % 2 * 2 + 1]);
    }
#pragma unroll
    for (int i = 0; i < Smem::kHeadDim / 16; ++i) {
      uint32_t b[4];
      load_v<Smem>(b, v_smem, n, i, lane);
#pragma unroll
      for (int t = 0; t < Smem::kRowTiles; ++t) {
        ptx::mma_bf16(state.o[t][2 * i], a[t][0], a[t][1], a[t][2], a[t][3], b[0], b[1]);
        ptx::mma_bf16(state.o[t][2 * i + 1], a[t][0], a[t][1], a[t][2], a[t][3], b[2], b[3]);
      }
    }
  }
}

// out = o / l of tile t.
template <typename Smem> __device__ __forceinline__ void store_tile(const pagoda_attention_params &p, const PrefillItem &item, const PrefillState<Smem> &state, int t) {
  const int group = p.num_heads / p.num_kv_heads;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = state.l[t][r];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    const int packed = state.packed_row(item, t, r);
    const int token = packed / group;
    if (token >= item.query_len) continue; // alike in the four lanes of a row
    const int64_t head = static_cast<int64_t>(item.row0 + token) * p.num_heads + item.kv_head * group + packed % group;
    uint32_t *out_gmem = reinterpret_cast<uint32_t *>(static_cast<bf16 *>(p.out) + head * Smem::kHeadDim) + threadIdx.x % 4;
    const float inverse = (Smem::kCodes ? __ldg(p.kv_scales + p.num_kv_heads + item.kv_head) : 1.0f) / l;
#pragma unroll
    for (int i = 0; i < Smem::kHeadDim / 8; ++i) out_gmem[i * 4] = pack_bf16(state.o[t][i][2 * r] * inverse, state.o[t][i][2 * r + 1] * inverse);
  }
}

template <int kHeadDim, bool kCodes> __global__ void __launch_bounds__(kPrefillWarps *kWarpSize) attention_prefill_kernel(const __grid_constant__ pagoda_attention_params p) {
  using Smem = PrefillSmem<kHeadDim, kCodes>;
  constexpr int kBlockN = Smem::kBlockN;
  extern __shared__ __align__(16) char smem_bytes[];
  Smem &smem = *reinterpret_cast<Smem *>(smem_bytes);
  wait_then_allow_next();
  const PrefillItem item = prefill_item<Smem::kBlockM>(p, blockIdx.x * p.num_kv_heads + blockIdx.y);
  if (item.seq < 0) return;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int group = p.num_heads / p.num_kv_heads;

  PrefillState<Smem> state;
  const bool capped = p.soft_cap > 0.0f;
  const float scale = kCodes ? p.scale * __ldg(p.kv_scales + item.kv_head) : p.scale;
  const float factor = (capped ? p.soft_cap : scale) * kLog2e;
  const float cap_factor = capped ? scale / p.soft_cap : 0.0f;
  const int all_see = item.computed() + item.first_packed / group; // the last key that every row may see
  const int all_see_from = p.window > 0 ? item.key_end - p.window : 0;
  int first_key = item.key_begin / kBlockN * kBlockN;
  load_q<Smem>(p, item, smem.q);
  load_kv<Smem>(p, smem.kv[0], find_key<Smem>(p, item, first_key));
  ptx::commit_copies();
  int64_t next = find_key<Smem>(p, item, first_key + kBlockN);
  for (int stage = 0; first_key < item.key_end; first_key += kBlockN, stage ^= 1) {
    if (first_key + kBlockN < item.key_end) load_kv<Smem>(p, smem.kv[stage ^ 1], next);
    ptx::commit_copies();
    next = find_key<Smem>(p, item, first_key + 2 * kBlockN);
    ptx::wait_copies<1>();
    __syncthreads();
    scores<Smem>(state, smem.q + warp * Smem::kRowTiles * 16 * Smem::kStride, smem.kv[stage][0], lane);
    if (capped) cap_scores<Smem>(state, cap_factor);
    if (first_key + kBlockN - 1 > all_see || first_key < all_see_from) mask_keys<Smem>(p, item, state, first_key);
#pragma unroll
    for (int t = 0; t < Smem::kRowTiles; ++t) {
      softmax_step<Smem>(state, factor, t, 0);
      softmax_step<Smem>(state, factor, t, 1);
    }
    accumulate<Smem>(state, smem.kv[stage][1], lane);
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < Smem::kRowTiles; ++t) store_tile<Smem>(p, item, state, t);
}

} // namespace pagoda
