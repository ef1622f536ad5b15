/* The part of pagoda.h about products in NVFP4. Included there, in its place; not on its own. */
#ifndef PAGODA_FP4_H
#define PAGODA_FP4_H

/* == Products of many tokens in NVFP4: x and w are e2m1 codes with an e4m3 scale for 16 columns. Compute capability 12.x.
 *
 * x[t, c] ~ factors[t] * scale[t, c / 16] * e2m1. Codes and scales of a token lie as operand b of mma.m16n8k64 meets the tiles of pagoda_w4.h:
 *   codes    [num_tokens][k / 2]: 16 columns are 8 bytes, nibbles 0..15 (the low one first) are columns
 *            0 1 8 9 4 5 12 13   2 3 10 11 6 7 14 15
 *   scales   [k / 64][ld_scales][4] e4m3: of a token, the four groups of 64 columns
 *   factors  [num_tokens] f32: absmax of the token / (448 * 6), at least 1e-30; not finite where one of its values is not */

typedef struct pagoda_fp4_quantize_params {
  uint8_t *codes;    /* aligned to 16 bytes */
  uint8_t *scales;   /* aligned to 16 bytes: e4m3 of absmax of 16 / 6 / factor */
  float *factors;
  const void *x;     /* [num_tokens, k] bf16, aligned to 16 bytes */
  int32_t num_tokens;
  int32_t k;         /* a multiple of 64 */
  int32_t ld_scales; /* at least num_tokens; a multiple of 4 */
} pagoda_fp4_quantize_params;
/* Codes are the e2m1 nearest to x / (scale * factor); zeros where that is 0. Runs on every GPU. */
pagoda_status pagoda_fp4_quantize(const pagoda_fp4_quantize_params *params, pagoda_stream stream);

/* out[t, i] = act(sum_c x[t, c] * w[i, c] + bias[i]) + residual[t, i], f32 sums; n_out is n, or n / 2 when gated. w has the book of e2m1, four
 * scales a row in a tile, none of them negative, short_scales, no zeros. A scale is the e4m3 of an eighth of what the tile holds, whose largest
 * is from 2^10 to 2^11: scales of e4m3 stay what they are down to 2^-13 of it. */
typedef struct pagoda_fp4_gemm_params {
  pagoda_w4_matrix w;
  void *out;              /* [num_tokens, n_out] of row stride ld_out, out_dtype */
  const uint8_t *codes;   /* of x, as the next two; from pagoda_fp4_quantize */
  const uint8_t *scales;
  const float *factors;
  const float *bias;      /* [n] f32, gates first; or NULL */
  const void *residual;   /* like out, and may be out; or NULL */
  int32_t num_tokens;
  int32_t ld_out;
  int32_t ld_scales;
  pagoda_dtype out_dtype; /* PAGODA_F32 or PAGODA_BF16 */
  int32_t gated;          /* 1: out = silu(gate) * up (+ residual), of an interleaved matrix */
} pagoda_fp4_gemm_params;
/* PAGODA_UNSUPPORTED where pagoda_has_fp4_gemm says so. */
pagoda_status pagoda_fp4_gemm(const pagoda_fp4_gemm_params *params, pagoda_stream stream);

/* PAGODA_OK where the current GPU is of compute capability 12.x and this build has code for it, else PAGODA_UNSUPPORTED. */
pagoda_status pagoda_has_fp4_gemm(void);

#endif
