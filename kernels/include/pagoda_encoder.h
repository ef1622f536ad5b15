/* The part of pagoda.h that encoders need beside what decoders have. Included there, in its place; not on its own. */
#ifndef PAGODA_ENCODER_H
#define PAGODA_ENCODER_H

/* == out = (v - mean(v)) / sqrt(variance(v) + eps) * weight + bias of every row, v = x or x + residual; in f32. */
typedef struct pagoda_layer_norm_params {
  void *out;           /* [num_tokens, hidden] bf16; may be x */
  void *residual;      /* [num_tokens, hidden] bf16, becomes x + residual; or NULL */
  const void *x;       /* [num_tokens, hidden] bf16 */
  const float *weight; /* [hidden] */
  const float *bias;   /* [hidden] */
  int32_t num_tokens;
  int32_t hidden;      /* a multiple of 8, at most 32 * num_threads */
  int32_t num_threads; /* a multiple of 32, at most 1024 */
  float eps;           /* >= 0 */
} pagoda_layer_norm_params;
pagoda_status pagoda_layer_norm(const pagoda_layer_norm_params *params, pagoda_stream stream);

/* == out[i, :] += table[index[i], :]; an index outside of the table adds nothing. */
typedef struct pagoda_add_rows_params {
  void *out;            /* [num_rows, cols] bf16 */
  const void *table;    /* [num_table_rows, cols] bf16 */
  const int32_t *index; /* [num_rows] */
  int32_t num_rows;
  int32_t num_table_rows;
  int32_t cols; /* a multiple of 8 */
} pagoda_add_rows_params;
pagoda_status pagoda_add_rows(const pagoda_add_rows_params *params, pagoda_stream stream);

/* == x = act(x), in f32. */
typedef struct pagoda_activate_params {
  void *x;       /* [count] bf16 */
  int64_t count; /* a multiple of 8 */
  pagoda_activation activation;
} pagoda_activate_params;
pagoda_status pagoda_activate(const pagoda_activate_params *params, pagoda_stream stream);

/* == Rotation of the query and key heads of fused q, k, v rows in place; dimension i pairs with i + head_dim / 2. */
typedef struct pagoda_rotate_params {
  void *qkv;                /* [num_tokens, 3 * num_heads * head_dim] bf16 */
  const int32_t *positions; /* [num_tokens] */
  const float *cos;         /* [positions, head_dim / 2] */
  const float *sin;         /* [positions, head_dim / 2] */
  int32_t num_tokens;
  int32_t num_heads;
  int32_t head_dim; /* even */
} pagoda_rotate_params;
pagoda_status pagoda_rotate(const pagoda_rotate_params *params, pagoda_stream stream);

/* == Attention of every row over its own sequence, in both directions; a bias is added to scaled scores. */
typedef struct pagoda_encoder_attention_params {
  void *out;                 /* [num_tokens, num_heads * head_dim] bf16 */
  const void *qkv;           /* [num_tokens, 3 * num_heads * head_dim] bf16: q, k, v */
  const int32_t *cu_seqlens; /* [num_seqs + 1] */
  int32_t num_seqs;          /* at most 65535 */
  int32_t num_heads;
  int32_t head_dim;    /* 16, 32, 64, 96 or 128 */
  int32_t max_seq_len; /* of any sequence */
  int32_t radius;      /* keys seen to both sides; -1: all */
  float scale;
  const float *bias;  /* [num_heads, 2 * bias_reach - 1], that of key j and query i at bias_reach - 1 + j - i; or NULL */
  int32_t bias_reach; /* at least max_seq_len */
} pagoda_encoder_attention_params;
pagoda_status pagoda_encoder_attention(const pagoda_encoder_attention_params *params, pagoda_stream stream);

/* How the rows of a sequence become one. */
typedef enum pagoda_pooling {
  PAGODA_POOL_CLS = 0,
  PAGODA_POOL_LAST = 1,
  PAGODA_POOL_MEAN = 2,
  PAGODA_POOL_MEAN_SQRT_LEN = 3,
  PAGODA_POOL_MAX = 4,
  PAGODA_POOL_WEIGHTED_MEAN = 5 /* weights 1, 2, 3, ... */
} pagoda_pooling;

/* == One row a sequence; sums in f32, in order. */
typedef struct pagoda_pool_rows_params {
  void *out;                 /* [num_seqs, cols] bf16 or f32 */
  const void *x;             /* [num_tokens, cols] bf16 */
  const int32_t *cu_seqlens; /* [num_seqs + 1], no sequence is empty */
  int32_t num_seqs;          /* at most 65535 */
  int32_t cols;
  pagoda_pooling pooling;
  pagoda_dtype out_dtype;
} pagoda_pool_rows_params;
pagoda_status pagoda_pool_rows(const pagoda_pool_rows_params *params, pagoda_stream stream);

#endif
