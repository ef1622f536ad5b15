/* The part of pagoda_w4.h about products. Included there, in its place; not on its own. */
#ifndef PAGODA_W4_GEMM_H
#define PAGODA_W4_GEMM_H

/* == Product with 4-bit weights: out[t, i] = act(sum_c x[t, c] * w[i, c] + bias[i]) + residual[t, i] for 1 to 64 tokens. f32 sums.
 *
 * The book is rounded to bf16, in a unit in which it loses least; zeros and codes are subtracted in bf16, exactly where both are whole numbers
 * up to 256; scales multiply f32 sums of whole groups, but in ROWS with several scales in a tile: there they multiply codes, which rounds each
 * weight to bf16 once. */

/* Which kernel. The order of additions of one output depends on kernel, k and split_k alone. */
typedef enum pagoda_w4_kernel {
  PAGODA_W4_SM80 = 0, /* mma.sync, tiles through registers */
  PAGODA_W4_COLUMNS = 1, /* mma.sync, tiles through rings of bulk copies, up to 8 tokens; compute capability 9.0 and later: what
                            W4Matrix::fits_columns (ops/w4.rs) lists */
  PAGODA_W4_ROWS = 2  /* wgmma, the same rings; compute capability 9.0 alone */
} pagoda_w4_kernel;

/* Row-major. n_out is n, or n / 2 when gated. */
typedef struct pagoda_w4_gemm_params {
  pagoda_w4_matrix w;
  void *out;              /* [num_tokens, n_out] of row stride ld_out, out_dtype */
  const void *x;          /* [num_tokens, k] bf16, no gaps, aligned to 16 bytes */
  const float *bias;      /* [n] f32, gates first; or NULL */
  const void *residual;   /* [num_tokens, n_out] of row stride ld_out, out_dtype; may be out; or NULL */
  float *partials;        /* COLUMNS with split_k > 1: split_k * ceil(n / 16) * 128, aligned to 16 bytes; else NULL */
  int32_t *counters;      /* COLUMNS with split_k > 1: max_ctas / split_k, zeroed once; else NULL */
  int32_t num_tokens;     /* 1..64, COLUMNS 1..8 */
  int32_t ld_out;
  pagoda_dtype out_dtype; /* PAGODA_F32 or PAGODA_BF16 */
  int32_t gated;          /* 1: out = silu(gate) * up (+ residual), of an interleaved matrix */
  pagoda_w4_kernel kernel;
  int32_t split_k;        /* ROWS: CTAs (one cluster) that share rows; COLUMNS: slabs of columns, summed through partials; 1..8; heuristics/w4.rs, like the next three */
  int32_t num_stages;     /* ROWS: copies of up to four tiles under way in a warp, 2..4 */
  int32_t num_warps;      /* of a CTA. ROWS: a tile row each, 4, 8, 12; COLUMNS: up to 14, four columns of a slab each */
  int32_t max_ctas;       /* CTAs that share the work */
  int32_t programmatic;   /* 1: may start while the previous kernel of the stream ends (programmatic dependent launch) */
} pagoda_w4_gemm_params;
pagoda_status pagoda_w4_gemm(const pagoda_w4_gemm_params *params, pagoda_stream stream);

#endif
