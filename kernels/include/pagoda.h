/* The whole C ABI of pagoda's CUDA kernels: one params struct and one function an op.
 *
 * Plain C, no CUDA header, so that bindings can be made without a toolkit. Every function is asynchronous on the given stream,
 * allocates nothing, may be captured into a graph, and returns a pagoda_status; none throws, exits, prints or synchronises.
 * Pointers are device pointers unless said otherwise. kernels/sys.rs is made from this file and committed. */
#ifndef PAGODA_H
#define PAGODA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* == CUstream == cudaStream_t */
typedef struct CUstream_st *pagoda_stream;

/* What a launcher answers. PAGODA_CUDA_ERROR + e stands for cudaError_t e. */
typedef enum pagoda_status {
  PAGODA_OK = 0,
  PAGODA_INVALID_ARGUMENT = 1, /* a pointer, count or enum value is out of range */
  PAGODA_UNSUPPORTED = 2,      /* no instantiation for this shape or type */
  PAGODA_CUDA_ERROR = 0x10000,
  PAGODA_STATUS_MAX = 0x7fffffff
} pagoda_status;

/* Element type of activations. */
typedef enum pagoda_dtype { PAGODA_F32 = 0, PAGODA_F16 = 1, PAGODA_BF16 = 2 } pagoda_dtype;

/* Versions as CUDA counts them: 13000 is 13.0. Host memory. */
typedef struct pagoda_runtime_info {
  int32_t runtime_version; /* of the runtime linked into this binary */
  int32_t driver_version;  /* newest CUDA that the installed driver speaks; 0 without a driver */
} pagoda_runtime_info;

/* Fills *info (host memory). PAGODA_OK also on a machine without a driver. */
pagoda_status pagoda_get_runtime_info(pagoda_runtime_info *info);

/* English name of a status; static storage, never NULL. */
const char *pagoda_status_string(pagoda_status status);

/* == Skinny product: out[t, i] = act(sum_k x[t, k] * w[i, k] + bias[i]) + residual[t, i] for 1 to 64 tokens. f32 sums. */

/* Which kernel. The order of additions of one output depends on kernel, n, k and split_k, never on num_tokens. */
typedef enum pagoda_skinny_kernel {
  PAGODA_SKINNY_GEMV = 0, /* one token, fused multiply-add */
  PAGODA_SKINNY_SM80 = 1, /* mma.sync, weights through registers */
  PAGODA_SKINNY_SM90 = 2  /* mma.sync, weights through a ring of tensor copies; compute capability 9.0 and later */
} pagoda_skinny_kernel;

/* Row-major; x and w are aligned to 16 bytes. n_out is n, or n / 2 when gated: rows [0, n/2) of w are the gate, the rest is up. */
typedef struct pagoda_skinny_gemm_params {
  void *out;            /* [num_tokens, n_out] of row stride ld_out, out_dtype */
  const void *x;        /* [num_tokens, k] bf16, no gaps */
  const void *w;        /* [n, k] bf16, no gaps */
  const float *bias;    /* [n] f32, or NULL */
  const void *residual; /* [num_tokens, n_out] of row stride ld_out, out_dtype; may be out; or NULL */
  int32_t num_tokens;   /* 1..64 */
  int32_t n;
  int32_t k; /* a multiple of 8 */
  int32_t ld_out;
  pagoda_dtype out_dtype; /* PAGODA_F32 or PAGODA_BF16 */
  int32_t gated;          /* 1: out = silu(gate) * up (+ residual) */
  pagoda_skinny_kernel kernel;
  int32_t block_n;    /* rows of w at a time: SM90 64 a CTA; GEMV 1 or 2 a warp (2 when gated); heuristics.rs, like the next three */
  int32_t split_k;    /* SM90: CTAs (one cluster) that share a tile, 1..8 */
  int32_t num_stages; /* SM90: depth of the ring, 2..8 */
  int32_t max_ctas;   /* SM90 (when split_k is 1), GEMV: CTAs that walk over all tiles */
  int32_t programmatic; /* 1: may start while the previous kernel of the stream ends (programmatic dependent launch) */
} pagoda_skinny_gemm_params;
pagoda_status pagoda_skinny_gemm(const pagoda_skinny_gemm_params *params, pagoda_stream stream);

/* Which of the three RMS norms of a decoder; norm(v)[i] = v[i] / sqrt(mean(v^2) + eps) * weight[i]. */
typedef enum pagoda_norm_kind {
  PAGODA_NORM = 0,     /* out = norm(x) */
  PAGODA_ADD_NORM = 1, /* residual += x; out = norm(residual) */
  PAGODA_NORM_ADD = 2  /* residual += norm(x); out is not used */
} pagoda_norm_kind;

/* Row-major, rows without gaps. All pointers are aligned to 16 bytes. Sums and products in f32. */
typedef struct pagoda_rms_norm_params {
  void *out;           /* [num_tokens, hidden] dtype; may be x; NULL for PAGODA_NORM_ADD */
  void *residual;      /* [num_tokens, hidden] dtype; NULL for PAGODA_NORM */
  const void *x;       /* [num_tokens, hidden] dtype */
  const float *weight; /* [hidden] f32 */
  int64_t num_tokens;  /* rows, >= 0 */
  int32_t hidden;      /* columns, a multiple of 16 bytes' worth, at most 4 vectors of 16 bytes a thread */
  int32_t num_threads; /* of one CTA (one row), a multiple of 32, at most 1024; heuristics.rs */
  float eps;           /* inside the root */
  pagoda_dtype dtype;  /* of out, residual and x */
  pagoda_norm_kind kind;
} pagoda_rms_norm_params;

/* RMS norm of every row. */
pagoda_status pagoda_rms_norm(const pagoda_rms_norm_params *params, pagoda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
