// Sums of softmax over parts of the keys, and how they become one: of the warps of a CTA, of the pieces of a context, of its prefix.
//
// A part is (o, m, l): o[d] = sum of 2^(s - m) v[d], l = sum of 2^(s - m) over its keys, for any m near the largest score.
#pragma once
#include "decode_product.cuh"
#include "decode_work.cuh"

namespace pagoda {

// Four columns of a part.
struct Part {
  float4 o = {0.0f, 0.0f, 0.0f, 0.0f};
  float m = -INFINITY, l = 0.0f;

  __device__ __forceinline__ void add(float4 v, float2 stats) {
    const float larger = fmaxf(m, stats.x);
    const float before = ptx::exp2_approx(m - larger), weight = ptx::exp2_approx(stats.x - larger);
    m = larger;
    l = l * before + weight * stats.y;
    o.x = o.x * before + weight * v.x;
    o.y = o.y * before + weight * v.y;
    o.z = o.z * before + weight * v.z;
    o.w = o.w * before + weight * v.w;
  }

  // Parts in global memory, `stride` floats apart: [kHeadDim] o, m, l.
  template <int kHeadDim> __device__ __forceinline__ void add_all(const float *part, int64_t stride, int count, int col) {
#pragma unroll 4
    for (int i = 0; i < count; ++i) add(__ldcg(reinterpret_cast<const float4 *>(part + i * stride + col)), __ldcg(reinterpret_cast<const float2 *>(part + i * stride + kHeadDim)));
  }

  __device__ __forceinline__ void store(bf16 *out_gmem) const {
    const float inverse = 1.0f / l;
    *reinterpret_cast<uint2 *>(out_gmem) = make_uint2(pack_bf16(o.x * inverse, o.y * inverse), pack_bf16(o.z * inverse, o.w * inverse));
  }
};

// One warp's part of an item.
template <int kHeadDim> struct WarpState {
  static constexpr int kStride = kHeadDim + 4; // four heads' rows lie in different banks
  float o[kDecodeHeads][kStride];
  float2 stats[kDecodeHeads]; // m, l
};

// `scale` is on the values.
template <int kHeadDim> __device__ __forceinline__ void store_state(WarpState<kHeadDim> &stored, DecodeState<kHeadDim> &state, float scale, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int offset = 4; offset < kWarpSize; offset *= 2) state.l[c] += __shfl_xor_sync(0xffffffffu, state.l[c], offset);
    if (g == 0) stored.stats[2 * t + c] = make_float2(state.base[c], state.l[c]);
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      stored.o[2 * t + c][i * 16 + g] = state.o[i][c] * scale;
      stored.o[2 * t + c][i * 16 + g + 8] = state.o[i][c + 2] * scale;
    }
  }
}

// What the prefix of a sequence adds to a row.
template <int kHeadDim> __device__ __forceinline__ void add_prefix(Part &sum, const pagoda_attention_decode_params &d, const DecodeWork &w, int head, int col) {
  const PrefixSplits prefixes(d);
  sum.add_all<kHeadDim>(prefixes.partial<kHeadDim>(d, w.seq, 0, head), static_cast<int64_t>(d.attention.num_heads) * (kHeadDim + 4), w.prefix_splits, col);
}

template <int kHeadDim> __device__ __forceinline__ bf16 *out_row(const pagoda_attention_decode_params &d, const DecodeWork &w, int head) {
  return static_cast<bf16 *>(d.attention.out) + (static_cast<int64_t>(w.row) * d.attention.num_heads + head) * kHeadDim;
}

// The warps' states as one: into `out` where the context is one piece, else into `partials`. By all threads that compute.
template <int kHeadDim> __device__ __forceinline__ void merge_warps(const pagoda_attention_decode_params &d, const DecodeWork &w, const WarpState<kHeadDim> (&states)[kDecodeWarps]) {
  constexpr int kColumns = kHeadDim / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < w.num_heads * kColumns; i += kDecodeWarps * kWarpSize) {
    const int h = i / kColumns, col = i % kColumns * 4, head = w.first_head + h;
    Part sum;
    if (w.num_pieces == 1 && w.prefix_splits > 0) add_prefix<kHeadDim>(sum, d, w, head, col);
#pragma unroll
    for (int v = 0; v < kDecodeWarps; ++v) sum.add(*reinterpret_cast<const float4 *>(&states[v].o[h][col]), states[v].stats[h]);
    if (w.num_pieces == 1) {
      sum.store(out_row<kHeadDim>(d, w, head) + col);
      continue;
    }
    float *part = d.partials + (static_cast<int64_t>(w.piece) * d.attention.num_heads + head) * (kHeadDim + 4);
    *reinterpret_cast<float4 *>(part + col) = sum.o;
    if (col == 0) *reinterpret_cast<float2 *>(part + kHeadDim) = make_float2(sum.m, sum.l);
  }
}

// The pieces of a context as one, for one item's heads, into `out`.
template <int kHeadDim> __device__ __forceinline__ void merge_pieces(const pagoda_attention_decode_params &d, const DecodeWork &w) {
  constexpr int kColumns = kHeadDim / 4;
  const int64_t stride = static_cast<int64_t>(d.attention.num_heads) * (kHeadDim + 4);
#pragma unroll 1
  for (int i = threadIdx.x; i < w.num_heads * kColumns; i += kDecodeWarps * kWarpSize) {
    const int head = w.first_head + i / kColumns, col = i % kColumns * 4;
    Part sum;
    if (w.prefix_splits > 0) add_prefix<kHeadDim>(sum, d, w, head, col);
    sum.add_all<kHeadDim>(d.partials + (w.piece - w.pieces_before) * stride + head * (kHeadDim + 4), stride, w.num_pieces, col);
    sum.store(out_row<kHeadDim>(d, w, head) + col);
  }
}

} // namespace pagoda
