/* Weights of 8 bits: the part of pagoda.h about their products, and about activations of 8 bits. Included by it, not by others.
 *
 * Matrices of codes are row-major [rows, cols], cols a multiple of 16, aligned to 16 bytes. In every 16 columns the byte at 4 t + j is that
 * of column 2 t + {0, 8, 1, 9}[j] (t and j from 0 to 3), so that four bytes are what a lane holds of a product's operand: "fragment order". */
#ifndef PAGODA_W8_H
#define PAGODA_W8_H

/* What a byte stands for. */
typedef enum pagoda_w8_code {
  PAGODA_W8_E4M3 = 0, /* e4m3fn: bias 7, largest value 448, no infinity */
  PAGODA_W8_INT8 = 1  /* byte - 128 */
} pagoda_w8_code;

/* Puts the bytes of every 16 columns into fragment order, in place. */
typedef struct pagoda_w8_permute_params {
  void *codes;      /* [num_chunks, 16] */
  int64_t num_chunks;
} pagoda_w8_permute_params;
pagoda_status pagoda_w8_permute(const pagoda_w8_permute_params *params, pagoda_stream stream);

/* codes = code(x / scale) in fragment order, rounded to nearest even, saturating; scale = max(largest magnitude / L, min_scale) with L = 448
 * for e4m3 and 127 for integers. */
typedef struct pagoda_w8_quantize_params {
  void *codes;        /* [num_rows, cols] */
  float *scales;      /* group_cols 0: [num_rows]; 128: [ceil(cols / 128)] of stride ld_scales, each [num_rows] */
  const void *x;      /* [num_rows, cols] dtype */
  int32_t num_rows;
  int32_t cols;       /* a multiple of 16, at most 65536 */
  int32_t group_cols; /* columns that share a scale: 128, or 0 for the row */
  int32_t ld_scales;  /* at least num_rows, with group_cols 128 */
  int32_t divides;    /* 1: x / scale, as formats say; 0: x * (1 / scale), which rounds otherwise at ties alone */
  float min_scale;    /* more than 0 */
  pagoda_w8_code code; /* integers: group_cols 0, divides 1 */
  pagoda_dtype dtype;
} pagoda_w8_quantize_params;
pagoda_status pagoda_w8_quantize(const pagoda_w8_quantize_params *params, pagoda_stream stream);

/* out = bf16(value(code) * scale), row-major and in plain order. */
typedef struct pagoda_w8_dequantize_params {
  void *out;           /* [num_rows, cols] bf16 */
  const void *codes;   /* [num_rows, cols] */
  const float *scales; /* as in pagoda_skinny_w8_params */
  const int32_t *index; /* [num_rows] row of codes for each of out, or NULL: its own; a row outside gives zeros */
  int32_t num_rows;
  int32_t num_code_rows;
  int32_t cols;
  int32_t has_blocks;
  float factor;        /* on every value */
  pagoda_w8_code code;
  pagoda_dtype out_dtype; /* PAGODA_BF16 or PAGODA_F32 */
} pagoda_w8_dequantize_params;
pagoda_status pagoda_w8_dequantize(const pagoda_w8_dequantize_params *params, pagoda_stream stream);

/* Skinny product with weights of 8 bits and activations of bf16: the values of codes are exact in bf16, sums are f32, and scales multiply
 * sums. Compute capability 9.0 alone. The order of additions depends on n, k and split_k, never on num_tokens. */
typedef struct pagoda_skinny_w8_params {
  pagoda_skinny_gemm_params gemm; /* w is [n, k] codes; k a multiple of 16; offsets NULL; kernel SM90; block_n 64 */
  const float *scales;            /* [n], or with has_blocks [ceil(n / 128), ceil(k / 128)] */
  int32_t has_blocks;             /* 1: a scale for every 128 x 128 block */
  pagoda_w8_code code;
} pagoda_skinny_w8_params;
pagoda_status pagoda_skinny_w8(const pagoda_skinny_w8_params *params, pagoda_stream stream);

/* Product of many tokens, both operands e4m3 in fragment order. Compute capability 9.0 alone. */
typedef struct pagoda_wide_w8_params {
  pagoda_wide_gemm_params gemm; /* x is [num_rows, k] and w [n, k] codes; k a multiple of 16; offsets NULL; num_ranges 1 */
  const float *x_scales;        /* [num_rows], or with has_blocks [ceil(k / 128)] of stride ld_x_scales, each [num_rows] */
  const float *w_scales;        /* [n], or with has_blocks [ceil(n / 128), ceil(k / 128)] */
  int32_t ld_x_scales;
  int32_t has_blocks; /* 1: n, gated n / 2, is a multiple of 128 */
} pagoda_wide_w8_params;
pagoda_status pagoda_wide_w8(const pagoda_wide_w8_params *params, pagoda_stream stream);

#endif
