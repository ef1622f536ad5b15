// Attention of many single query rows over keys that their sequences share (the first half of cascade attention; decode.cuh is the other).
//
// Sequences of a group begin with the same blocks. The rows of a group are its (sequence, query head of one kv head) pairs, 128 a tile:
//
//   packed row R = member * group + head in group;   item = (group of sequences, tile of rows, kv head, split of the prefix)
//
// so that a key is read once for up to 128 rows instead of once a sequence. 8 warps of 16 rows; 64 keys a stage, as 4 boxes of 16 in the
// layout of KvTile, through a ring that all warps read. Online softmax in f32, P rounded to bf16; (o, m, l) of each row and split go to the
// prefixes' partials, from where the decode kernel adds them to what it finds in the rest of the context. Codes of e4m3 become bf16 on the way
// to the products, in every warp; scales are on scores and sums.
//
// Bound by the tensor cores' shared-memory traffic. After Hydragen (MIT) and FlashInfer's cascade attention (Apache-2.0).
#pragma once
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "../ptx/math.cuh"
#include "../ptx/mma.cuh"
#include "codes.cuh"
#include "decode_rows.cuh"
#include "decode_tile.cuh"
#include "shared_prefix.cuh"
#include "softmax.cuh"

namespace pagoda {

constexpr int kPrefixWarps = 8;
constexpr int kPrefixThreads = kPrefixWarps * kWarpSize;
constexpr int kPrefixRows = 16 * kPrefixWarps;
constexpr int kPrefixBoxes = 4; // of 16 keys, a stage
constexpr int kPrefixKeys = kPrefixBoxes * kTileKeys;

template <int kHeadDim, bool kCodes> struct PrefixSmem {
  static constexpr int kStages = kHeadDim <= 128 ? 3 : 2;
  char tiles[kStages][kPrefixBoxes][KvTile<kHeadDim, kCodes>::kBytes];
  uint64_t barriers[kStages];
};

struct PrefixWork {
  int first_member, num_members; // of the group
  int tile, kv_head, split;
  int lo, hi; // keys
};

// The item of this number; false when there are fewer.
__device__ __forceinline__ bool prefix_work(const pagoda_attention_decode_params &d, const PrefixSplits &splits, int item, PrefixWork &w) {
  const pagoda_attention_params &p = d.attention;
  const int lane = threadIdx.x % kWarpSize;
  const int num_groups = __ldcg(d.prefixes.groups);
  const int heads_per_group = p.num_heads / p.num_kv_heads;
  for (int base = 0; base < num_groups; base += kWarpSize) {
    const bool exists = base + lane < num_groups;
    const int32_t *group = d.prefixes.groups + 3 + 3 * (exists ? base + lane : 0);
    const int first = __ldcg(group), members = __ldcg(group + 1), len = __ldcg(group + 2);
    const int tiles = (members * heads_per_group + kPrefixRows - 1) / kPrefixRows;
    int end = exists ? tiles * p.num_kv_heads * splits.count(len) : 0; // inclusive prefix sum
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, end, offset);
      if (lane >= offset) end += below;
    }
    const unsigned holds = __ballot_sync(0xffffffffu, item < end);
    if (holds == 0) {
      item -= __shfl_sync(0xffffffffu, end, kWarpSize - 1);
      continue;
    }
    const int owner = __ffs(holds) - 1;
    if (owner > 0) item -= __shfl_sync(0xffffffffu, end, owner - 1);
    w.first_member = __shfl_sync(0xffffffffu, first, owner);
    w.num_members = __shfl_sync(0xffffffffu, members, owner);
    const int keys = __shfl_sync(0xffffffffu, len, owner);
    // Neighbouring items read the same keys.
    const int num_tiles = __shfl_sync(0xffffffffu, tiles, owner);
    w.tile = item % num_tiles;
    w.kv_head = item / num_tiles % p.num_kv_heads;
    w.split = item / num_tiles / p.num_kv_heads;
    w.lo = w.split * splits.len;
    w.hi = min(keys, w.lo + splits.len);
    return true;
  }
  return false;
}

// Two rows of a lane: packed rows g and g + 8 of its warp.
struct PrefixRow {
  int seq, head, row, position;
  bool valid;
};

__device__ __forceinline__ PrefixRow prefix_row(const pagoda_attention_decode_params &d, const PrefixWork &w, int packed) {
  const pagoda_attention_params &p = d.attention;
  const int group = p.num_heads / p.num_kv_heads;
  const int member = packed / group;
  PrefixRow r;
  r.valid = member < w.num_members;
  r.seq = __ldcg(d.prefixes.members + w.first_member + (r.valid ? member : 0));
  r.head = w.kv_head * group + packed % group;
  r.row = __ldcg(p.cu_seqlens_q + r.seq);
  r.position = __ldcg(p.context_lens + r.seq) - 1;
  return r;
}

template <int kHeadDim> struct PrefixState {
  float o[kHeadDim / 8][4] = {};
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0.0f, 0.0f}; // of this lane's columns
};

// Products of q and k to scores in units of log2: scaled, capped, and those of the keys from `num_keys` on masked.
template <int kColumns> __device__ __forceinline__ void finish_prefix_scores(const pagoda_attention_params &p, float scale, float (&s)[kColumns][4], int num_keys) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] *= p.soft_cap > 0.0f ? scale : scale * kLog2e;
  }
  if (p.soft_cap > 0.0f) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = p.soft_cap * ptx::tanh_approx(s[n][e] / p.soft_cap) * kLog2e;
    }
  }
  if (num_keys < kPrefixKeys) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (n / 2 * kTileKeys < num_keys) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = -INFINITY;
    }
  }
}

// 16 keys by dims i * 16 .. + 16 as the second operand of two products: keys are their columns.
template <typename Tile, bool kCodes> __device__ __forceinline__ void load_prefix_k(uint32_t (&b)[4], uint32_t tile, int i, int lane) {
  const int matrix = lane / 8, matrix_row = lane % 8;
  if constexpr (!kCodes) {
    ptx::load_matrix_x4(b, tile + Tile::offset(matrix_row + matrix / 2 * 8, 2 * i + matrix % 2));
  } else {
    uint32_t codes[2];
    ptx::load_matrix_x2(codes, tile + Tile::offset(lane % 16, i));
    const CodePairs first = decode_e4m3(codes[0]), second = decode_e4m3(codes[1]);
    b[0] = first.low, b[1] = first.high, b[2] = second.low, b[3] = second.high;
  }
}

// The same of values: dims i * 16 .. + 8 and the next 8 are the columns.
template <typename Tile, bool kCodes> __device__ __forceinline__ void load_prefix_v(uint32_t (&b)[4], uint32_t tile, int i, int lane) {
  const int matrix = lane / 8, matrix_row = lane % 8;
  if constexpr (!kCodes) {
    ptx::load_matrix_x4_trans(b, tile + Tile::kValues + Tile::offset(matrix_row + matrix % 2 * 8, 2 * i + matrix / 2));
  } else {
    uint32_t codes[2];
    ptx::load_matrix_x2_trans(codes, tile + Tile::kValues + Tile::offset(lane % 16, i));
    const CodePairs low_keys = decode_e4m3(codes[0]), high_keys = decode_e4m3(codes[1]);
    b[0] = low_keys.low, b[1] = high_keys.low, b[2] = low_keys.high, b[3] = high_keys.high;
  }
}

// One stage of 64 keys, those from `num_keys` on masked. `scale` is on the products of q and k.
template <int kHeadDim, bool kCodes>
__device__ __forceinline__ void prefix_tile(const pagoda_attention_params &p, float scale, const RowFrag<kHeadDim> (&q)[2], uint32_t tiles, int num_keys, int lane, PrefixState<kHeadDim> &state) {
  using Tile = KvTile<kHeadDim, kCodes>;
  constexpr int kColumns = kPrefixKeys / 8;
  float s[kColumns][4] = {};
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
      uint32_t b[4];
      load_prefix_k<Tile, kCodes>(b, tiles + n / 2 * Tile::kBytes, i, lane);
      ptx::mma_bf16(s[n], q[0][i][0], q[1][i][0], q[0][i][1], q[1][i][1], b[0], b[1]);
      ptx::mma_bf16(s[n + 1], q[0][i][0], q[1][i][0], q[0][i][1], q[1][i][1], b[2], b[3]);
    }
  }
  finish_prefix_scores(p, scale, s, num_keys);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = state.m[r];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) m = fmaxf(m, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    if (__any_sync(0xffffffffu, m > state.m[r])) {
      const float rescale = ptx::exp2_approx(state.m[r] - m);
      state.m[r] = m;
      state.l[r] *= rescale;
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i) {
        state.o[i][2 * r] *= rescale;
        state.o[i][2 * r + 1] *= rescale;
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        s[n][2 * r + e] = ptx::exp2_approx(s[n][2 * r + e] - m);
        state.l[r] += s[n][2 * r + e];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kColumns; n += 2) {
    const uint32_t a[4] = {pack_bf16(s[n][0], s[n][1]), pack_bf16(s[n][2], s[n][3]), pack_bf16(s[n + 1][0], s[n + 1][1]), pack_bf16(s[n + 1][2], s[n + 1][3])};
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      uint32_t b[4];
      load_prefix_v<Tile, kCodes>(b, tiles + n / 2 * Tile::kBytes, i, lane);
      ptx::mma_bf16(state.o[2 * i], a[0], a[1], a[2], a[3], b[0], b[1]);
      ptx::mma_bf16(state.o[2 * i + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
}

// `scale` is on the values.
template <int kHeadDim>
__device__ __forceinline__ void store_prefix_rows(const pagoda_attention_decode_params &d, const PrefixSplits &splits, const PrefixWork &w, const PrefixRow (&rows)[2], PrefixState<kHeadDim> &state, float scale, int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    state.l[r] += __shfl_xor_sync(0xffffffffu, state.l[r], 1);
    state.l[r] += __shfl_xor_sync(0xffffffffu, state.l[r], 2);
    if (!rows[r].valid) continue;
    float *part = splits.partial<kHeadDim>(d, rows[r].seq, w.split, rows[r].head);
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) *reinterpret_cast<float2 *>(part + i * 8 + lane % 4 * 2) = make_float2(state.o[i][2 * r] * scale, state.o[i][2 * r + 1] * scale);
    if (lane % 4 == 0) *reinterpret_cast<float2 *>(part + kHeadDim) = make_float2(state.m[r], state.l[r]);
  }
}

#if __CUDA_ARCH__ >= 900
// Starts the copies of stage `first .. first + 64`; boxes behind the end are copies of the first one, and masked.
template <typename Tile>
__device__ __forceinline__ void fill_prefix_stage(const CUtensorMap *map, const CacheRows &cache, const int32_t *table, const PrefixWork &w, uint32_t tiles, uint32_t barrier, int first) {
  const KeyRange keys = {table, w.kv_head, w.lo, w.hi, w.lo, 0};
  ptx::arrive_expecting(barrier, kPrefixBoxes * Tile::kBytes);
  for (int box = 0; box < kPrefixBoxes; ++box) {
    const int key = first + box * kTileKeys;
    ptx::copy_box_4d(tiles + box * Tile::kBytes, map, cache.row(keys, key < w.hi ? key : first), barrier);
  }
}
#endif

template <int kHeadDim, bool kCodes>
__global__ void __launch_bounds__(kPrefixThreads, 1) attention_prefix_kernel(const __grid_constant__ pagoda_attention_decode_params d, const __grid_constant__ CUtensorMap map) {
#if __CUDA_ARCH__ >= 900
  using Smem = PrefixSmem<kHeadDim, kCodes>;
  constexpr int kStages = Smem::kStages;
  const pagoda_attention_params &p = d.attention;
  extern __shared__ char smem_bytes[];
  auto &smem = *reinterpret_cast<Smem *>(smem_bytes + (-ptx::smem_address(smem_bytes) & 1023));
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const uint32_t barriers = ptx::smem_address(smem.barriers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) ptx::init_barrier(barriers + i * 8, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const bool rotate = d.cos != nullptr;
  if (!rotate) wait_then_allow_next();
  const CacheRows cache(p.num_kv_heads, p.block_size);
  const PrefixSplits splits(d);
  int filled = 0, used = 0; // stages, since the start
  auto fill = [&](const PrefixWork &w, const int32_t *table, int first) {
    if (threadIdx.x == 0) fill_prefix_stage<KvTile<kHeadDim, kCodes>>(&map, cache, table, w, ptx::smem_address(smem.tiles[filled % kStages]), barriers + filled % kStages * 8, first);
    ++filled;
  };
  bool waited = !rotate;
  PrefixWork w;
  for (int item = blockIdx.x; prefix_work(d, splits, item, w); item += gridDim.x) {
    const int32_t *table = p.block_tables + static_cast<int64_t>(__ldcg(d.prefixes.members + w.first_member)) * p.max_blocks_per_seq;
    int next = w.lo;
    for (int i = 0; i < kStages - 1 && next < w.hi; ++i, next += kPrefixKeys) fill(w, table, next);
    const int packed = w.tile * kPrefixRows + warp * 16 + lane / 4;
    const PrefixRow rows[2] = {prefix_row(d, w, packed), prefix_row(d, w, packed + 8)};
    if (!waited) wait_then_allow_next();
    waited = true;
    RowFrag<kHeadDim> q[2];
    const int64_t qkv_heads = p.num_heads + 2 * p.num_kv_heads;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      load_row<kHeadDim>(q[r], static_cast<const bf16 *>(p.qkv) + (rows[r].row * qkv_heads + rows[r].head) * kHeadDim, rows[r].valid, lane);
      if (rotate) norm_and_rotate<kHeadDim>(q[r], d, d.q_norm, rows[r].position, lane);
    }
    const float k_scale = kCodes ? __ldg(p.kv_scales + w.kv_head) : 1.0f, v_scale = kCodes ? __ldg(p.kv_scales + p.num_kv_heads + w.kv_head) : 1.0f;
    PrefixState<kHeadDim> state;
    for (int first = w.lo; first < w.hi; first += kPrefixKeys) {
      ptx::wait_barrier(barriers + used % kStages * 8, used / kStages & 1);
      __syncthreads(); // all have left the stage that is filled next
      if (next < w.hi) fill(w, table, next), next += kPrefixKeys;
      prefix_tile<kHeadDim, kCodes>(p, p.scale * k_scale, q, ptx::smem_address(smem.tiles[used % kStages]), w.hi - first, lane, state);
      ++used;
    }
    store_prefix_rows<kHeadDim>(d, splits, w, rows, state, v_scale, lane);
    __syncthreads();
  }
  if (!waited) wait_then_allow_next();
#endif
}

} // namespace pagoda
