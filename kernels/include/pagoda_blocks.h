/* The part of pagoda.h about blocks of GGUF. Included there, in its place; not on its own. */
#ifndef PAGODA_BLOCKS_H
#define PAGODA_BLOCKS_H

/* == Matrices of GGUF's blocks: every bit of the file, each row in the order in which four lanes read it (k is whole blocks):
 *
 *   row: | codes of columns 0 to 127 | codes of columns 128 to 255 | ... | rest of block 0 | rest of block 1 | ... | zeros up to 16 bytes |
 *
 * A step of 128 columns is four groups of 32. Lane t of four has columns 4t .. 4t + 3 and 16 + 4t .. 4t + 3 of each group, in four pairs: pairs 0
 * and 1 are the former. A step past the last block has codes of zero.
 *
 *   codes of a step, 16 bytes a lane: word g: the low four bits of group g, of pair i at bits 4i and 16 + 4i
 *     fifth bits, then 4 bytes a lane: of pair i of group g at bits 4g + i and 16 + 4g + i
 *     fifth and sixth bits, then 8 bytes a lane: in word g / 2, of pair i of group g at bits 8 (g % 2) + 2i and 16 more
 *   of Q8_0, 32 bytes a lane: words 2g and 2g + 1: bytes of group g's first and second four columns, each in the order 0, 2, 1, 3
 *
 * Blocks as ggml's ggml-common.h has them:
 *                 values  bytes of a step   rest (fields, bytes)
 *   Q4_0              32               64   d                  2
 *   Q4_1              32               64   d, m               4
 *   Q5_0              32               80   d                  2
 *   Q5_1              32               80   d, m               4
 *   Q8_0              32              128   d                  2
 *   Q4_K             256               64   d, dmin, scales   16
 *   Q5_K             256               80   d, dmin, scales   16
 *   Q6_K             256               96   scales, d         18 */
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

/* The product of pagoda_skinny_gemm with rows of blocks. Weights have the values of pagoda_blocks_dequantize, unrounded: codes are multiplied
 * with x, and the sums of a group with its scale, in f32. The order of additions of one output depends on k and split_k alone. */
typedef struct pagoda_blocks_gemm_params {
  pagoda_skinny_gemm_params gemm; /* w is the rows; any number of tokens; offsets NULL; kernel GEMV. split_k: warps that share 16 rows, 1, 2, 4 or 8; max_ctas: of up to 8 tokens */
  pagoda_block_format format;
} pagoda_blocks_gemm_params;
pagoda_status pagoda_blocks_gemm(const pagoda_blocks_gemm_params *params, pagoda_stream stream);

#endif
