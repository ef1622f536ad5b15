// What one warp of decode attention does with a tile: scores, softmax, sums.
#pragma once
#include "../ptx/math.cuh"
#include "../ptx/memory.cuh"
#include "../ptx/mma.cuh"
#include "codes.cuh"
#include "decode_rows.cuh"
#include "decode_tile.cuh"
#include "softmax.cuh"

namespace pagoda {

// Columns 2t and 2t + 1 of the heads, rows g and g + 8 of every 16 head dims (lane = 4g + t). Probabilities are relative to `base`, which
// follows the largest score at a distance: it is raised only when a score is more than kSlack above it. Any base gives the same sums.
template <int kHeadDim> struct DecodeState {
  float o[kHeadDim / 16][4] = {};
  float base[2] = {kNoScore, kNoScore};
  float l[2] = {0.0f, 0.0f}; // of this lane's keys

  static constexpr float kNoScore = -1e30f; // below every score but that of a masked key, and finite
  static constexpr float kSlack = 8.0f;     // probabilities stay below 2^8
};

template <int kHeadDim> __device__ __forceinline__ void raise_base(DecodeState<kHeadDim> &state, const float (&s)[4]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float m = fmaxf(s[c], s[c + 2]);
#pragma unroll
    for (int offset = 4; offset < kWarpSize; offset *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, offset));
    m = fmaxf(m, state.base[c]);
    const float rescale = ptx::exp2_approx(state.base[c] - m);
    state.base[c] = m;
    state.l[c] *= rescale;
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      state.o[i][c] *= rescale;
      state.o[i][c + 2] *= rescale;
    }
  }
}

// One warp: keys 16 x head dims 16 as the operand of a product, of elements or of codes, with dims along its columns (k) or its rows (v).
template <int kHeadDim, bool kCodes> struct TileOperand {
  using Tile = KvTile<kHeadDim, kCodes>;
  uint32_t codes[4]; // of dims 32 j .. 32 j + 32

  __device__ __forceinline__ void load_k(uint32_t (&a)[4], uint32_t tile, int i, int lane) {
    const int matrix = lane / 8, key = lane % 8 + matrix % 2 * 8;
    if constexpr (!kCodes) {
      ptx::load_matrix_x4(a, tile + Tile::offset(key, 2 * i + matrix / 2));
    } else {
      if (i % 2 == 0) ptx::load_matrix_x4(codes, tile + Tile::offset(key, min(i + matrix / 2, Tile::kChunks - 1)));
      const CodePairs low_keys = decode_e4m3(codes[i % 2 * 2]), high_keys = decode_e4m3(codes[i % 2 * 2 + 1]);
      a[0] = low_keys.low, a[1] = high_keys.low, a[2] = low_keys.high, a[3] = high_keys.high;
    }
  }

  __device__ __forceinline__ void load_v(uint32_t (&a)[4], uint32_t tile, int i, int lane) {
    const int matrix = lane / 8;
    if constexpr (!kCodes) {
      ptx::load_matrix_x4_trans(a, tile + Tile::kValues + Tile::offset(lane % 8 + matrix / 2 * 8, 2 * i + matrix % 2));
    } else {
      if (i % 2 == 0) ptx::load_matrix_x4_trans(codes, tile + Tile::kValues + Tile::offset(lane % 8 + matrix % 2 * 8, min(i + matrix / 2, Tile::kChunks - 1)));
      const CodePairs low_keys = decode_e4m3(codes[i % 2 * 2]), high_keys = decode_e4m3(codes[i % 2 * 2 + 1]);
      a[0] = low_keys.low, a[1] = low_keys.high, a[2] = high_keys.low, a[3] = high_keys.high;
    }
  }
};

// Keys lo <= key < hi of the tile count; the others are looked at where is_edge. `scale` is on the scores.
template <int kHeadDim, bool kCodes>
__device__ __forceinline__ void decode_tile(const pagoda_attention_params &p, float scale, const RowFrag<kHeadDim> &q, uint32_t tile, bool is_edge, int lo, int hi, int lane,
                                            DecodeState<kHeadDim> &state) {
  TileOperand<kHeadDim, kCodes> operand;
  float s[4] = {}, odd[4] = {}; // two chains of products
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t a[4];
    operand.load_k(a, tile, i, lane);
    ptx::mma_bf16(i % 2 ? odd : s, a[0], a[1], a[2], a[3], q[i][0], q[i][1]);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) s[e] = (s[e] + odd[e]) * scale;
  if (p.soft_cap > 0.0f) {
#pragma unroll 1
    for (int e = 0; e < 4; ++e) {
      const float v = p.soft_cap * tanhf(s[0] / p.soft_cap); // turns the four through one place of the code
      s[0] = s[1], s[1] = s[2], s[2] = s[3], s[3] = v;
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) s[e] *= kLog2e;
  if (is_edge) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = lane / 4 + e / 2 * 8;
      if (key < lo || key >= hi) s[e] = -INFINITY;
    }
  }
  const bool is_above = fmaxf(s[0], s[2]) > state.base[0] + state.kSlack || fmaxf(s[1], s[3]) > state.base[1] + state.kSlack;
  if (__any_sync(0xffffffffu, is_above)) raise_base(state, s);
#pragma unroll
  for (int e = 0; e < 4; ++e) s[e] = ptx::exp2_approx(s[e] - state.base[e % 2]);
  state.l[0] += s[0] + s[2];
  state.l[1] += s[1] + s[3];
  const uint32_t p_low = ptx::transpose_8x8(pack_bf16(s[0], s[1]));
  const uint32_t p_high = ptx::transpose_8x8(pack_bf16(s[2], s[3]));
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    uint32_t a[4];
    operand.load_v(a, tile, i, lane);
    ptx::mma_bf16(state.o[i], a[0], a[1], a[2], a[3], p_low, p_high);
  }
}

// Values of keys outside lo .. hi as zeros: their probability is 0, and 0 * NaN is NaN.
template <typename Tile> __device__ __forceinline__ void clear_outside(uint32_t tile, int lo, int hi, int lane) {
#pragma unroll 1
  for (int i = lane; i < kTileKeys * Tile::kChunks; i += kWarpSize) {
    const int key = i / Tile::kChunks;
    if (key < lo || key >= hi) ptx::store_shared_16b(tile + Tile::kValues + Tile::offset(key, i % Tile::kChunks), make_uint4(0, 0, 0, 0));
  }
}

} // namespace pagoda
