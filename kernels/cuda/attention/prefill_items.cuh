// The work of a prefill step: tiles of packed rows, each with every kv head.
//
// The rows of a tile are (token, query head of the kv head) pairs of one sequence, so that every k and v in shared memory serves all query
// heads of its kv head:
//
//   packed row R = token * group + head in group;   tile i holds rows block_m i .. block_m (i + 1) - 1
//
// Sequences with one query token have no tiles: they are the decode kernel's.
#pragma once
#include "../common/reduce.cuh"
#include "pagoda.h"

namespace pagoda {

// Rows of one sequence and the keys they see.
struct PrefillItem {
  int seq; // negative: none
  int kv_head;
  int row0;         // first row of the sequence in the step
  int first_packed; // first packed row of the tile
  int query_len;
  int context;
  int key_begin, key_end; // union over the tile's rows

  // Position of the sequence's first query token.
  __device__ __forceinline__ int computed() const { return context - query_len; }
};

// One warp: the item of this number; negative seq when there is none. Tiles are counted over the sequences in order, each with its last
// (longest) tile first; the kv heads of a tile follow each other.
template <int kBlockM> __device__ __forceinline__ PrefillItem prefill_item(const pagoda_attention_params &p, int number) {
  const int lane = threadIdx.x % kWarpSize;
  const int group = p.num_heads / p.num_kv_heads;
  PrefillItem item;
  item.seq = -1;
  item.kv_head = number % p.num_kv_heads;
  int remaining = number / p.num_kv_heads;
#pragma unroll 1
  for (int base = 0; base < p.num_seqs; base += kWarpSize) {
    const int seq = base + lane;
    const int query_len = seq < p.num_seqs ? __ldcg(p.cu_seqlens_q + seq + 1) - __ldcg(p.cu_seqlens_q + seq) : 0;
    int end = query_len > 1 ? (query_len * group + kBlockM - 1) / kBlockM : 0; // inclusive prefix sum of tiles
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, end, offset);
      if (lane >= offset) end += below;
    }
    const unsigned holds = __ballot_sync(0xffffffffu, remaining < end);
    if (holds == 0) {
      remaining -= __shfl_sync(0xffffffffu, end, kWarpSize - 1);
      continue;
    }
    const int owner = __ffs(holds) - 1;
    item.seq = base + owner;
    item.query_len = __shfl_sync(0xffffffffu, query_len, owner);
    item.first_packed = (__shfl_sync(0xffffffffu, end, owner) - 1 - remaining) * kBlockM;
    item.row0 = __ldcg(p.cu_seqlens_q + item.seq);
    item.context = __ldcg(p.context_lens + item.seq);
    const int first_token = item.first_packed / group;
    const int last_token = min((item.first_packed + kBlockM - 1) / group, item.query_len - 1);
    item.key_end = item.computed() + last_token + 1;
    item.key_begin = p.window > 0 ? max(0, item.computed() + first_token - p.window + 1) : 0;
    break;
  }
  return item;
}

// One warp: the number after `previous`; a CTA begins with its own index. With tickets whoever is free takes the next number, without them
// every CTA takes every gridDim.x-th.
__device__ __forceinline__ int next_item(const pagoda_attention_params &p, int previous) {
  if (!p.tickets) return previous + gridDim.x;
  int ticket = 0;
  if (threadIdx.x % kWarpSize == 0) ticket = atomicAdd(p.tickets, 1);
  return __shfl_sync(0xffffffffu, ticket, 0) + gridDim.x;
}

// One warp of a CTA that found no more items: the last CTA clears the tickets.
__device__ __forceinline__ void finish_items(const pagoda_attention_params &p) {
  if (!p.tickets || threadIdx.x % kWarpSize != 0) return;
  __threadfence();
  if (atomicAdd(p.tickets + 1, 1) != gridDim.x - 1) return;
  p.tickets[0] = 0;
  p.tickets[1] = 0;
}

} // namespace pagoda
