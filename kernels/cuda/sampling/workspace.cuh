// What the kernels of one call of the sampler hand on to each other. Counters and histograms are zero between calls.
#pragma once
#include "../common/launch.cuh"
#include "../common/reduce.cuh"
#include <stdint.h>

namespace pagoda::sampling {

constexpr int kUnit = 512;
constexpr int kGroup = 64;
constexpr int kMaxSplits = 64;
constexpr int kMaxPick = 64;         // tokens that `pick` chooses among
constexpr int kMaxCandidates = 4096; // weights that `filter` looks at more closely
constexpr int kMaxVocab = 1 << 20;
constexpr int kBucketShift = 18;
constexpr int kNumBuckets = (0x3f800000 >> kBucketShift) + 1; // of the leading bits of weights in [0, 1]

// Sums of a bucket or of several.
struct Tally {
  unsigned count;
  unsigned long long mass;
};

// What is known of a row so far.
struct RowState {
  float max;                    // of the edited logits
  int token;                    // once it is chosen, else -1
  unsigned long long threshold; // weights stay whose key is at least this
  Tally total;                  // of the histogram of `filter`
  int bucket_low;               // `filter` looks at weights of these buckets
  int bucket_high;
  unsigned num_in_range; // how many these are
  unsigned num_candidates;
  unsigned num_larger; // logits larger than the chosen one's; zero between calls
  unsigned arrivals;   // CTAs of the row that are done; zero between kernels
};

struct Candidate {
  float weight;
  int token;
};

struct Workspace {
  RowState *state;                 // [max_rows]
  Best *cta_best;                  // [max_rows, kMaxSplits]
  float2 *unit_sums;               // [max_rows, num_units] largest and sum of exp(logit - largest) of the logits before edits
  float *groups;                   // [max_rows, num_groups] largest of each group, edited
  float *raw_groups;               // the same before edits
  unsigned long long *unit_masses; // [max_rows, num_units]
  unsigned *bucket_counts;         // [max_rows, kNumBuckets]
  unsigned long long *bucket_masses; // the same
  Candidate *candidates;           // [max_rows, kMaxCandidates]
  int num_units;
  int num_groups;
  int64_t num_bytes;

  __host__ __device__ Workspace(void *base, int vocab, int max_rows) : num_units((vocab + kUnit - 1) / kUnit), num_groups(num_units * (kUnit / kGroup)) {
    char *next = static_cast<char *>(base);
    take(next, state, max_rows);
    take(next, cta_best, static_cast<int64_t>(max_rows) * kMaxSplits);
    take(next, unit_sums, static_cast<int64_t>(max_rows) * num_units);
    take(next, groups, static_cast<int64_t>(max_rows) * num_groups);
    take(next, raw_groups, static_cast<int64_t>(max_rows) * num_groups);
    take(next, unit_masses, static_cast<int64_t>(max_rows) * num_units);
    take(next, bucket_counts, static_cast<int64_t>(max_rows) * kNumBuckets);
    take(next, bucket_masses, static_cast<int64_t>(max_rows) * kNumBuckets);
    take(next, candidates, static_cast<int64_t>(max_rows) * kMaxCandidates);
    num_bytes = next - static_cast<char *>(base);
  }

private:
  template <typename T> __host__ __device__ static void take(char *&next, T *&part, int64_t count) {
    constexpr int64_t kAlign = 256;
    part = reinterpret_cast<T *>(next);
    next += (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
  }
};

__device__ __forceinline__ Workspace workspace_of(const pagoda_sample_params &p) { return Workspace(p.workspace, p.vocab, p.max_rows); }

inline bool valid(const pagoda_sample_params *p) {
  return p && p->tokens && p->last_tokens && p->logits && p->rows && p->workspace && p->first_row >= 0 && p->num_rows >= 0 &&
         p->first_row + p->num_rows <= p->max_rows && p->vocab > 0 && p->vocab <= kMaxVocab && p->num_splits >= 1 && p->num_splits <= kMaxSplits &&
         p->count_stride % 4 == 0;
}

// Queues kernel<vocab is a multiple of 4>, `num_splits` CTAs a row.
using SampleKernel = void (*)(pagoda_sample_params);
inline pagoda_status launch_rows(SampleKernel vec, SampleKernel any, const pagoda_sample_params *p, int num_splits, unsigned num_threads, pagoda_stream stream) {
  if (!valid(p)) return PAGODA_INVALID_ARGUMENT;
  if (p->num_rows == 0) return PAGODA_OK;
  const dim3 grid(static_cast<unsigned>(num_splits), static_cast<unsigned>(p->num_rows));
  return launch(p->vocab % 4 == 0 ? vec : any, {grid, num_threads}, *p, stream);
}

} // namespace pagoda::sampling
