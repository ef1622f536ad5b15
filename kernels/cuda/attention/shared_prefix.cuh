// What the two kernels of cascade attention agree on: how shared prefixes are split, and where the parts of a row lie.
#pragma once
#include "pagoda.h"

namespace pagoda {

struct PrefixSplits {
  int len;   // keys of a split
  int slots; // splits of the longest prefix

  // Short splits while there are too few rows to fill the GPU; longer ones when the parts would not fit.
  __device__ __forceinline__ explicit PrefixSplits(const pagoda_attention_decode_params &d) : len(512), slots(0) {
    if (!d.prefixes.lens) return;
    const int members = __ldcg(d.prefixes.groups + 1), longest = __ldcg(d.prefixes.groups + 2);
    if (members >= 128) len = 1024;
    slots = count(longest);
    while (slots > 1 && static_cast<int64_t>(d.attention.num_seqs) * slots * d.attention.num_heads > d.prefixes.max_partials) {
      len *= 2;
      slots = count(longest);
    }
  }

  __device__ __forceinline__ int count(int prefix_len) const { return (prefix_len + len - 1) / len; }

  // o, m, l of one row.
  template <int kHeadDim> __device__ __forceinline__ float *partial(const pagoda_attention_decode_params &d, int seq, int split, int head) const {
    return d.prefixes.partials + ((static_cast<int64_t>(seq) * slots + split) * d.attention.num_heads + head) * (kHeadDim + 4);
  }
};

} // namespace pagoda
