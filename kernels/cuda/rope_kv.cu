// pagoda_rope_kv: norm and rotation of q and k, and the way of k and v into the paged cache.
//
// A lane holds units of a head: two pieces of kWidth elements that contain both elements of every pair they rotate, so nothing is exchanged.
//
//   halves pair:        unit u     [ u * W .. )  and  [ rotary_dim / 2 + u * W .. )        W = kWidth, rotated by cosines [ u * W .. )
//   neighbours pair:    unit u     [ 2 u * W .. 2 (u + 1) * W )                            the same cosines
//   beyond rotary_dim:  two pieces after one another, which pass through
//
// A power of two of lanes has a head. Positions, slots, cosines and sines are read before the wait for the previous kernel. All arithmetic
// in f32, one rounding at the end.
// Bound by memory: each head is read once and written once (q, v) or twice (k). Measured on an H200 (28 + 2 * 4 heads of 128): 8192 tokens take
// 48 us, 3.3 TB/s, where a copy of as many bytes takes 40; one token takes 0.9 us between kernels that start early. Four heads a lane, with the
// cosines in registers, take 43 us for 8192 tokens and 2 for one.
#include "attention/codes.cuh"
#include "attention/paged_kv.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxHeadDim = 256;

struct RopeKv {
  pagoda_rope_kv_params p;
  int log_lanes; // lanes that share a head: 1 << log_lanes
};

// Consecutive elements of a head.
template <int kWidth> struct Piece;

template <> struct Piece<kOctet> {
  uint4 words;
  __device__ __forceinline__ void load(const bf16 *gmem) { words = ptx::load_16b(gmem); }
  __device__ __forceinline__ void store(bf16 *gmem) const { ptx::store_16b(gmem, words); }
  __device__ __forceinline__ void unpack(float (&v)[kOctet]) const {
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) v[2 * i] = low_f32(pairs[i]), v[2 * i + 1] = high_f32(pairs[i]);
  }
  __device__ __forceinline__ void pack(const float (&v)[kOctet]) {
    words = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
  }
};

template <> struct Piece<1> {
  bf16 value;
  __device__ __forceinline__ void load(const bf16 *gmem) { value = load_fresh(gmem); }
  __device__ __forceinline__ void store(bf16 *gmem) const { *gmem = value; }
  __device__ __forceinline__ void unpack(float (&v)[1]) const { v[0] = to_f32(value); }
  __device__ __forceinline__ void pack(const float (&v)[1]) { value = from_f32<bf16>(v[0]); }
};

// v = base[0 .. kWidth) of a table that nobody writes.
template <int kWidth> __device__ __forceinline__ void load_table(float (&v)[kWidth], const float *base) {
  if constexpr (kWidth == 1) {
    v[0] = __ldg(base);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const float4 part = __ldg(reinterpret_cast<const float4 *>(base + i));
      v[i] = part.x, v[i + 1] = part.y, v[i + 2] = part.z, v[i + 3] = part.w;
    }
  }
}

// Where the two pieces of a unit begin, and what is done with them.
struct Unit {
  int a, b;
  bool has_a, has_b, rotates;

  __device__ __forceinline__ Unit(const pagoda_rope_kv_params &p, int width, int u) {
    const int half = p.rotary_dim / 2;
    const int rest = u * width - half; // beyond the rotated ones
    rotates = rest < 0;
    a = p.interleaved || !rotates ? 2 * u * width : u * width;
    b = p.interleaved || !rotates ? a + width : half + u * width;
    has_a = a < p.head_dim;
    has_b = b < p.head_dim;
  }
};

// Rotates the pieces of a unit by its cosines and sines.
template <int kWidth>
__device__ __forceinline__ void rotate(float (&a)[kWidth], float (&b)[kWidth], const float (&cos)[kWidth], const float (&sin)[kWidth], bool neighbours) {
  const auto pair = [](float &x, float &y, float cos, float sin) {
    const float rotated = x * cos - y * sin;
    y = y * cos + x * sin;
    x = rotated;
  };
  if (kWidth > 1 && neighbours) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) {
      pair(a[2 * i], a[(2 * i + 1) % kWidth], cos[i], sin[i]);
      pair(b[2 * i], b[(2 * i + 1) % kWidth], cos[kWidth / 2 + i], sin[kWidth / 2 + i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) pair(a[i], b[i], cos[i], sin[i]);
  }
}

template <int kWidth> __device__ __forceinline__ float squares(const Piece<kWidth> &piece) {
  float v[kWidth], sum = 0.0f;
  piece.unpack(v);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sum = fmaf(v[i], v[i], sum);
  return sum;
}

template <int kWidth> __device__ __forceinline__ void scale_by(float (&v)[kWidth], const float *norm, float scale) {
  float w[kWidth];
  load_table(w, norm);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v[i] *= scale * w[i];
}

// Where k or v of a head goes in the cache, in elements; -1: nowhere, since it is q or its row only fills up the batch and has no slot.
__device__ __forceinline__ int64_t cache_offset(const pagoda_rope_kv_params &p, int head, int slot) {
  if (head < p.num_heads || slot < 0) return -1;
  const PagedKv cache{p.num_kv_heads, p.block_size, p.head_dim};
  const int row = head - p.num_heads, kv_head = row % p.num_kv_heads;
  return cache.k_offset(slot / p.block_size, kv_head, slot % p.block_size) + (row < p.num_kv_heads ? 0 : cache.v_distance());
}

// A unit to its place among the codes of a head. Sixteen elements are coded together: two pieces of one lane where they follow each other;
// of halves, those of a pair of lanes, which exchange them: the even lane stores the first half's, the odd lane the second's.
__device__ __forceinline__ void store_codes(uint8_t *head_gmem, const Piece<kOctet> &a, const Piece<kOctet> &b, const Unit &unit, bool in_halves, float scale) {
  uint4 low = a.words, high = b.words;
  int first = unit.a;
  if (in_halves) {
    const bool is_odd = unit.a / kOctet % 2;
    const uint32_t pair = 3u << (threadIdx.x % kWarpSize & ~1u);
    const uint4 given = is_odd ? a.words : b.words;
    const uint4 got = make_uint4(__shfl_xor_sync(pair, given.x, 1), __shfl_xor_sync(pair, given.y, 1), __shfl_xor_sync(pair, given.z, 1), __shfl_xor_sync(pair, given.w, 1));
    if (is_odd) low = got, first = unit.b - kOctet;
    else high = got;
  }
  ptx::store_16b(head_gmem + first, make_uint4(encode_e4m3(low.x, high.x, scale), encode_e4m3(low.y, high.y, scale), encode_e4m3(low.z, high.z, scale), encode_e4m3(low.w, high.w, scale)));
}

__device__ __forceinline__ void store_codes(uint8_t *head_gmem, const Piece<1> &a, const Piece<1> &b, const Unit &unit, bool, float scale) {
  const auto put = [&](int element, bf16 value) {
    const int in_chunk = element % 16;
    head_gmem[element / 16 * 16 + (in_chunk < 8 ? 2 * in_chunk : 2 * in_chunk - 15)] = static_cast<uint8_t>(e4m3_pair(to_f32(value) / scale, 0.0f));
  };
  if (unit.has_a) put(unit.a, a.value);
  if (unit.has_b) put(unit.b, b.value);
}

// A unit of k or v to the cache; `row`: of its scale.
template <int kWidth>
__device__ __forceinline__ void store_unit(const pagoda_rope_kv_params &p, const Piece<kWidth> &a, const Piece<kWidth> &b, const Unit &unit, int row, int64_t offset) {
  if (p.kv_scales) {
    if (unit.has_a) store_codes(static_cast<uint8_t *>(p.kv) + offset, a, b, unit, unit.rotates && !p.interleaved, __ldg(p.kv_scales + row));
    return;
  }
  bf16 *kv_gmem = static_cast<bf16 *>(p.kv) + offset;
  if (unit.has_a) a.store(kv_gmem + unit.a);
  if (unit.has_b) b.store(kv_gmem + unit.b);
}

template <int kWidth, int kUnits> __global__ void __launch_bounds__(kThreads) rope_kv_kernel(const __grid_constant__ RopeKv k) {
  const pagoda_rope_kv_params &p = k.p;
  const uint32_t num_rows = p.num_heads + 2 * p.num_kv_heads;
  const int lane = threadIdx.x & ((1 << k.log_lanes) - 1);
  const uint32_t row = (blockIdx.x * kThreads + threadIdx.x) >> k.log_lanes; // a head of a token
  const uint32_t token = row / num_rows;
  const int head = row - token * num_rows;
  const bool is_there = token < static_cast<uint32_t>(p.num_tokens);

  // Positions and slots were there before the first kernel of the step began.
  const int position = is_there ? static_cast<int>(ptx::load_4b(p.positions + token)) : 0;
  const int slot = is_there ? static_cast<int>(ptx::load_4b(p.slot_mapping + token)) : -1;
  float cos[kUnits][kWidth], sin[kUnits][kWidth];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int u = lane + (i << k.log_lanes);
    if (!Unit(p, kWidth, u).rotates) continue;
    const int64_t first = static_cast<int64_t>(position) * (p.rotary_dim / 2) + u * kWidth;
    load_table(cos[i], p.cos + first);
    load_table(sin[i], p.sin + first);
  }
  wait_then_allow_next();

  bf16 *head_gmem = static_cast<bf16 *>(p.qkv) + static_cast<int64_t>(row) * p.head_dim;
  Piece<kWidth> a_frag[kUnits] = {}, b_frag[kUnits] = {};
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const Unit unit(p, kWidth, lane + (i << k.log_lanes));
    if (is_there && unit.has_a) a_frag[i].load(head_gmem + unit.a);
    if (is_there && unit.has_b) b_frag[i].load(head_gmem + unit.b);
  }
  const bool is_v = head >= p.num_heads + p.num_kv_heads;
  const float *norm = is_v ? nullptr : head < p.num_heads ? p.q_norm : p.k_norm;
  float scale = 1.0f;
  if (p.q_norm || p.k_norm) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) sum += squares(a_frag[i]) + squares(b_frag[i]);
    for (int lanes = 1 << k.log_lanes >> 1; lanes > 0; lanes >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    scale = rsqrtf(sum / static_cast<float>(p.head_dim) + p.eps);
  }
  if (!is_there) return;

  const int64_t offset = cache_offset(p, head, slot);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const Unit unit(p, kWidth, lane + (i << k.log_lanes));
    Piece<kWidth> &a = a_frag[i], &b = b_frag[i];
    if (!is_v && (unit.rotates || norm)) {
      float av[kWidth], bv[kWidth];
      a.unpack(av);
      b.unpack(bv);
      if (norm && unit.has_a) scale_by(av, norm + unit.a, scale);
      if (norm && unit.has_b) scale_by(bv, norm + unit.b, scale);
      if (unit.rotates) rotate(av, bv, cos[i], sin[i], p.interleaved);
      a.pack(av);
      b.pack(bv);
      if (unit.has_a) a.store(head_gmem + unit.a);
      if (unit.has_b) b.store(head_gmem + unit.b);
    }
    if (offset >= 0) store_unit(p, a, b, unit, head - p.num_heads, offset);
  }
}

// Octets, and single elements for heads whose halves are no octets, or no chunks of codes.
pagoda_status launch_rope_kv(const pagoda_rope_kv_params &p, cudaStream_t stream) {
  const bool in_octets = p.head_dim % kOctet == 0 && p.rotary_dim % ((p.kv_scales && !p.interleaved ? 4 : 2) * kOctet) == 0;
  const int num_units = in_octets ? (p.head_dim + 2 * kOctet - 1) / (2 * kOctet) : kWarpSize;
  RopeKv k{p, 0};
  while (1 << k.log_lanes < num_units) ++k.log_lanes;
  const int64_t num_threads = static_cast<int64_t>(p.num_tokens) * (p.num_heads + 2 * p.num_kv_heads) << k.log_lanes;
  if (num_threads > UINT32_MAX - kThreads) return PAGODA_UNSUPPORTED;
  const auto kernel = in_octets ? rope_kv_kernel<kOctet, 1> : rope_kv_kernel<1, kMaxHeadDim / 2 / kWarpSize>;
  return launch(kernel, {static_cast<unsigned>((num_threads + kThreads - 1) / kThreads), kThreads}, k, stream);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_rope_kv(const pagoda_rope_kv_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->qkv || !p->kv || !p->positions || !p->slot_mapping || !p->cos || !p->sin) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens < 0 || p->num_heads <= 0 || p->num_kv_heads <= 0 || p->block_size <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->rotary_dim < 0 || p->rotary_dim > p->head_dim || p->rotary_dim % 2 != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->head_dim <= 0 || p->head_dim > kMaxHeadDim || p->head_dim % (p->kv_scales ? 16 : 2) != 0) return PAGODA_UNSUPPORTED;
  return p->num_tokens == 0 ? PAGODA_OK : launch_rope_kv(*p, stream);
}
