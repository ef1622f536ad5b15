// Addresses in one layer's paged KV cache:
//
//   [num_blocks][2][num_kv_heads][block_size][head_dim] bf16 or e4m3        second index: 0 k, 1 v
//
// e4m3 codes of 16 dims lie in fragment order (pagoda_w8.h): a lane reads the four that it multiplies as one word, of keys and of values.
//
// so that the tokens of one head in one block are contiguous. Offsets are 64 bit: a pool passes 2^31 elements.
#pragma once
#include "../common/types.cuh"

namespace pagoda {

struct PagedKv {
  int num_kv_heads;
  int block_size;
  int head_dim;

  // Element offset of (block, k of `kv_head`, `offset`); v is `v_distance` further.
  __device__ __forceinline__ int64_t k_offset(int block, int kv_head, int offset) const {
    return ((static_cast<int64_t>(block) * 2 * num_kv_heads + kv_head) * block_size + offset) * head_dim;
  }
  __device__ __forceinline__ int64_t v_distance() const { return static_cast<int64_t>(num_kv_heads) * block_size * head_dim; }
};

} // namespace pagoda
