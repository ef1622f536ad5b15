/* The whole C ABI of pagoda's CUDA kernels: one params struct and one function an op. Encoders are in pagoda_encoder.h, sampling is in
 * pagoda_sampling.h, weights of 8 and 4 bits are in pagoda_w8.h and pagoda_w4.h, blocks of GGUF in pagoda_blocks.h, all included below.
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

/* Element type of activations; e4m3 of caches alone. */
typedef enum pagoda_dtype { PAGODA_F32 = 0, PAGODA_F16 = 1, PAGODA_BF16 = 2, PAGODA_E4M3 = 3 } pagoda_dtype;

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
  const int32_t *offsets; /* [num_groups + 1]: tokens offsets[g] .. offsets[g + 1] use w + g * n * k (SM90 alone); or NULL */
  int32_t num_tokens;   /* 1..64, SM90 1..128, in groups any number */
  int32_t n;
  int32_t k; /* a multiple of 8 */
  int32_t ld_out;
  pagoda_dtype out_dtype; /* PAGODA_F32 or PAGODA_BF16 */
  int32_t gated;          /* 1: out = silu(gate) * up (+ residual) */
  pagoda_skinny_kernel kernel;
  int32_t block_n;    /* rows of w at a time: SM90 64 or 128 a CTA; GEMV 1 or 2 a warp (2 when gated); heuristics.rs, like the next three */
  int32_t split_k;    /* SM90: CTAs (one cluster) that share a tile, 1..8 */
  int32_t num_stages; /* SM90: depth of the ring, 2..8; GEMV of 1 row a warp: 20 where a CTA has a multiprocessor to itself, else any other */
  int32_t max_ctas;   /* SM90 (when split_k is 1), GEMV: CTAs that walk over all tiles */
  int32_t programmatic; /* 1: may start while the previous kernel of the stream ends (programmatic dependent launch) */
  int32_t num_groups;   /* with offsets, at most 512 */
  int32_t block_tokens; /* with offsets: tokens of one group in a tile, 8, 16, 32, 64, 128 */
} pagoda_skinny_gemm_params;
pagoda_status pagoda_skinny_gemm(const pagoda_skinny_gemm_params *params, pagoda_stream stream);

/* == Product of many tokens: out[t, i] = act(sum_k x[t, k] * w[i, k] + bias[i]). f32 sums. Compute capability 9.0 alone.
 * With offsets, rows are in groups, each with a matrix of its own: rows offsets[g] .. offsets[g + 1] use w + g * n * k. */

/* Row-major; out, x and w are aligned to 16 bytes. n_out is n, or n / 2 when gated: rows [0, n/2) of w are the gate, the rest is up. */
typedef struct pagoda_wide_gemm_params {
  void *out;              /* [num_rows, n_out] bf16 of row stride ld_out */
  const void *x;          /* [num_rows, k] bf16, no gaps */
  const void *w;          /* [num_groups, n, k] bf16, no gaps */
  const float *bias;      /* [n] f32 of all groups, or NULL */
  const int32_t *offsets; /* [num_groups + 1], or NULL: one group of num_rows */
  int32_t num_rows;
  int32_t num_groups;
  int32_t n;
  int32_t k;            /* a multiple of 8 */
  int32_t ld_out;       /* a multiple of 8, like n_out */
  int32_t gated;        /* 1: out = silu(gate) * up */
  int32_t block_rows;   /* tokens in a tile, 128 or 256; heuristics.rs, like the next five */
  int32_t block_cols;   /* rows of w in a tile, 256 or 128; not both 256 */
  int32_t cluster;      /* 2: pairs of CTAs share rows of w (tiles of 128 tokens) or tokens (256); 1: nothing is shared */
  int32_t num_ranges;   /* sums are made over so many ranges of k, added in order; more than 1 only with 128 rows */
  int32_t raster;       /* tiles of tokens (times cluster) that share what they read of w */
  int32_t max_ctas;     /* CTAs that walk over all tiles */
  int32_t programmatic; /* 1: may start while the previous kernel of the stream ends (programmatic dependent launch) */
} pagoda_wide_gemm_params;
pagoda_status pagoda_wide_gemm(const pagoda_wide_gemm_params *params, pagoda_stream stream);

/* Which of the three RMS norms of a decoder; norm(v)[i] = v[i] / sqrt(mean(v^2) + eps) * weight[i]. */
typedef enum pagoda_norm_kind {
  PAGODA_NORM = 0,     /* out = norm(x) */
  PAGODA_ADD_NORM = 1, /* residual += x; out = norm(residual) */
  PAGODA_NORM_ADD = 2  /* residual += norm(x); out is not used */
} pagoda_norm_kind;

/* Row-major, rows without gaps. All pointers are aligned to 16 bytes. Sums and products in f32.
 * The residual stream has a type of its own: it is x of PAGODA_NORM and residual of the others. */
typedef struct pagoda_rms_norm_params {
  void *out;                 /* [num_tokens, hidden] bf16; may be x of this type; NULL for PAGODA_NORM_ADD */
  void *residual;            /* [num_tokens, hidden] stream_dtype; NULL for PAGODA_NORM */
  const void *x;             /* [num_tokens, hidden] stream_dtype for PAGODA_NORM, else bf16 */
  const float *weight;       /* [hidden] f32 */
  int64_t num_tokens;        /* rows, >= 0 */
  int32_t hidden;            /* columns, a multiple of 8, at most 32 a thread */
  int32_t num_threads;       /* of one CTA (one row), a multiple of 32, at most 1024; heuristics.rs */
  float eps;                 /* inside the root */
  pagoda_dtype stream_dtype; /* f32 or bf16 */
  pagoda_norm_kind kind;
} pagoda_rms_norm_params;

/* RMS norm of every row. */
pagoda_status pagoda_rms_norm(const pagoda_rms_norm_params *params, pagoda_stream stream);

/* == Step metadata and rows. Matrices of this and the next sections are row-major without gaps, pointers aligned to 16 bytes. */

/* token_ids[i] = last_tokens[token_source[i]] where token_source[i] >= 0. */
typedef struct pagoda_resolve_tokens_params {
  int32_t *token_ids;          /* [num_tokens] */
  const int32_t *token_source; /* [num_tokens] index into last_tokens, or negative */
  const int32_t *last_tokens;  /* [one a sampler slot] */
  int32_t num_tokens;
} pagoda_resolve_tokens_params;
pagoda_status pagoda_resolve_tokens(const pagoda_resolve_tokens_params *params, pagoda_stream stream);

/* dst[index[i]] = values[i]. Indices are distinct. */
typedef struct pagoda_scatter_ints_params {
  int32_t *dst;
  const int32_t *index;  /* [count] */
  const int32_t *values; /* [count] */
  int32_t count;
} pagoda_scatter_ints_params;
pagoda_status pagoda_scatter_ints(const pagoda_scatter_ints_params *params, pagoda_stream stream);

/* out[i, :] = table[index[i], :] * scale: embeddings, and the rows that get logits. An index outside the table gives zeros.
 * Types: bf16 to bf16, bf16 to f32, f32 to f32. */
typedef struct pagoda_gather_rows_params {
  void *out;            /* [num_rows, cols] out_dtype */
  const void *table;    /* [num_table_rows, cols] table_dtype */
  const int32_t *index; /* [num_rows] */
  int32_t num_rows;
  int32_t num_table_rows;
  int32_t cols; /* a multiple of 8 */
  float scale;
  pagoda_dtype out_dtype;
  pagoda_dtype table_dtype;
} pagoda_gather_rows_params;
pagoda_status pagoda_gather_rows(const pagoda_gather_rows_params *params, pagoda_stream stream);

/* Function between gate and up. */
typedef enum pagoda_activation { PAGODA_SILU = 0, PAGODA_GELU_TANH = 1, PAGODA_GELU = 2 } pagoda_activation;

/* out[t, i] = act(gate_up[t, i]) * gate_up[t, cols + i]. */
typedef struct pagoda_gated_activation_params {
  void *out;           /* [num_tokens, cols] bf16 */
  const void *gate_up; /* [num_tokens, 2 * cols] bf16 */
  int32_t num_tokens;
  int32_t cols; /* a multiple of 8 */
  pagoda_activation activation;
} pagoda_gated_activation_params;
pagoda_status pagoda_gated_activation(const pagoda_gated_activation_params *params, pagoda_stream stream);

/* x = cap * tanh(x / cap). */
typedef struct pagoda_soft_cap_params {
  float *x; /* [count] f32 */
  int64_t count;
  float cap;
} pagoda_soft_cap_params;
pagoda_status pagoda_soft_cap(const pagoda_soft_cap_params *params, pagoda_stream stream);

/* out[t, n] += bias[n], for products whose library call takes no bias. */
typedef struct pagoda_add_bias_params {
  void *out;         /* [num_tokens, cols] dtype */
  const float *bias; /* [cols] f32 */
  int32_t num_tokens;
  int32_t cols;
  pagoda_dtype dtype; /* PAGODA_F32 or PAGODA_BF16 */
} pagoda_add_bias_params;
pagoda_status pagoda_add_bias(const pagoda_add_bias_params *params, pagoda_stream stream);

/* == Paged KV cache of one layer: [num_blocks][2: k, v][num_kv_heads][block_size][head_dim] bf16, or with scales e4m3 in fragment order
 * (pagoda_w8.h; compute capability 8.9 and later): k = code * scale. */

/* For every token: norms and rotates the q and k heads of its qkv row in place, stores k and v in their slot. */
typedef struct pagoda_rope_kv_params {
  void *qkv;                   /* [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] bf16 */
  void *kv;                    /* the layer's cache */
  const float *kv_scales;      /* [2: k, v][num_kv_heads] of a cache of e4m3, head_dim a multiple of 16; NULL: bf16 */
  const int32_t *positions;    /* [num_tokens] */
  const int32_t *slot_mapping; /* [num_tokens] block * block_size + offset */
  const float *cos;            /* [max_positions, rotary_dim / 2] f32 */
  const float *sin;            /* the same */
  const float *q_norm;         /* [head_dim] f32, or NULL */
  const float *k_norm;         /* [head_dim] f32, or NULL */
  int32_t num_tokens;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;    /* even, at most 256 */
  int32_t rotary_dim;  /* even, at most head_dim; the rest passes through */
  int32_t interleaved; /* 0: i pairs with i + rotary_dim / 2; 1: 2i pairs with 2i + 1 */
  int32_t block_size;
  float eps; /* of the norms, inside the root */
} pagoda_rope_kv_params;
pagoda_status pagoda_rope_kv(const pagoda_rope_kv_params *params, pagoda_stream stream);

/* Causal attention of query rows over the paged context of their sequences.
 * pagoda_attention_decode computes the sequences with one query row, pagoda_attention_prefill those with more; a step may need both. */
typedef struct pagoda_attention_params {
  void *out;                   /* [num_tokens, num_heads * head_dim] bf16 */
  const void *qkv;             /* [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] bf16; q comes first */
  void *kv;                    /* the layer's cache */
  const float *kv_scales;      /* [2: k, v][num_kv_heads] of a cache of e4m3; NULL: bf16 */
  const int32_t *cu_seqlens_q; /* [num_seqs + 1] first row of each sequence */
  const int32_t *context_lens; /* [num_seqs] including the rows of this step; 0: no sequence, its row of out is left alone */
  const int32_t *block_tables; /* [num_seqs, max_blocks_per_seq] */
  int32_t num_tokens;
  int32_t num_seqs;
  int32_t num_heads;
  int32_t num_kv_heads; /* divides num_heads; group = num_heads / num_kv_heads */
  int32_t head_dim;     /* 16, 32, 64, 80, 96, 128, 256 */
  int32_t block_size;
  int32_t max_blocks_per_seq;
  int32_t window;     /* a query at p sees keys > p - window; 0: all up to p */
  float scale;        /* on q . k, more than 0 */
  float soft_cap;     /* cap * tanh(score / cap); 0: none */
  int32_t num_blocks; /* prefill: of the cache; 0: not known, and then it does without tensor copies */
  int32_t *tickets;   /* prefill: [2], zero before and after: the next piece of work; NULL: CTAs take them in turn */
} pagoda_attention_params;
pagoda_status pagoda_attention_prefill(const pagoda_attention_params *params, pagoda_stream stream);

/* Groups of sequences with one query row whose block tables begin alike. pagoda_attention_prefix computes all rows of a group over the
 * keys that it shares, pagoda_attention_decode the rest and the sum. Without: all NULL and 0. */
typedef struct pagoda_shared_prefixes {
  const int32_t *groups;  /* [3 + 3 * num_groups] num_groups, members of all, keys of the longest; first member, members, keys of each */
  const int32_t *members; /* sequences, group after group */
  const int32_t *lens;    /* [num_seqs] keys that a sequence shares: whole blocks before its last key; 0: in no group */
  float *partials;        /* [max_partials, head_dim + 4] f32: o, m, l of rows and splits of the prefixes */
  int32_t max_partials;   /* at least num_seqs * num_heads */
} pagoda_shared_prefixes;

/* With `cos`, pagoda_attention_decode does what pagoda_rope_kv would do first: rows of q and k are normed and rotated on their way in
 * (qkv stays as it is), and k and v of the step go to the cache, at the sequence's last position. */
typedef struct pagoda_attention_decode_params {
  pagoda_attention_params attention;
  pagoda_shared_prefixes prefixes;
  float *partials;     /* [max_partials, head_dim + 4] f32: o, m, l of the pieces of a context */
  int32_t *counters;   /* [2 + num_seqs * num_kv_heads * ceil(group / 8)], zero before and after */
  const float *cos;    /* [max_positions, rotary_dim / 2] f32, or NULL */
  const float *sin;    /* the same */
  const float *q_norm; /* [head_dim] f32, or NULL */
  const float *k_norm; /* [head_dim] f32, or NULL */
  int32_t rotary_dim;  /* head_dim; with interleaved: even, at most head_dim */
  int32_t interleaved; /* 0: i pairs with i + rotary_dim / 2; 1: 2i pairs with 2i + 1 */
  float eps;           /* of the norms, inside the root */
  int32_t split_len;   /* keys of a piece, a multiple of 16, or 0: chosen for the batch; doubled while max_partials is too small */
  int32_t max_partials;
  int32_t num_ctas; /* that share the pieces */
} pagoda_attention_decode_params;
pagoda_status pagoda_attention_decode(const pagoda_attention_decode_params *params, pagoda_stream stream);
/* Before pagoda_attention_decode with the same params. PAGODA_UNSUPPORTED where there is no kernel for them: then without prefixes. */
pagoda_status pagoda_attention_prefix(const pagoda_attention_decode_params *params, pagoda_stream stream);

/* Block dst = block src for every pair, whole blocks of one layer. No block is both a source and a destination. */
typedef struct pagoda_copy_blocks_params {
  void *kv;
  const int32_t *pairs; /* [num_pairs, 2] (src, dst) */
  int64_t block_bytes;  /* a multiple of 16 */
  int32_t num_pairs;
} pagoda_copy_blocks_params;
pagoda_status pagoda_copy_blocks(const pagoda_copy_blocks_params *params, pagoda_stream stream);

/* *out ^= all 32-bit words of `data`: reads memory as fast as it can be read, which is what kernels are held against. */
typedef struct pagoda_xor_words_params {
  uint32_t *out;
  const void *data;
  int64_t num_bytes; /* a multiple of 16 */
  int32_t num_ctas;
} pagoda_xor_words_params;
pagoda_status pagoda_xor_words(const pagoda_xor_words_params *params, pagoda_stream stream);

/* Rows in groups, each group with a matrix of its own: rows offsets[g] .. offsets[g + 1] of out use w + g * w_stride. */
typedef struct pagoda_grouped_gemm_params {
  void *out;              /* [num_rows, n] of row stride ld_out, out_dtype */
  const void *x;          /* [any, k] bf16 */
  const void *w;          /* [n, k] bf16 of group 0 */
  const float *bias;      /* [n] f32 of all groups, or NULL */
  const int32_t *row_map; /* [num_rows] row r reads x[row_map[r] / row_div]; NULL: x[r] */
  const int32_t *offsets; /* [num_groups + 1]; NULL: one group of num_rows */
  int64_t w_stride;       /* elements between the matrices of two groups */
  int32_t num_rows;
  int32_t num_groups;
  int32_t n;
  int32_t k; /* a multiple of 8 */
  int32_t ld_out;
  int32_t row_div;
  pagoda_dtype out_dtype; /* PAGODA_F32 or PAGODA_BF16 */
} pagoda_grouped_gemm_params;
pagoda_status pagoda_grouped_gemm(const pagoda_grouped_gemm_params *params, pagoda_stream stream);

/* == Mixture of experts. A pair is (token, choice): pair p = token * top_k + choice. */

/* Softmax of the router's logits, the top_k best (ties: lower id), and the pairs in order of expert, then token. */
typedef struct pagoda_moe_route_params {
  int32_t *experts;     /* [num_tokens, top_k] out */
  float *weights;       /* [num_tokens, top_k] out */
  int32_t *offsets;     /* [num_experts + 1] out: first sorted pair of each expert */
  int32_t *sorted;      /* [num_tokens * top_k] out: pair at each sorted position */
  int32_t *tokens;      /* [num_tokens * top_k] out: token at each sorted position */
  int32_t *position;    /* [num_tokens * top_k] out: sorted position of each pair */
  const float *logits;  /* [num_tokens, num_experts] f32 */
  int32_t num_tokens;
  int32_t num_experts; /* at most 512 */
  int32_t top_k;       /* at most 32 */
  int32_t renormalise; /* 1: divide by the sum of the chosen */
} pagoda_moe_route_params;
pagoda_status pagoda_moe_route(const pagoda_moe_route_params *params, pagoda_stream stream);

/* out[t, :] = sum over choices c of weights[t, c] * y[position[t * top_k + c], :]. */
typedef struct pagoda_moe_combine_params {
  void *out;               /* [num_tokens, hidden] bf16 */
  const void *y;           /* [num_tokens * top_k, hidden] bf16, sorted */
  const float *weights;    /* [num_tokens, top_k] */
  const int32_t *position; /* [num_tokens * top_k] */
  int32_t num_tokens;
  int32_t hidden; /* a multiple of 8 */
  int32_t top_k;
} pagoda_moe_combine_params;
pagoda_status pagoda_moe_combine(const pagoda_moe_combine_params *params, pagoda_stream stream);

#include "pagoda_encoder.h"
#include "pagoda_sampling.h"
#include "pagoda_w8.h"
#include "pagoda_w4.h"
#include "pagoda_fp4.h"
#include "pagoda_blocks.h"

#ifdef __cplusplus
}
#endif
#endif
