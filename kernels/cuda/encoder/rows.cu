// Row-wise ops of encoders: layer norm, sums of table rows, activation in place, rotation in place, pooling.
//
// All bound by memory. Layer norm: one CTA a row, which it holds in registers as norm.cuh does (thread t: octets t, t + blockDim, ...), so
// that mean and variance take two passes over registers. Pooling: a thread a column, sums in the order of the rows.
#include "../common/activate.cuh"
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include "../common/vec.cuh"

namespace pagoda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 128;
constexpr int kMaxOctets = 4;

// block_sum may be called once a kernel; this one guards its shared memory.
__device__ __forceinline__ float row_sum(float v, float *partial_smem) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) partial_smem[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  const int lane = threadIdx.x % kWarpSize;
  return warp_sum(lane < static_cast<int>(blockDim.x) / kWarpSize ? partial_smem[lane] : 0.0f);
}

template <bool kAdd> __global__ void __launch_bounds__(kMaxWarps *kWarpSize) layer_norm_kernel(const __grid_constant__ pagoda_layer_norm_params p) {
  __shared__ float partial_smem[kMaxWarps];
  const int num_octets = p.hidden / kOctet;
  const int64_t offset = static_cast<int64_t>(blockIdx.x) * p.hidden;
  bf16 *residual_gmem = static_cast<bf16 *>(p.residual) + offset;
  wait_then_allow_next();
  float v_frag[kMaxOctets][kOctet];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxOctets; ++i) {
    const int octet_idx = threadIdx.x + i * blockDim.x;
    if (octet_idx >= num_octets) break;
    float(&v)[kOctet] = v_frag[i];
    load_octet(v, static_cast<const bf16 *>(p.x) + offset, octet_idx);
    if constexpr (kAdd) {
      float r[kOctet];
      load_octet(r, residual_gmem, octet_idx);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) v[e] += r[e];
      store_octet(residual_gmem, octet_idx, v);
    }
#pragma unroll
    for (int e = 0; e < kOctet; ++e) sum += v[e];
  }
  const float mean = row_sum(sum, partial_smem) / static_cast<float>(p.hidden);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxOctets; ++i) {
    if (static_cast<int>(threadIdx.x + i * blockDim.x) >= num_octets) break;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) squares = fmaf(v_frag[i][e] - mean, v_frag[i][e] - mean, squares);
  }
  const float scale = rsqrtf(row_sum(squares, partial_smem) / static_cast<float>(p.hidden) + p.eps);
#pragma unroll
  for (int i = 0; i < kMaxOctets; ++i) {
    const int octet_idx = threadIdx.x + i * blockDim.x;
    if (octet_idx >= num_octets) break;
    float w[kOctet], b[kOctet], y[kOctet];
    load_octet(w, p.weight, octet_idx);
    load_octet(b, p.bias, octet_idx);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) y[e] = fmaf((v_frag[i][e] - mean) * scale, w[e], b[e]);
    store_octet(static_cast<bf16 *>(p.out) + offset, octet_idx, y);
  }
}

// One CTA a row.
__global__ void add_rows_kernel(const __grid_constant__ pagoda_add_rows_params p) {
  wait_then_allow_next();
  const int64_t row = __ldcg(p.index + blockIdx.x);
  if (row < 0 || row >= p.num_table_rows) return;
  const bf16 *src_gmem = static_cast<const bf16 *>(p.table) + row * p.cols;
  bf16 *dst_gmem = static_cast<bf16 *>(p.out) + static_cast<int64_t>(blockIdx.x) * p.cols;
  for (int octet_idx = threadIdx.x; octet_idx < p.cols / kOctet; octet_idx += blockDim.x) {
    float v[kOctet], w[kOctet];
    load_octet(v, dst_gmem, octet_idx);
    load_octet(w, src_gmem, octet_idx);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) v[e] += w[e];
    store_octet(dst_gmem, octet_idx, v);
  }
}

template <pagoda_activation kAct> __global__ void activate_kernel(const __grid_constant__ pagoda_activate_params p) {
  wait_then_allow_next();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.count / kOctet) return;
  float v[kOctet];
  load_octet(v, static_cast<const bf16 *>(p.x), i);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) v[e] = activate<kAct>(v[e]);
  store_octet(static_cast<bf16 *>(p.x), i, v);
}

// One CTA a token; a thread takes pairs of dimensions of its query and key heads.
__global__ void rotate_kernel(const __grid_constant__ pagoda_rotate_params p) {
  wait_then_allow_next();
  const int half = p.head_dim / 2;
  const int64_t position = __ldcg(p.positions + blockIdx.x);
  bf16 *row_gmem = static_cast<bf16 *>(p.qkv) + static_cast<int64_t>(blockIdx.x) * 3 * p.num_heads * p.head_dim;
  for (int i = threadIdx.x; i < 2 * p.num_heads * half; i += blockDim.x) {
    const int dim = i % half;
    bf16 *pair_gmem = row_gmem + i / half * p.head_dim + dim;
    const float a = to_f32(load_fresh(pair_gmem)), b = to_f32(load_fresh(pair_gmem + half));
    const float cos = p.cos[position * half + dim], sin = p.sin[position * half + dim];
    pair_gmem[0] = from_f32<bf16>(a * cos - b * sin);
    pair_gmem[half] = from_f32<bf16>(b * cos + a * sin);
  }
}

// Grid (columns, sequences).
template <typename Out> __global__ void pool_rows_kernel(const __grid_constant__ pagoda_pool_rows_params p) {
  wait_then_allow_next();
  const int col = blockIdx.x * kRowThreads + threadIdx.x;
  if (col >= p.cols) return;
  const int first = __ldcg(p.cu_seqlens + blockIdx.y), end = __ldcg(p.cu_seqlens + blockIdx.y + 1);
  const int len = end - first;
  const bf16 *x_gmem = static_cast<const bf16 *>(p.x) + static_cast<int64_t>(first) * p.cols + col;
  const auto at = [&](int row) { return to_f32(load_fresh(x_gmem + static_cast<int64_t>(row) * p.cols)); };
  float v = 0.0f;
  if (p.pooling == PAGODA_POOL_CLS || p.pooling == PAGODA_POOL_LAST) {
    v = at(p.pooling == PAGODA_POOL_CLS ? 0 : len - 1);
  } else if (p.pooling == PAGODA_POOL_MAX) {
    v = at(0);
    for (int row = 1; row < len; ++row) v = fmaxf(v, at(row));
  } else {
    const bool weighted = p.pooling == PAGODA_POOL_WEIGHTED_MEAN;
    for (int row = 0; row < len; ++row) v += (weighted ? static_cast<float>(row + 1) : 1.0f) * at(row);
    const float n = static_cast<float>(len);
    v /= weighted ? n * (n + 1.0f) / 2.0f : p.pooling == PAGODA_POOL_MEAN ? n : sqrtf(n);
  }
  static_cast<Out *>(p.out)[static_cast<int64_t>(blockIdx.y) * p.cols + col] = from_f32<Out>(v);
}

using Activate = void (*)(const pagoda_activate_params);
const Activate kActivate[] = {activate_kernel<PAGODA_SILU>, activate_kernel<PAGODA_GELU_TANH>, activate_kernel<PAGODA_GELU>};

unsigned rows_of(int32_t rows) { return static_cast<unsigned>(rows); }

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_layer_norm(const pagoda_layer_norm_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->x || !p->weight || !p->bias || p->num_tokens < 0 || p->hidden <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_threads < kWarpSize || p->num_threads > kMaxWarps * kWarpSize || p->num_threads % kWarpSize != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->hidden % kOctet != 0 || p->hidden / kOctet > kMaxOctets * p->num_threads) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  return launch(p->residual ? layer_norm_kernel<true> : layer_norm_kernel<false>, {rows_of(p->num_tokens), rows_of(p->num_threads)}, *p, stream);
}

extern "C" pagoda_status pagoda_add_rows(const pagoda_add_rows_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->table || !p->index || p->num_rows < 0 || p->num_table_rows < 0 || p->cols <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->cols % kOctet != 0) return PAGODA_UNSUPPORTED;
  if (p->num_rows == 0) return PAGODA_OK;
  return launch(add_rows_kernel, {rows_of(p->num_rows), kRowThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_activate(const pagoda_activate_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->x || p->count < 0 || p->activation < PAGODA_SILU || p->activation > PAGODA_GELU) return PAGODA_INVALID_ARGUMENT;
  if (p->count % kOctet != 0) return PAGODA_UNSUPPORTED;
  if (p->count == 0) return PAGODA_OK;
  const int64_t ctas = (p->count / kOctet + kThreads - 1) / kThreads;
  return launch(kActivate[p->activation], {static_cast<unsigned>(ctas), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_rotate(const pagoda_rotate_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->qkv || !p->positions || !p->cos || !p->sin || p->num_tokens < 0 || p->num_heads <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->head_dim <= 0 || p->head_dim % 2 != 0) return PAGODA_UNSUPPORTED;
  if (p->num_tokens == 0) return PAGODA_OK;
  return launch(rotate_kernel, {rows_of(p->num_tokens), kThreads}, *p, stream);
}

extern "C" pagoda_status pagoda_pool_rows(const pagoda_pool_rows_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->x || !p->cu_seqlens || p->num_seqs < 0 || p->num_seqs > 65535 || p->cols <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->pooling < PAGODA_POOL_CLS || p->pooling > PAGODA_POOL_WEIGHTED_MEAN) return PAGODA_INVALID_ARGUMENT;
  if (p->out_dtype != PAGODA_F32 && p->out_dtype != PAGODA_BF16) return PAGODA_UNSUPPORTED;
  if (p->num_seqs == 0) return PAGODA_OK;
  const dim3 grid(static_cast<unsigned>((p->cols + kRowThreads - 1) / kRowThreads), rows_of(p->num_seqs));
  return launch(p->out_dtype == PAGODA_F32 ? pool_rows_kernel<float> : pool_rows_kernel<bf16>, {grid, kRowThreads}, *p, stream);
}
