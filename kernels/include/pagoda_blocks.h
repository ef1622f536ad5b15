/* The part of pagoda.h about blocks of GGUF. Included there, in its place; not on its own. */
#ifndef PAGODA_BLOCKS_H
#define PAGODA_BLOCKS_H

/* == Matrices of GGUF's blocks: every byte of the file, each row in the order in which kernels read it:
 *
 *   row: | codes of block 0 | codes of block 1 | ... | rest of block 0 | rest of block 1 | ... | zeros up to a multiple of 16 bytes |
 *
 * Codes are the bytes of a block that make whole pieces of 16, so that each piece is one aligned load; the rest is what lies before and behind
 * them, in that order. Blocks as ggml's ggml-common.h has them:
 *                 values  codes (field, bytes)        rest
 *   Q4_0              32  qs 16                       d
 *   Q4_1              32  qs 16                       d, m
 *   Q5_0              32  qs 16                       d, qh
 *   Q5_1              32  qs 16                       d, m, qh
 *   Q8_0              32  qs 32                       d
 *   Q4_K             256  qs 128                      d, dmin, scales
 *   Q5_K             256  qh 32, qs 128               d, dmin, scales
 *   Q6_K             256  ql 128, qh 64               scales, d */
typedef enum pagoda_block_format {
  PAGODA_Q4_0 = 0,
  PAGODA_Q4_1 = 1,
  PAGODA_Q5_0 = 2,
  PAGODA_Q5_1 = 3,
  PAGODA_Q8_0 = 4,
  PAGODA_Q4_K = 5,
  PAGODA_Q5_K = 6,
  PAGODA_Q6_K = 7
} pagoda_block_format;

/* out[i, :] = factor * the values of a row, of which every one has the bits of ggml's dequantize_row before the factor. */
typedef struct pagoda_blocks_dequantize_params {
  void *out;            /* [num_rows, k] out_dtype, aligned to 16 bytes */
  const void *rows;     /* [n] rows of blocks, aligned to 16 bytes */
  const int32_t *index; /* [num_rows] row for each of out, or NULL: first_row + i; a row outside gives zeros */
  int32_t first_row;    /* with index: 0 */
  int32_t num_rows;
  int32_t n;
  int32_t k; /* whole blocks */
  float factor;
  pagoda_block_format format;
  pagoda_dtype out_dtype; /* PAGODA_BF16 or PAGODA_F32 */
} pagoda_blocks_dequantize_params;
pagoda_status pagoda_blocks_dequantize(const pagoda_blocks_dequantize_params *params, pagoda_stream stream);

/* The product of pagoda_skinny_gemm with rows of blocks. Weights have the values of pagoda_blocks_dequantize, in f32. The order of additions of
 * one output depends on k alone. */
typedef struct pagoda_blocks_gemm_params {
  pagoda_skinny_gemm_params gemm; /* w is the rows; any number of tokens; offsets NULL; kernel GEMV, and what belongs to one is not looked at */
  pagoda_block_format format;
} pagoda_blocks_gemm_params;
pagoda_status pagoda_blocks_gemm(const pagoda_blocks_gemm_params *params, pagoda_stream stream);

#endif
