// What the CTAs of decode attention work on.
//
// The context of every sequence with one query row is cut into pieces of split_len keys, counted from position 0. With a fixed split_len a
// sequence's sums do not depend on its batch; without, it is chosen for the batch. The pieces of all sequences in order are the plan; a piece and a chunk of at most 8 query heads of one
// kv head are an item. Every CTA makes the same plan from the context lengths, in shared memory. Keys that a window hides or that the
// sequence's group computes (prefix.cuh) are in no piece.
#pragma once
#include "decode_tile.cuh"
#include "shared_prefix.cuh"

namespace pagoda {

constexpr int kDecodeWarps = 4;                        // that compute
constexpr int kAllWarps = kDecodeWarps + 2;            // and two that feed them
constexpr int kDecodeThreads = kAllWarps * kWarpSize;
constexpr int kDecodeHeads = 8;                        // columns of the product
constexpr int kMaxPlanSeqs = 512;                      // of one launch

// Lengths of pieces to choose from: kMinSplit << 0 .. kNumSplits - 1. In time, an item costs kItemKeys keys more than it has, the merge of
// pieces kMergeKeys and kPieceKeys for each (H100).
constexpr int kMinSplit = 128;
constexpr int kNumSplits = 6;
constexpr int kItemKeys = 64;
constexpr int kMergeKeys = 160;
constexpr int kPieceKeys = 8;

struct DecodePlan {
  int ends[kMaxPlanSeqs];     // pieces up to and with this sequence
  int contexts[kMaxPlanSeqs]; // keys
  int begins[kMaxPlanSeqs];   // the first one of them in a piece
  int warp_sums[kAllWarps];
  int totals[kAllWarps][kNumSplits + 2];
};

// What does not depend on the item.
struct DecodeShape {
  int group, chunks; // query heads of a kv head, chunks of at most 8 of them
  int split_len;
  int num_items;
};

// One item.
struct DecodeWork {
  KeyRange keys;
  int seq, row, context;
  int chunk, first_head, num_heads;
  int piece, num_pieces, pieces_before; // of the plan; of the sequence; of the sequence before this one
  int prefix_splits;                    // parts of the sequence's prefix
  bool is_last;                         // holds the sequence's last key
};

__device__ __forceinline__ int count_pieces(int begin, int context, int split_len) { return context > begin ? (context - 1) / split_len - begin / split_len + 1 : 0; }

// Every thread gets the number of pieces. All threads of the CTA take part.
__device__ __forceinline__ int make_plan(int num_seqs, int split_len, DecodePlan &plan) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int per_thread = (num_seqs + kDecodeThreads - 1) / kDecodeThreads;
  const int begin = threadIdx.x * per_thread, end = min(begin + per_thread, num_seqs);
  int sum = 0;
#pragma unroll 1
  for (int seq = begin; seq < end; ++seq) plan.ends[seq] = sum += count_pieces(plan.begins[seq], plan.contexts[seq], split_len);
  int before = sum;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, before, offset);
    if (lane >= offset) before += below;
  }
  if (lane == kWarpSize - 1) plan.warp_sums[warp] = before;
  __syncthreads();
  before -= sum;
  int total = 0;
#pragma unroll
  for (int v = 0; v < kAllWarps; ++v) {
    if (v < warp) before += plan.warp_sums[v];
    total += plan.warp_sums[v];
  }
#pragma unroll 1
  for (int seq = begin; seq < end; ++seq) plan.ends[seq] += before;
  __syncthreads();
  return total;
}

// The length of pieces with which the CTAs end soonest: after the longest item when each has one, else after an equal share of the keys
// and, on average, half of the longest item.
__device__ __forceinline__ int choose_split(int num_seqs, int heads, DecodePlan &plan) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int totals[kNumSplits + 1] = {}, longest = 0; // pieces for each length, keys
#pragma unroll 1
  for (int seq = threadIdx.x; seq < num_seqs; seq += kDecodeThreads) {
    const int begin = plan.begins[seq], context = plan.contexts[seq];
    longest = max(longest, context - begin);
    totals[kNumSplits] += max(0, context - begin);
#pragma unroll
    for (int i = 0; i < kNumSplits; ++i) totals[i] += count_pieces(begin, context, kMinSplit << i);
  }
#pragma unroll
  for (int i = 0; i <= kNumSplits; ++i) totals[i] = __reduce_add_sync(0xffffffffu, totals[i]);
  longest = __reduce_max_sync(0xffffffffu, longest);
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i <= kNumSplits; ++i) plan.totals[warp][i] = totals[i];
    plan.totals[warp][kNumSplits + 1] = longest;
  }
  __syncthreads();
  longest = 0;
  float keys = 0.0f; // past 2^31 with heads
#pragma unroll
  for (int v = 0; v < kAllWarps; ++v) {
    keys += static_cast<float>(plan.totals[v][kNumSplits]);
    longest = max(longest, plan.totals[v][kNumSplits + 1]);
  }
  int best = kMinSplit;
  float least = INFINITY;
#pragma unroll
  for (int i = 0; i < kNumSplits; ++i) {
    int items = 0;
#pragma unroll
    for (int v = 0; v < kAllWarps; ++v) items += plan.totals[v][i] * heads;
    const int split = kMinSplit << i, item = min(split, longest);
    const float share = (keys * static_cast<float>(heads) + static_cast<float>(items) * kItemKeys) / static_cast<float>(gridDim.x);
    float cost = items <= static_cast<int>(gridDim.x) ? static_cast<float>(item + kItemKeys) : share + 0.5f * static_cast<float>(item);
    if (split < longest) cost += static_cast<float>(kMergeKeys + kPieceKeys * (longest / split));
    if (cost <= least) least = cost, best = split;
  }
  return best;
}

// Reads the contexts and plans. Pieces grow while there is no room for the partial results of all.
__device__ __forceinline__ DecodeShape plan_decode(const pagoda_attention_decode_params &d, DecodePlan &plan) {
  const pagoda_attention_params &p = d.attention;
#pragma unroll 1
  for (int seq = threadIdx.x; seq < p.num_seqs; seq += kDecodeThreads) {
    const int context = __ldcg(p.context_lens + seq);
    const bool is_single = __ldcg(p.cu_seqlens_q + seq + 1) - __ldcg(p.cu_seqlens_q + seq) == 1;
    const int hidden = p.window > 0 ? max(0, context - p.window) : 0;
    plan.contexts[seq] = is_single ? context : 0;
    plan.begins[seq] = max(hidden, d.prefixes.lens ? __ldcg(d.prefixes.lens + seq) : 0);
  }
  __syncthreads();
  DecodeShape shape;
  shape.group = p.num_heads / p.num_kv_heads;
  shape.chunks = (shape.group + kDecodeHeads - 1) / kDecodeHeads;
  shape.split_len = d.split_len > 0 ? d.split_len : choose_split(p.num_seqs, p.num_kv_heads * shape.chunks, plan);
  int total = make_plan(p.num_seqs, shape.split_len, plan);
#pragma unroll 1
  while (total > p.num_seqs && static_cast<int64_t>(total) * p.num_heads > d.max_partials) {
    shape.split_len *= 2;
    total = make_plan(p.num_seqs, shape.split_len, plan);
  }
  shape.num_items = total * p.num_kv_heads * shape.chunks;
  return shape;
}

__device__ __forceinline__ DecodeWork decode_work(const pagoda_attention_decode_params &d, const DecodeShape &shape, const PrefixSplits &prefixes, const DecodePlan &plan, int item) {
  const pagoda_attention_params &p = d.attention;
  DecodeWork w = {};
  if (item >= shape.num_items) return w;
  const int heads = p.num_kv_heads * shape.chunks;
  w.piece = item / heads;
  const int head = item - w.piece * heads;
  w.keys.kv_head = head / shape.chunks;
  w.chunk = head - w.keys.kv_head * shape.chunks;
  w.first_head = w.keys.kv_head * shape.group + w.chunk * kDecodeHeads;
  w.num_heads = min(kDecodeHeads, shape.group - w.chunk * kDecodeHeads);
  int low = 0, high = p.num_seqs - 1; // the first sequence that ends behind the piece
#pragma unroll 1
  while (low < high) {
    const int middle = (low + high) / 2;
    if (plan.ends[middle] > w.piece) high = middle;
    else low = middle + 1;
  }
  w.seq = low;
  w.row = __ldcg(p.cu_seqlens_q + low);
  w.context = plan.contexts[low];
  const int begin = plan.begins[low];
  const int first_split = begin / shape.split_len, last_split = (w.context - 1) / shape.split_len;
  w.num_pieces = last_split - first_split + 1;
  w.pieces_before = w.num_pieces - (plan.ends[low] - w.piece);
  w.is_last = w.pieces_before == w.num_pieces - 1;
  const int split = first_split + w.pieces_before;
  if (d.prefixes.lens) w.prefix_splits = prefixes.count(__ldcg(d.prefixes.lens + low));
  w.keys.table = p.block_tables + static_cast<int64_t>(low) * p.max_blocks_per_seq;
  w.keys.lo = max(begin, split * shape.split_len);
  w.keys.hi = min(w.context, (split + 1) * shape.split_len);
  w.keys.first = w.keys.lo / kTileKeys * kTileKeys;
  w.keys.num_tiles = (w.keys.hi - w.keys.first + kTileKeys - 1) / kTileKeys;
  return w;
}

} // namespace pagoda
