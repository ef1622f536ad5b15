/* The part of pagoda.h that samples. Included there, in its place; not on its own. */
#ifndef PAGODA_SAMPLING_H
#define PAGODA_SAMPLING_H

/* == Sampling. A call samples rows of logits; its kernels run in this order, each on the rows that need it:
 *
 *   scan      every row          edits, the largest logit; greedy rows are done. Sums and best groups for pick and logprobs.
 *   pick      1 < top_k <= 64    top-k, top-p, min-p and the draw among the k best
 *   filter    other top_k, top_p top-k, top-p, min-p over the whole row and the draw (two kernels)
 *   draw      what is left       min-p and the draw: a token at `uniform` of the mass of the weights that stay
 *   logprobs  where wanted       of the logits before edits
 *
 * Edits are what engine/sampling does before it chooses: allowed tokens, logit_bias, masked tokens, penalties. All arithmetic is that of
 * the CPU sampler, operation for operation, and sums are exact, so tokens are equal to its, whatever the batch. NaN never wins. */

/* Added to a logit before anything else; -inf masks the token. */
typedef struct pagoda_token_edit {
  int32_t token;
  float value;
} pagoda_token_edit;

/* One row to sample. */
typedef struct pagoda_sample_row {
  double uniform;       /* [0, 1), for the draw */
  int32_t logits_row;   /* row of logits */
  int32_t slot;         /* of last_tokens, edits and counts */
  int32_t out;          /* index of tokens and logprobs */
  int32_t mask_row;     /* row of masks, or -1 */
  int32_t num_edits;    /* edits of the slot that hold now */
  int32_t penalized;    /* 1: reads the slot's counts and adds the token to them */
  int32_t num_logprobs; /* alternatives, at most 20; -1: no logprobs */
  int32_t given;        /* a token that is not sampled but asked about (nothing else is written for it), or -1 */
  float inv_temperature; /* 0: greedy */
  int32_t top_k;         /* 0: all */
  float top_p;           /* 1: all */
  float min_p;           /* relative to the largest; 0: all */
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t reserved[3]; /* a multiple of 16 bytes */
} pagoda_sample_row;

enum pagoda_sample_limits { PAGODA_MAX_LOGPROBS = 20 };

/* What is said of a token: of the logits before edits. */
typedef struct pagoda_token_logprobs {
  float logprob;
  int32_t rank; /* 1 + number of larger logits */
  int32_t num_top;
  int32_t top_ids[PAGODA_MAX_LOGPROBS]; /* best first, equal ones by id */
  float top_logprobs[PAGODA_MAX_LOGPROBS];
} pagoda_token_logprobs;

/* One launch over the rows first_row .. first_row + num_rows of a call. */
typedef struct pagoda_sample_params {
  int32_t *tokens;                 /* [rows of the call] out, at `out`; device memory or mapped host memory */
  pagoda_token_logprobs *logprobs; /* the same; or NULL */
  int32_t *last_tokens;            /* [slots] out */
  const float *logits;             /* [any, vocab] */
  const pagoda_sample_row *rows;   /* [rows of the call] */
  const uint32_t *masks;           /* [any, mask_stride], bit id % 32 of word id / 32: token id is allowed; or NULL */
  const pagoda_token_edit *edits;  /* [slots, edit_stride]; or NULL */
  uint16_t *counts;                /* [slots, count_stride], bit 15: in the prompt, the rest: times in the output; or NULL */
  void *workspace;                 /* pagoda_sample_workspace_bytes, aligned to 256 bytes, zeroed once */
  int32_t first_row;
  int32_t num_rows;
  int32_t max_rows; /* of a call: what the workspace was made for */
  int32_t vocab;    /* at most 2^20 */
  int32_t mask_stride;
  int32_t edit_stride;
  int32_t count_stride; /* a multiple of 4 */
  int32_t num_splits;   /* CTAs of a row, 1..64; heuristics.rs */
} pagoda_sample_params;
pagoda_status pagoda_sample_workspace_bytes(int32_t vocab, int32_t max_rows, int64_t *bytes);
pagoda_status pagoda_sample_scan(const pagoda_sample_params *params, pagoda_stream stream);
pagoda_status pagoda_sample_pick(const pagoda_sample_params *params, pagoda_stream stream);
pagoda_status pagoda_sample_filter(const pagoda_sample_params *params, pagoda_stream stream);
pagoda_status pagoda_sample_draw(const pagoda_sample_params *params, pagoda_stream stream);
pagoda_status pagoda_sample_logprobs(const pagoda_sample_params *params, pagoda_stream stream);

/* counts[:] = 0, then counts[tokens[i]] = values[i]: a slot begins with these tokens. */
typedef struct pagoda_set_counts_params {
  uint16_t *counts;      /* [count_stride] of one slot */
  const int32_t *tokens; /* [num_tokens], distinct */
  const int32_t *values; /* [num_tokens] */
  int32_t num_tokens;
  int32_t count_stride; /* a multiple of 4 */
} pagoda_set_counts_params;
pagoda_status pagoda_set_counts(const pagoda_set_counts_params *params, pagoda_stream stream);

#endif
