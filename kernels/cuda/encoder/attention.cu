// pagoda_encoder_attention: attention in both directions over packed sequences, sm_80 and later (mma.sync).
//
// Grid (tiles of 64 queries, heads, sequences); CTAs behind the end of a shorter sequence leave at once. 4 warps of 16 rows. Tiles of 32
// keys pass through two stages of shared memory; only tiles that a query of the CTA can see are visited. Products, softmax and sums are
// those of attention/prefill.cuh. A row's result depends on its sequence alone.
#include "../attention/prefill.cuh"

namespace pagoda {
namespace {

template <int kDim> struct EncoderSmem {
  static constexpr int kHeadDim = kDim;
  static constexpr bool kCodes = false;
  using Element = bf16;
  static constexpr int kRowTiles = 1;
  static constexpr int kBlockM = 16 * kRowTiles * kPrefillWarps;
  static constexpr int kBlockN = 32;
  static constexpr int kStride = kHeadDim + 8; // an odd number of 16-byte columns: no bank conflicts in ldmatrix
  static constexpr int kKvStride = kStride;
  bf16 q[kBlockM * kStride];
  bf16 kv[2][2][kBlockN * kStride]; // [stage][k, v]
};

// The queries and keys of one CTA.
struct EncoderTile {
  int64_t row0; // of the sequence
  int len;
  int first_query;
  int key_begin, key_end;
};

// Starts to copy rows first .. first + kRows of q (0), k (1) or v (2); zeros behind the end of the sequence.
template <typename Smem, int kRows> __device__ __forceinline__ void load_rows(const pagoda_encoder_attention_params &p, const EncoderTile &tile, int which, int first, bf16 *smem) {
  constexpr int kChunks = Smem::kHeadDim / 8;
  const int64_t heads = 3 * p.num_heads;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kPrefillWarps * kWarpSize) {
    const int row = i / kChunks, col = i % kChunks * 8;
    const bool valid = first + row < tile.len;
    const int64_t head = (tile.row0 + (valid ? first + row : 0)) * heads + which * p.num_heads + blockIdx.y;
    ptx::copy_16b_async(ptx::smem_address(smem + row * Smem::kStride + col), static_cast<const bf16 *>(p.qkv) + head * Smem::kHeadDim + col, valid);
  }
}

template <typename Smem> __device__ __forceinline__ void load_keys(const pagoda_encoder_attention_params &p, const EncoderTile &tile, int first, bf16 (*stage)[Smem::kBlockN * Smem::kStride]) {
  load_rows<Smem, Smem::kBlockN>(p, tile, 1, first, stage[0]);
  load_rows<Smem, Smem::kBlockN>(p, tile, 2, first, stage[1]);
}

// Row of the sequence that row r (0, 1) of this lane is.
__device__ __forceinline__ int query_of(const EncoderTile &tile, int r) { return tile.first_query + threadIdx.x / kWarpSize * 16 + threadIdx.x % kWarpSize / 4 + r * 8; }

template <typename Smem> __device__ __forceinline__ void mask(const EncoderTile &tile, int radius, PrefillState<Smem> &state, int first_key) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = query_of(tile, r);
    const int begin = radius < 0 ? 0 : query - radius, end = radius < 0 ? tile.len : min(tile.len, query + radius + 1);
#pragma unroll
    for (int n = 0; n < Smem::kBlockN / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + n * 8 + threadIdx.x % 4 * 2 + e;
        if (key < begin || key >= end) state.s[0][n][2 * r + e] = -INFINITY;
      }
    }
  }
}

// s += bias / scale: `factor`, which the softmax multiplies with, holds the scale.
template <typename Smem> __device__ __forceinline__ void add_bias(const pagoda_encoder_attention_params &p, const EncoderTile &tile, PrefillState<Smem> &state, int first_key) {
  const float *bias_gmem = p.bias + static_cast<int64_t>(blockIdx.y) * (2 * p.bias_reach - 1) + p.bias_reach - 1;
  const float inverse = 1.0f / p.scale;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = query_of(tile, r);
#pragma unroll
    for (int n = 0; n < Smem::kBlockN / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + n * 8 + threadIdx.x % 4 * 2 + e;
        if (key < tile.len && query < tile.len) state.s[0][n][2 * r + e] += __ldg(bias_gmem + key - query) * inverse;
      }
    }
  }
}

template <typename Smem> __device__ __forceinline__ void store(const pagoda_encoder_attention_params &p, const EncoderTile &tile, const PrefillState<Smem> &state) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = state.l[0][r];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    const int query = query_of(tile, r);
    if (query >= tile.len) continue; // alike in the four lanes of a row
    const int64_t head = (tile.row0 + query) * p.num_heads + blockIdx.y;
    uint32_t *out_gmem = reinterpret_cast<uint32_t *>(static_cast<bf16 *>(p.out) + head * Smem::kHeadDim) + threadIdx.x % 4;
    const float inverse = 1.0f / l;
#pragma unroll
    for (int i = 0; i < Smem::kHeadDim / 8; ++i) out_gmem[i * 4] = pack_bf16(state.o[0][i][2 * r] * inverse, state.o[0][i][2 * r + 1] * inverse);
  }
}

template <int kHeadDim> __global__ void __launch_bounds__(kPrefillWarps *kWarpSize) encoder_attention_kernel(const __grid_constant__ pagoda_encoder_attention_params p) {
  using Smem = EncoderSmem<kHeadDim>;
  constexpr int kBlockN = Smem::kBlockN;
  extern __shared__ __align__(16) char smem_bytes[];
  Smem &smem = *reinterpret_cast<Smem *>(smem_bytes);
  wait_then_allow_next();
  const int row0 = __ldcg(p.cu_seqlens + blockIdx.z);
  const int len = __ldcg(p.cu_seqlens + blockIdx.z + 1) - row0;
  const int first_query = blockIdx.x * Smem::kBlockM;
  if (first_query >= len) return;
  const int last_query = min(first_query + Smem::kBlockM, len);
  const EncoderTile tile{row0, len, first_query, p.radius < 0 ? 0 : max(0, first_query - p.radius), p.radius < 0 ? len : min(len, last_query + p.radius)};
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  PrefillState<Smem> state;
  const float factor = p.scale * kLog2e;
  int first_key = tile.key_begin / kBlockN * kBlockN;
  load_rows<Smem, Smem::kBlockM>(p, tile, 0, first_query, smem.q);
  load_keys<Smem>(p, tile, first_key, smem.kv[0]);
  ptx::commit_copies();
  for (int stage = 0; first_key < tile.key_end; first_key += kBlockN, stage ^= 1) {
    if (first_key + kBlockN < tile.key_end) load_keys<Smem>(p, tile, first_key + kBlockN, smem.kv[stage ^ 1]);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    __syncthreads();
    scores<Smem>(state, smem.q + warp * 16 * Smem::kStride, smem.kv[stage][0], lane);
    if (p.bias) add_bias<Smem>(p, tile, state, first_key);
    if (p.radius >= 0 || first_key + kBlockN > len) mask<Smem>(tile, p.radius, state, first_key);
    softmax_step<Smem>(state, factor, 0, 0);
    softmax_step<Smem>(state, factor, 0, 1);
    accumulate<Smem>(state, smem.kv[stage][1], lane);
    __syncthreads();
  }
  store<Smem>(p, tile, state);
}

template <int kHeadDim> pagoda_status run(const pagoda_encoder_attention_params &p, pagoda_stream stream) {
  using Smem = EncoderSmem<kHeadDim>;
  const dim3 grid(static_cast<unsigned>((p.max_seq_len + Smem::kBlockM - 1) / Smem::kBlockM), static_cast<unsigned>(p.num_heads), static_cast<unsigned>(p.num_seqs));
  return launch(encoder_attention_kernel<kHeadDim>, {grid, kPrefillWarps * kWarpSize, sizeof(Smem)}, p, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_encoder_attention(const pagoda_encoder_attention_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->qkv || !p->cu_seqlens || p->num_seqs < 0 || p->num_seqs > 65535 || p->num_heads <= 0 || p->num_heads > 65535) return PAGODA_INVALID_ARGUMENT;
  if (p->bias && p->bias_reach < p->max_seq_len) return PAGODA_INVALID_ARGUMENT;
  if (p->max_seq_len < 0 || p->radius < -1 || !(p->scale > 0.0f)) return PAGODA_INVALID_ARGUMENT;
  if (p->num_seqs == 0 || p->max_seq_len == 0) return PAGODA_OK;
  switch (p->head_dim) { // tiny models of tests, MiniLM, most encoders, some wide ones, those of decoders' shape
  case 16: return run<16>(*p, stream);
  case 32: return run<32>(*p, stream);
  case 64: return run<64>(*p, stream);
  case 96: return run<96>(*p, stream);
  case 128: return run<128>(*p, stream);
  default: return PAGODA_UNSUPPORTED;
  }
}
