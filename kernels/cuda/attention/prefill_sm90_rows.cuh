// What a warpgroup of the sm_90a prefill kernel does with its 64 rows: load, multiply, softmax, store. See prefill_sm90.cuh.
#pragma once
#include "../common/types.cuh"
#include "../ptx/async_copy.cuh"
#include "../ptx/math.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/tensor_copy.cuh"
#include "../ptx/wgmma_async.cuh"
#include "prefill_items.cuh"
#include "softmax.cuh"

namespace pagoda {

constexpr int kPanel = 64; // columns of a panel: 128 bytes, the width of the swizzle
constexpr int kPanelRowBytes = 128;

template <int kDim, int kNumKeys, int kNumGroups, int kNumSlots, bool kTakeTurns, bool kCacheCodes = false> struct PrefillTile {
  static constexpr bool kCodes = kCacheCodes; // the cache is e4m3
  static constexpr int kConverters = 3;       // warps that make bf16 of codes
  static constexpr bool kTurns = kTakeTurns;
  static constexpr int kHeadDim = kDim;
  static constexpr int kGroups = kNumGroups;
  static constexpr int kSlots = kNumSlots;
  static constexpr int kPanels = kHeadDim / kPanel;
  static constexpr int kBlockM = 64 * kGroups;
  static constexpr int kBlockN = kNumKeys;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kProducerRegisters = kGroups == 2 ? kCodes ? 56 : 40 : 32; // of a thread, after the warpgroups have traded
  static constexpr int kConsumerRegisters = kGroups == 2 ? kCodes ? 224 : 232 : 160;
  static constexpr int kQPanelBytes = 64 * kPanelRowBytes; // of one warpgroup
  static constexpr int kQBytes = kGroups * kPanels * kQPanelBytes;
  static constexpr int kPanelBytes = 8 * kPanelRowBytes;     // of 8 keys
  static constexpr int kGroupBytes = kPanels * kPanelBytes;  // 8 keys
  static constexpr int kSlotBytes = kBlockN / 8 * kGroupBytes;
  static constexpr int kAlignment = 1024; // of the swizzle pattern
  static constexpr int kStagingBytes = kBlockN * kHeadDim; // codes of a tile
  static constexpr int kSmemBytes = kQBytes + kSlots * kSlotBytes + (kCodes ? kConverters * kStagingBytes : 0) + kAlignment;
  static_assert(kHeadDim % kPanel == 0 && kPanelBytes % kAlignment == 0, "every panel starts a pattern");
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Named barriers: one for the turn of each warpgroup, one for its own threads.
constexpr uint32_t kTurnBarrier = 1;
constexpr uint32_t kGroupBarrier = 4;

// A warpgroup's 64 rows, of which a lane holds rows g and g + 8 of its warp's 16 (lane = 4g + t).
template <typename Tile> struct PrefillRows {
  float o[Tile::kHeadDim / 8][4];
  float s[Tile::kBlockN / 8][4];
  uint32_t p[Tile::kBlockN / 16][4];
  float m[2], l[2];   // maximum of the products, and sum of this lane's columns
  int positions[2];   // of the rows' tokens
  int group;          // warpgroup
  uint32_t q;         // its panels
};

// The q of one of the kv head's query heads at a token of the item's sequence.
__device__ __forceinline__ const bf16 *q_row(const pagoda_attention_params &p, const PrefillItem &item, int token, int head_in_group) {
  const int64_t qkv_heads = p.num_heads + 2 * p.num_kv_heads;
  const int64_t head = (item.row0 + token) * qkv_heads + item.kv_head * (p.num_heads / p.num_kv_heads) + head_in_group;
  return static_cast<const bf16 *>(p.qkv) + head * p.head_dim;
}

// Starts to copy the warpgroup's rows of q into its panels.
template <typename Tile> __device__ __forceinline__ void load_q(const pagoda_attention_params &p, const PrefillItem &item, const PrefillRows<Tile> &rows) {
  constexpr int kChunks = Tile::kHeadDim / 8;
  const int group = p.num_heads / p.num_kv_heads;
#pragma unroll
  for (int i = threadIdx.x % 128; i < 64 * kChunks; i += 128) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int packed = item.first_packed + rows.group * 64 + row;
    const int token = packed / group;
    const bool valid = token < item.query_len;
    const uint32_t smem = rows.q + chunk / 8 * Tile::kQPanelBytes + row * kPanelRowBytes + (chunk % 8 ^ row % 8) * 16;
    ptx::copy_16b_async(smem, q_row(p, item, valid ? token : 0, packed % group) + chunk * 8, valid);
  }
  ptx::commit_copies();
}

// First packed row of this lane.
template <typename Tile> __device__ __forceinline__ int first_row(const PrefillItem &item, const PrefillRows<Tile> &rows) {
  return item.first_packed + rows.group * 64 + threadIdx.x % 128 / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
}

// Returns when the rows of q that `load_q` asked for are in the panels.
template <typename Tile> __device__ __forceinline__ void await_q(const PrefillRows<Tile> &rows) {
  ptx::wait_copies<0>();
  ptx::fence_shared_writes();
  ptx::sync_threads(kGroupBarrier + rows.group, 128);
}

// Nothing of this item seen yet.
template <typename Tile> __device__ __forceinline__ void begin_rows(const pagoda_attention_params &p, const PrefillItem &item, PrefillRows<Tile> &rows) {
  const int group = p.num_heads / p.num_kv_heads;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows.positions[r] = item.computed() + (first_row<Tile>(item, rows) + 8 * r) / group;
    rows.m[r] = -INFINITY;
    rows.l[r] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < Tile::kHeadDim / 8; ++i) rows.o[i][0] = rows.o[i][1] = rows.o[i][2] = rows.o[i][3] = 0.0f;
}

// Starts S = Q K^T.
template <typename Tile> __device__ __forceinline__ void start_scores(PrefillRows<Tile> &rows, uint32_t k_smem) {
  ptx::pin_sums(rows.s);
  ptx::fence_registers();
#pragma unroll
  for (int i = 0; i < Tile::kHeadDim / 16; ++i) {
    const uint64_t q = ptx::swizzled_rows(rows.q + i / 4 * Tile::kQPanelBytes) + i % 4 * 2;
    const uint64_t k = ptx::swizzled_panels(k_smem + i / 4 * Tile::kPanelBytes, Tile::kGroupBytes, 16) + i % 4 * 2;
    if (i == 0) ptx::multiply_rows<false>(rows.s, q, k);
    else ptx::multiply_rows<true>(rows.s, q, k);
  }
  ptx::commit_products();
}

// Starts O += P V.
template <typename Tile> __device__ __forceinline__ void start_output(PrefillRows<Tile> &rows, uint32_t v_smem) {
  ptx::pin_sums(rows.o);
  ptx::fence_registers();
#pragma unroll
  for (int i = 0; i < Tile::kBlockN / 16; ++i) {
    ptx::multiply_fragment(rows.o, rows.p[i], ptx::swizzled_panels(v_smem + i * 2 * Tile::kGroupBytes, Tile::kGroupBytes, Tile::kPanelBytes));
  }
  ptx::commit_products();
}

// Keys that a row does not see get no weight.
template <typename Tile> __device__ __forceinline__ void mask_scores(PrefillRows<Tile> &rows, int first_key, int window) {
  const int first = first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int last_seen = rows.positions[r] - first;
    const int last_unseen = window > 0 ? last_seen - window : -1;
#pragma unroll
    for (int q = 0; q < Tile::kBlockN / 8; ++q) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = q * 8 + e;
        if (key > last_seen || key <= last_unseen) rows.s[q][2 * r + e] = -INFINITY;
      }
    }
  }
}

// Products to probabilities of one tile; rescale[r] is what earlier sums of row r are to be multiplied with.
template <typename Tile> __device__ __forceinline__ void softmax_rows(PrefillRows<Tile> &rows, float factor, float (&rescale)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = rows.m[r];
#pragma unroll
    for (int q = 0; q < Tile::kBlockN / 8; ++q) m = fmaxf(m, fmaxf(rows.s[q][2 * r], rows.s[q][2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const float finite = finite_max(m);
    const float base = finite * factor;
    rescale[r] = ptx::exp2_approx((rows.m[r] - finite) * factor); // exactly 1 where no larger product came
    rows.m[r] = m;
    float l = rows.l[r] * rescale[r];
#pragma unroll
    for (int q = 0; q < Tile::kBlockN / 8; ++q) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float &v = rows.s[q][2 * r + e];
        v = ptx::exp2_approx(v * factor - base);
        l += v;
      }
    }
    rows.l[r] = l;
  }
}

template <typename Tile> __device__ __forceinline__ void round_probabilities(PrefillRows<Tile> &rows) {
#pragma unroll
  for (int i = 0; i < Tile::kBlockN / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) rows.p[i][j] = pack_bf16(rows.s[2 * i + j / 2][j % 2 * 2], rows.s[2 * i + j / 2][j % 2 * 2 + 1]);
  }
}

template <typename Tile> __device__ __forceinline__ void rescale_output(PrefillRows<Tile> &rows, const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < Tile::kHeadDim / 8; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) rows.o[i][e] *= rescale[e / 2];
  }
}

// Products of an item to probabilities. `factor` takes them to units of log2.
template <bool kSoftCap, bool kCodes> struct PrefillScores {
  float factor, cap_factor;
  int all_see;      // the last key that every row of the item may see
  int all_see_from; // and the first
  int window;

  __device__ __forceinline__ PrefillScores(const pagoda_attention_params &p, const PrefillItem &item) {
    const float scale = kCodes ? p.scale * __ldg(p.kv_scales + item.kv_head) : p.scale;
    factor = (kSoftCap ? p.soft_cap : scale) * kLog2e;
    cap_factor = kSoftCap ? scale / p.soft_cap : 0.0f;
    all_see = item.computed() + item.first_packed / (p.num_heads / p.num_kv_heads);
    all_see_from = p.window > 0 ? item.key_end - p.window : 0;
    window = p.window;
  }

  // One tile; rescale[r] is what earlier sums of row r are to be multiplied with.
  template <typename Tile> __device__ __forceinline__ void to_probabilities(PrefillRows<Tile> &rows, int first_key, float (&rescale)[2]) const {
    if constexpr (kSoftCap) {
#pragma unroll
      for (int q = 0; q < Tile::kBlockN / 8; ++q) {
#pragma unroll
        for (int e = 0; e < 4; ++e) rows.s[q][e] = ptx::tanh_approx(rows.s[q][e] * cap_factor);
      }
    }
    if (first_key + Tile::kBlockN - 1 > all_see || first_key < all_see_from) mask_scores<Tile>(rows, first_key, window);
    softmax_rows<Tile>(rows, factor, rescale);
  }
};

// The rows of a V tile from `row` on become zeros: what lies in a page behind the context may be NaN, and 0 * NaN is not 0.
template <typename Tile> __device__ __forceinline__ void clear_keys(const PrefillRows<Tile> &rows, uint32_t v_smem, int row) {
  constexpr int kRowChunks = kPanelRowBytes / 16;
  for (int i = row * kRowChunks + threadIdx.x % 128; i < Tile::kBlockN * kRowChunks; i += 128) {
    const int key = i / kRowChunks;
    const uint32_t row_smem = v_smem + key / 8 * Tile::kGroupBytes + key % 8 * kPanelRowBytes + i % kRowChunks * 16;
#pragma unroll
    for (int panel = 0; panel < Tile::kPanels; ++panel) ptx::store_shared_16b(row_smem + panel * Tile::kPanelBytes, make_uint4(0, 0, 0, 0));
  }
  ptx::fence_shared_writes();
  ptx::sync_threads(kGroupBarrier + rows.group, 128);
}

// Transposes 4 x 4 registers across 4 neighbouring lanes: v[i] of lane j becomes v[j] of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int low = step == 1 ? 2 * i : i, high = low + step;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? v[low] : v[high], step);
      v[low] = upper ? other : v[low];
      v[high] = upper ? v[high] : other;
    }
  }
}

// out = o / l, 16 bytes a lane.
template <typename Tile>
__device__ __forceinline__ void store_rows(const pagoda_attention_params &p, const PrefillItem &item, const PrefillRows<Tile> &rows) {
  const int group = p.num_heads / p.num_kv_heads;
  const float scale = Tile::kCodes ? __ldg(p.kv_scales + p.num_kv_heads + item.kv_head) : 1.0f;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = rows.l[r];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    const int packed = first_row<Tile>(item, rows) + 8 * r;
    const int token = packed / group;
    const int64_t head = static_cast<int64_t>(item.row0 + token) * p.num_heads + item.kv_head * group + packed % group;
    bf16 *out_gmem = static_cast<bf16 *>(p.out) + head * Tile::kHeadDim + threadIdx.x % 4 * 8;
    const float inverse = Tile::kCodes ? scale * ptx::reciprocal_approx(l) : ptx::reciprocal_approx(l);
#pragma unroll
    for (int i = 0; i < Tile::kHeadDim / 32; ++i) {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = pack_bf16(rows.o[4 * i + j][2 * r] * inverse, rows.o[4 * i + j][2 * r + 1] * inverse);
      transpose_quad(v);
      if (token < item.query_len) ptx::store_16b(out_gmem + i * 32, make_uint4(v[0], v[1], v[2], v[3]));
    }
  }
}

#endif

} // namespace pagoda
