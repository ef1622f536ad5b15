// Small ops on step metadata and rows: resolve_tokens, scatter_ints, gather_rows (embedding), gather_columns, soft_cap, add_bias, copy_blocks; xor_words.
//
// All bound by memory or by the launch itself; one thread a 16-byte vector where rows are moved.
#include "common/launch.cuh"
#include "common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 128;

unsigned num_ctas(int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

__device__ __forceinline__ int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

__global__ void resolve_tokens_kernel(const __grid_constant__ pagoda_resolve_tokens_params p) {
  wait_then_allow_next();
  const int64_t i = global_thread();
  if (i >= p.num_tokens) return;
  const int source = __ldcg(p.token_source + i);
  if (source >= 0) p.token_ids[i] = __ldcg(p.last_tokens + source);
}

__global__ void scatter_ints_kernel(const __grid_constant__ pagoda_scatter_ints_params p) {
  wait_then_allow_next();
  const int64_t i = global_thread();
  if (i < p.count) p.dst[__ldcg(p.index + i)] = __ldcg(p.values + i);
}

// One CTA a row.
template <typename Out, typename In> __global__ void gather_rows_kernel(const __grid_constant__ pagoda_gather_rows_params p) {
  wait_then_allow_next();
  const int64_t row = __ldcg(p.index + blockIdx.x);
  const bool inside = row >= 0 && row < p.num_table_rows;
  const In *src_gmem = static_cast<const In *>(p.table) + (inside ? row : 0) * p.cols;
  Out *dst_gmem = static_cast<Out *>(p.out) + static_cast<int64_t>(blockIdx.x) * p.cols;
  for (int octet_idx = threadIdx.x; octet_idx < p.cols / kOctet; octet_idx += blockDim.x) {
    float v[kOctet];
    load_octet(v, src_gmem, octet_idx);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) v[e] = inside ? v[e] * p.scale : 0.0f;
    store_octet(dst_gmem, octet_idx, v);
  }
}

// A thread 8 columns of one token.
__global__ void gather_columns_kernel(const __grid_constant__ pagoda_gather_columns_params p) {
  wait_then_allow_next();
  const int octets = p.k / kOctet;
  const int64_t i = global_thread();
  if (i >= static_cast<int64_t>(p.num_tokens) * octets) return;
  const int64_t token = i / octets, octet_idx = i % octets;
  const bf16 *row_gmem = static_cast<const bf16 *>(p.x) + token * p.k;
  Vec<bf16> out;
#pragma unroll
  for (int e = 0; e < kOctet; ++e) out.elems[e] = load_fresh(row_gmem + p.order[octet_idx * kOctet + e]);
  out.store(static_cast<bf16 *>(p.out) + token * p.k, octet_idx);
}

__global__ void soft_cap_kernel(const __grid_constant__ pagoda_soft_cap_params p) {
  wait_then_allow_next();
  const int64_t i = global_thread();
  if (i < p.count) p.x[i] = p.cap * tanhf(__ldcg(p.x + i) / p.cap);
}

template <typename T> __global__ void add_bias_kernel(const __grid_constant__ pagoda_add_bias_params p) {
  wait_then_allow_next();
  T *row_gmem = static_cast<T *>(p.out) + static_cast<int64_t>(blockIdx.x) * p.cols;
  for (int i = threadIdx.x; i < p.cols; i += blockDim.x) row_gmem[i] = from_f32<T>(to_f32(load_fresh(row_gmem + i)) + p.bias[i]);
}

// kPieces vectors of every thread are in flight at once.
__global__ void __launch_bounds__(kThreads) xor_words_kernel(const __grid_constant__ pagoda_xor_words_params p) {
  constexpr int kPieces = 8;
  wait_then_allow_next();
  const int64_t num_vecs = p.num_bytes / kVecBytes, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const uint4 *data_gmem = static_cast<const uint4 *>(p.data);
  uint32_t word = 0;
  int64_t i = global_thread();
  for (; i + (kPieces - 1) * stride < num_vecs; i += kPieces * stride) {
    uint4 v[kPieces];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) v[piece] = __ldcs(data_gmem + i + piece * stride);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) word ^= v[piece].x ^ v[piece].y ^ v[piece].z ^ v[piece].w;
  }
  for (; i < num_vecs; i += stride) {
    const uint4 v = __ldcs(data_gmem + i);
    word ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  atomicXor(p.out, word);
}

// Grid (chunks of a block, pairs).
__global__ void copy_blocks_kernel(const __grid_constant__ pagoda_copy_blocks_params p) {
  wait_then_allow_next();
  const int64_t vec_idx = global_thread();
  if (vec_idx >= p.block_bytes / kVecBytes) return;
  const int64_t src = __ldcg(p.pairs + 2 * blockIdx.y);
  const int64_t dst = __ldcg(p.pairs + 2 * blockIdx.y + 1);
  char *kv_gmem = static_cast<char *>(p.kv);
  ptx::store_16b(kv_gmem + dst * p.block_bytes + vec_idx * kVecBytes, ptx::load_16b(kv_gmem + src * p.block_bytes + vec_idx * kVecBytes));
}

} // namespace
} // namespace pagoda

using namespace pagoda;

extern "C" pagoda_status pagoda_resolve_tokens(const pagoda_resolve_tokens_params *p, pagoda_stream stream) {
  if (!p || !p->token_ids || !p->token_source || !p->last_tokens || p->num_tokens < 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens == 0) return PAGODA_OK;
  return launch(resolve_tokens_kernel, {num_ctas(p->num_tokens), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_scatter_ints(const pagoda_scatter_ints_params *p, pagoda_stream stream) {
  if (!p || !p->dst || !p->index || !p->values || p->count < 0) return PAGODA_INVALID_ARGUMENT;
  if (p->count == 0) return PAGODA_OK;
  return launch(scatter_ints_kernel, {num_ctas(p->count), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_gather_rows(const pagoda_gather_rows_params *p, pagoda_stream stream) {
  if (!p || !p->out || !p->table || !p->index || p->num_rows < 0 || p->num_table_rows <= 0 || p->cols <= 0) return PAGODA_INVALID_ARGUMENT;
  const bool from_bf16 = p->table_dtype == PAGODA_BF16, to_bf16 = p->out_dtype == PAGODA_BF16;
  const bool from_f32 = p->table_dtype == PAGODA_F32, to_f32 = p->out_dtype == PAGODA_F32;
  if (p->cols % kOctet != 0 || !((from_bf16 && (to_bf16 || to_f32)) || (from_f32 && to_f32))) return PAGODA_UNSUPPORTED;
  if (p->num_rows == 0) return PAGODA_OK;
  const auto kernel = from_f32 ? gather_rows_kernel<float, float> : to_f32 ? gather_rows_kernel<float, bf16> : gather_rows_kernel<bf16, bf16>;
  return launch(kernel, {static_cast<unsigned>(p->num_rows), kRowThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_gather_columns(const pagoda_gather_columns_params *p, pagoda_stream stream) {
  if (!p || !p->out || !p->x || !p->order || p->num_tokens < 0 || p->k <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->k % kOctet) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  return launch(gather_columns_kernel, {num_ctas(static_cast<int64_t>(p->num_tokens) * (p->k / kOctet)), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_soft_cap(const pagoda_soft_cap_params *p, pagoda_stream stream) {
  if (!p || !p->x || p->count < 0 || !(p->cap > 0.0f)) return PAGODA_INVALID_ARGUMENT;
  if (p->count == 0) return PAGODA_OK;
  return launch(soft_cap_kernel, {num_ctas(p->count), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_add_bias(const pagoda_add_bias_params *p, pagoda_stream stream) {
  if (!p || !p->out || !p->bias || p->num_tokens < 0 || p->cols <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->dtype != PAGODA_F32 && p->dtype != PAGODA_BF16) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  const auto kernel = p->dtype == PAGODA_F32 ? add_bias_kernel<float> : add_bias_kernel<bf16>;
  return launch(kernel, {static_cast<unsigned>(p->num_tokens), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_copy_blocks(const pagoda_copy_blocks_params *p, pagoda_stream stream) {
  if (!p || !p->kv || !p->pairs || p->num_pairs < 0 || p->num_pairs > 65535 || p->block_bytes <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->block_bytes % kVecBytes != 0) return PAGODA_UNSUPPORTED;
  if (p->num_pairs == 0) return PAGODA_OK;
  return launch(copy_blocks_kernel, {dim3(num_ctas(p->block_bytes / kVecBytes), static_cast<unsigned>(p->num_pairs)), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_xor_words(const pagoda_xor_words_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->data || p->num_bytes < 0 || p->num_bytes % kVecBytes != 0 || p->num_ctas <= 0) return PAGODA_INVALID_ARGUMENT;
  return launch(xor_words_kernel, {static_cast<unsigned>(p->num_ctas), kThreads}, *p, stream);
}
