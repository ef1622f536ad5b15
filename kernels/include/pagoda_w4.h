/* The part of pagoda.h about 4-bit weights. Included there, in its place; not on its own. */
#ifndef PAGODA_W4_H
#define PAGODA_W4_H

/* == 4-bit weights: w[r, c] = (book[code] - zero) * f16 scale * scale_factor, of any book of sixteen values.
 *
 * Tiles of 16 rows x 64 columns, all of the same size, in the order [ceil(n / 16)][k / 64]; rows past n have scale 0. In a tile:
 *   0..512          codes. Lane l = 4 g + t of a warp owns 16 bytes at 16 l: words j = 0..3, each of the bytes {row g; columns c, c + 1},
 *                   {row g + 8; the same}, {row g; c + 8, c + 9}, {row g + 8; the same} with c = 16 j + 2 t; the low nibble is the smaller.
 *                   So word j is operand a of an mma.m16n8k16 for the columns from 16 j on
 *   then 32 G       scales f16 [G][8][2]: rows g and g + 8 are a pair; G = scales_per_tile: 1 for groups of 64 or more columns, 2 for 32,
 *                   4 for 16
 *   then 32 G       zeros f16 [G][8][2], in units of the book; only with has_zeros
 * Interleaved (gate and up of an MLP, stacked [n, k]; n / 2 is a multiple of 8): rows 0..8 of tile i are rows 8 i .. of the gate, rows
 * 8..16 the same rows of up, which are n / 2 + 8 i .. of the matrix. */
typedef struct pagoda_w4_matrix {
  void *tiles;        /* aligned to 16 bytes */
  float book[16];     /* value of each code */
  float scale_factor; /* of all scales */
  int32_t n;
  int32_t k;               /* a multiple of 64 */
  int32_t scales_per_tile; /* G: 1, 2, 4 */
  int32_t has_zeros;       /* 0 or 1 */
  int32_t interleaved;     /* 0 or 1 */
  int32_t short_scales;    /* 1: the scales in the tiles have at most 8 significant bits (e4m3, e8m0), so that bf16 holds them; 0: any f16 */
} pagoda_w4_matrix;

/* Fills the tiles of a matrix from rows of codes. A scale is rounded once, to the f16 of scale / scale_factor. */
typedef struct pagoda_w4_pack_params {
  pagoda_w4_matrix matrix;
  const uint8_t *codes; /* [n, k / 2], aligned to 16 bytes */
  const float *scales;  /* [n, ceil(k / group)] f32 */
  const uint8_t *zeros; /* [n, ceil(k / group)]; NULL without has_zeros */
  int32_t zero_plus;    /* added to each of them */
  int32_t group;        /* columns of a scale: 16, 32, a multiple of 64, or at least k */
  int32_t first_high;   /* 1: the high nibble of a byte is the smaller column */
} pagoda_w4_pack_params;
pagoda_status pagoda_w4_pack(const pagoda_w4_pack_params *params, pagoda_stream stream);

/* Quantises blocks of 64 neighbouring values as bitsandbytes does: absmax and the code of the book nearest to value * (1 / absmax), the lower
 * one where two are equally near. The book is NF4. */
typedef struct pagoda_nf4_quantize_params {
  uint8_t *codes;      /* [count / 2]: two a byte, the first in the high nibble */
  float *absmax;       /* [count / 64] */
  float *largest;      /* [1]: raised to the largest absmax; not negative before */
  const void *values;  /* [count] dtype, aligned to 16 bytes */
  int64_t count;       /* a multiple of 64 */
  pagoda_dtype dtype;
} pagoda_nf4_quantize_params;
pagoda_status pagoda_nf4_quantize(const pagoda_nf4_quantize_params *params, pagoda_stream stream);

/* Raises *absmax to the largest magnitude of the values: by their bits, so that NaN is above infinity. */
typedef struct pagoda_absmax_params {
  float *absmax;      /* [1]: not negative before */
  const void *values; /* [count] dtype, aligned to 16 bytes */
  int64_t count;      /* a multiple of 8 */
  pagoda_dtype dtype;
} pagoda_absmax_params;
pagoda_status pagoda_absmax(const pagoda_absmax_params *params, pagoda_stream stream);

/* Quantises groups of 16 neighbouring values to NVFP4: e2m1 codes, and scales that are e4m3 over the power of two at or below 448 * 6 / absmax. */
typedef struct pagoda_nvfp4_quantize_params {
  uint8_t *codes;      /* [count / 2]: two a byte, the first in the low nibble */
  float *scales;       /* [count / 16]: what codes are multiplied with */
  float *largest;      /* [1]: raised to the largest scale, to infinity where absmax is not finite; not negative before */
  const float *absmax; /* [1]: of all values that share it */
  const void *values;  /* [count] dtype, aligned to 16 bytes */
  int64_t count;       /* a multiple of 16 */
  pagoda_dtype dtype;
} pagoda_nvfp4_quantize_params;
pagoda_status pagoda_nvfp4_quantize(const pagoda_nvfp4_quantize_params *params, pagoda_stream stream);

/* Some whole tile rows as bf16: out[r, order[c]] = w[16 first_tile + r, c], each weight computed in f32 and rounded once. Interleaved: the
 * gates come first, then their ups. */
typedef struct pagoda_w4_dequantize_params {
  pagoda_w4_matrix matrix;
  void *out;            /* [num_rows, k] bf16, aligned to 16 bytes */
  const int32_t *order; /* [k]: a permutation, or NULL */
  int32_t first_tile;   /* of 16 rows */
  int32_t num_rows;     /* at most what is left of n; a multiple of 16 unless it ends at n */
} pagoda_w4_dequantize_params;
pagoda_status pagoda_w4_dequantize(const pagoda_w4_dequantize_params *params, pagoda_stream stream);

/* out[i, :] = w[index[i], :] * scale: the embedding. An index outside of the matrix gives zeros. Not for interleaved matrices. */
typedef struct pagoda_w4_gather_rows_params {
  pagoda_w4_matrix matrix;
  void *out;            /* [num_rows, k] out_dtype */
  const int32_t *index; /* [num_rows] */
  int32_t num_rows;
  float scale;
  pagoda_dtype out_dtype; /* PAGODA_F32 or PAGODA_BF16 */
} pagoda_w4_gather_rows_params;
pagoda_status pagoda_w4_gather_rows(const pagoda_w4_gather_rows_params *params, pagoda_stream stream);

/* out[t, c] = x[t, order[c]]: activations in the order of a matrix's columns. */
typedef struct pagoda_gather_columns_params {
  void *out;            /* [num_tokens, k] bf16 */
  const void *x;        /* [num_tokens, k] bf16 */
  const int32_t *order; /* [k] */
  int32_t num_tokens;
  int32_t k; /* a multiple of 8 */
} pagoda_gather_columns_params;
pagoda_status pagoda_gather_columns(const pagoda_gather_columns_params *params, pagoda_stream stream);

#include "pagoda_w4_gemm.h"

#endif
