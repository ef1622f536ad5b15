// Product with 4-bit weights for sm_90 and later, up to 8 tokens: out[t, i] = sum_c x[t, c] * w[i, c], w in tiles of 16 x 64 (pagoda_w4.h).
//
// The columns are cut into split_k slabs, and a slab is dealt to the warps of a CTA, at most kCols tiles of a row each. A warp keeps its part
// of x in registers, as operand b of mma.m16n8k16, and walks down its CTA's tile rows: no x passes through shared memory. Weights come through
// a ring of the warp's own, one bulk copy a row; rows behind it are asked into L2.
//
//   slab 0        slab 1        a CTA has some tile rows of one slab; where the columns are few, groups of its warps take the rows in turn
//   w0 w1 w2 w3 | w0 w1 w2 w3   row r       a warp puts its sums of a row into a slot; in the middle of the next row, those whose turn it is
//   w0 w1 w2 w3 | w0 w1 w2 w3   row r + 1   add the slots, in order of warp
//
// The sums of slabs go through memory: the CTA that is the last to finish its rows adds them, in order of slab. So the order of additions
// depends on k and split_k alone. Registers and shared memory of two CTAs fit a multiprocessor: the next kernel's rings fill while this one
// ends. Bound by HBM, and nearly as much by shared memory: of some 27 passes of 128 bytes a tile, 16 are the table of pairs.
#pragma once
#include "../common/reduce.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/tensor_copy.cuh"
#include "ring.cuh"
#include "w4_factors.cuh"
#include "w4_output.cuh"
#include "w4_ring.cuh"

namespace pagoda {

constexpr int kW4WarpCols = 4;       // tiles of a row that a warp multiplies
constexpr int kW4ColumnsWarps = 14;  // of a CTA at most: 72 registers a thread
constexpr int kW4Unroll = 2;         // tiles whose loads are under way
constexpr int kW4ColumnsStages = 2;  // rows of a warp's ring
constexpr int kW4SlotBytes = 16 * 8 * 4;

// How codes become operands.
enum W4Decoding {
  kPairTable, // any book
  kWhole      // neighbouring whole numbers: 128 + code is a code in the mantissa of a bf16
};

// kScales scales a row in a tile, with zeros or not.
template <W4Decoding kDecode, int kScales, bool kZeros> struct W4Columns {
  static constexpr W4Scaling kScaling = kScales > 1 ? (kZeros ? kStepScalesZeros : kStepScales) : kZeros ? kTileScalesZeros : kTileScales;
  static constexpr W4Decoding kDecoding = kDecode;
  static constexpr bool kHasZeros = kZeros;
  static constexpr int kScalesPerTile = kScales;
  static constexpr int kPlaneBytes = kScales * W4Tile::kRows * 2;
  static constexpr int kTileBytes = W4Tile::kCodeBytes + kPlaneBytes * (kZeros ? 2 : 1);
  static constexpr int kStageBytes = kW4WarpCols * kTileBytes; // a warp's part of a row
  static constexpr int kTableBytes = kDecode == kPairTable ? kPairTableBytes : 0;
  static constexpr int kSlots = kTableBytes > 0 && kScales == 4 ? 1 : 3; // rows whose sums wait to be added: what leaves room for two CTAs
  static constexpr int kLag = kSlots == 1 ? 1 : 2;                       // from the row that a warp multiplies to the one that it adds
  static constexpr int kGroups = kScales; // of steps that share a scale
  static constexpr int kGroupSteps = 4 / kScales;
};

// How the columns are dealt.
struct W4Deal {
  int num_cols, row_tiles, split_k;
  int row_warps; // that share a row of a slab
  int groups;    // of so many warps in a CTA
  __host__ __device__ __forceinline__ explicit W4Deal(const pagoda_w4_gemm_params &p)
      : num_cols(p.w.k / W4Tile::kCols), row_tiles(w4_row_tiles(p.w)), split_k(p.split_k), row_warps(((num_cols + split_k - 1) / split_k + kW4WarpCols - 1) / kW4WarpCols),
        groups(p.num_warps / row_warps) {}
};

inline int w4_columns_ctas(const pagoda_w4_gemm_params &p) {
  const W4Deal deal(p);
  const int ctas = p.max_ctas / deal.split_k, most = (deal.row_tiles + deal.groups - 1) / deal.groups;
  return (ctas < most ? ctas : most) * deal.split_k;
}

template <typename Kernel> int w4_columns_smem_bytes(const pagoda_w4_gemm_params &p) {
  const int ring = kW4ColumnsStages * (Kernel::kStageBytes + 8);
  return Kernel::kTableBytes + p.num_warps * (ring + Kernel::kSlots * kW4SlotBytes) + W4Deal(p).groups * 2 * Kernel::kSlots * 8;
}

#if __CUDA_ARCH__ >= 900

// What one warp works on.
struct W4Part {
  W4Deal deal;
  int slab, rank, row_begin, row_end; // of the CTA; rank: among those of its slab
  int group, place;                   // of the warp, and among those of its row
  int col_begin, num_cols, num_rows;
  __device__ __forceinline__ W4Part(const pagoda_w4_gemm_params &p, int warp) : deal(p) {
    const int ctas = gridDim.x / deal.split_k;
    slab = blockIdx.x % deal.split_k, rank = blockIdx.x / deal.split_k;
    row_begin = deal.row_tiles * rank / ctas, row_end = deal.row_tiles * (rank + 1) / ctas;
    group = warp / deal.row_warps, place = warp - group * deal.row_warps;
    const int begin = deal.num_cols * slab / deal.split_k, cols = deal.num_cols * (slab + 1) / deal.split_k - begin;
    col_begin = begin + cols * place / deal.row_warps, num_cols = begin + cols * (place + 1) / deal.row_warps - col_begin;
    num_rows = group < deal.groups ? (row_end - row_begin - group + deal.groups - 1) / deal.groups : 0;
  }
  __device__ __forceinline__ int row(int i) const { return row_begin + group + i * deal.groups; }
};

// Fills a warp's ring: by its first lane, a copy for its part of a row.
struct W4PartRing {
  uint32_t part_bytes;
  int not_copied;
  int64_t row_bytes; // from a row of the warp to its next
  const unsigned char *next_gmem;
  __device__ __forceinline__ W4PartRing(const pagoda_w4_gemm_params &p, const W4Part &part, int tile_bytes)
      : part_bytes(part.num_cols * tile_bytes), not_copied(part.num_rows), row_bytes(static_cast<int64_t>(part.deal.num_cols) * tile_bytes * part.deal.groups),
        next_gmem(static_cast<const unsigned char *>(p.w.tiles) + (static_cast<int64_t>(part.row(0)) * part.deal.num_cols + part.col_begin) * tile_bytes) {}
  __device__ __forceinline__ void fill(uint32_t stage_smem, uint32_t full, uint64_t policy) {
    ptx::arrive_expecting(full, part_bytes);
    ptx::copy_bytes(stage_smem, next_gmem, part_bytes, full, policy);
    --not_copied, next_gmem += row_bytes;
  }
};

__device__ __forceinline__ void w4_add4(float (&to)[4], uint4 v) {
  to[0] += __uint_as_float(v.x), to[1] += __uint_as_float(v.y), to[2] += __uint_as_float(v.z), to[3] += __uint_as_float(v.w);
}

// The outputs of a fragment of tile row `tile`: rows g and g + 8 of tokens 2 t and 2 t + 1. When gated, row g + 8 is the `up` of row g.
__device__ __forceinline__ void w4_store_fragment(const pagoda_w4_gemm_params &p, int tile, const float (&sums)[4], float factor, int lane) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int token = lane % 4 * 2 + e % 2;
    if (token >= p.num_tokens || (p.gated && e >= 2)) continue;
    W4Output out;
    out.place(p, tile, lane / 4 + e / 2 * 8, token);
    out.read(p);
    out.write(p, sums[e] * factor, sums[e % 2 + 2] * factor);
  }
}

// The slots of a group of warps: a fragment of sums each. The warps add rows in turn, one a row.
template <int kSlots> struct W4Slots {
  const pagoda_w4_gemm_params &p;
  const W4Part &part;
  uint32_t slots, full, empty; // addresses
  int next_row;                // the next that this warp has to add
  __device__ __forceinline__ W4Slots(const pagoda_w4_gemm_params &p, const W4Part &part, uint32_t slots, uint32_t barriers)
      : p(p), part(part), slots(slots), full(barriers), empty(barriers + kSlots * 8), next_row(part.place) {}
  __device__ __forceinline__ void init() const {
#pragma unroll 1
    for (int s = 0; s < kSlots; ++s) {
      ptx::init_barrier(full + 8 * s, part.deal.row_warps);
      ptx::init_barrier(empty + 8 * s, 1);
    }
  }
  // Row next_row of the warp's group: to the output, or to the sums of the other slabs.
  __device__ __forceinline__ void add(float factor, int lane) {
    const int slot = next_row % kSlots, count = part.deal.row_warps, row = part.row(next_row);
    ptx::wait_barrier(full + 8 * slot, next_row / kSlots & 1);
    uint32_t at = slots + slot * count * kW4SlotBytes + lane * 16;
    float sums[4] = {};
#pragma unroll 1
    for (int i = 0; i < count; i += 4, at += 4 * kW4SlotBytes) {
      uint4 v[4] = {};
#pragma unroll
      for (int e = 0; e < 4; ++e) { // all under way before the first is used
        if (i + e < count) v[e] = ptx::load_shared_16b(at + e * kW4SlotBytes);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) w4_add4(sums, v[e]);
    }
    __syncwarp();
    if (lane == 0) ptx::arrive(empty + 8 * slot);
    if (part.deal.split_k == 1) {
      w4_store_fragment(p, row, sums, factor, lane);
    } else {
      float *partial = p.partials + ((static_cast<int64_t>(part.slab) * part.deal.row_tiles + row) * kWarpSize + lane) * 4;
      ptx::store_16b(partial, make_uint4(__float_as_uint(sums[0]), __float_as_uint(sums[1]), __float_as_uint(sums[2]), __float_as_uint(sums[3])));
    }
    next_row += count;
  }
};

// Where a warp puts its sums, slot after slot.
template <int kSlots> struct W4PutSlot {
  uint32_t begin, bytes, smem, full_begin, full, parity = 1;
  __device__ __forceinline__ W4PutSlot(const W4Slots<kSlots> &slots, const W4Part &part, int lane)
      : begin(slots.slots + part.place * kW4SlotBytes + lane * 16), bytes(part.deal.row_warps * kW4SlotBytes), smem(begin), full_begin(slots.full), full(full_begin) {}
  __device__ __forceinline__ void put(const float (&sums)[4], int row, int lane) {
    if (row >= kSlots) ptx::wait_barrier(full + kSlots * 8, parity);
    ptx::store_shared_16b(smem, make_uint4(__float_as_uint(sums[0]), __float_as_uint(sums[1]), __float_as_uint(sums[2]), __float_as_uint(sums[3])));
    __syncwarp();
    if (lane == 0) ptx::arrive(full);
    smem += bytes, full += 8;
    if (full == full_begin + kSlots * 8) smem = begin, full = full_begin, parity ^= 1;
  }
};

// Word i of lane t becomes word t of lane i, of four neighbours: from 8 columns each to the pairs 2 t of the 8 columns of each.
__device__ __forceinline__ uint4 w4_transpose(uint4 v, int lane) {
  const bool odd = lane & 1, late = lane & 2;
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? v.x : v.y, 1), b = __shfl_xor_sync(0xffffffffu, odd ? v.z : v.w, 1);
  if (odd) v.x = a, v.z = b;
  else v.y = a, v.w = b;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, late ? v.x : v.z, 2), d = __shfl_xor_sync(0xffffffffu, late ? v.y : v.w, 2);
  if (late) v.x = c, v.y = d;
  else v.z = c, v.w = d;
  return v;
}

// Operand a of one step where codes are whole numbers, of columns {c, c + 8} and {c + 1, c + 9}.
__device__ __forceinline__ void w4_decode_whole(uint32_t (&a)[4], uint32_t word, const __nv_bfloat162 (&zero)[2], uint32_t pair_128) {
  constexpr uint32_t kNibbles = 0x000f000f;
  const uint32_t codes[4] = {ptx::and_or(word, kNibbles, pair_128), ptx::and_or(word >> 8, kNibbles, pair_128), ptx::and_or(word >> 4, kNibbles, pair_128),
                             ptx::and_or(word >> 12, kNibbles, pair_128)};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const __nv_bfloat162 v = __hsub2(*reinterpret_cast<const __nv_bfloat162 *>(&codes[e]), zero[e % 2]);
    a[e] = *reinterpret_cast<const uint32_t *>(&v);
  }
}

// What a warp multiplies by: its columns of x as operands b, and where it reads tiles and the table.
template <typename Kernel> struct W4PartProduct {
  static constexpr int kCols = kW4WarpCols;
  uint4 x_frag[kCols][2] = {}; // zeros for tokens and columns that are not there
  const unsigned char *table_smem;
  uint32_t lane_codes, lane_scales; // places in a tile
  float zero_code;                  // 128 less the first code of a book of whole numbers
  uint32_t pair_128;                // two bf16, in a register, so that one instruction masks and adds

  __device__ __forceinline__ W4PartProduct(const pagoda_w4_gemm_params &p, const W4Book &book, const W4Part &part, const unsigned char *table_smem, int lane)
      : table_smem(table_smem), lane_codes(lane * 16), lane_scales(W4Tile::kCodeBytes + lane / 4 * 4), zero_code(128.0f - book.values[0]), pair_128(ptx::in_register(0x43004300)) {
    if (lane / 4 < p.num_tokens) {
      const bf16 *x_gmem = static_cast<const bf16 *>(p.x) + static_cast<int64_t>(lane / 4) * p.w.k + part.col_begin * W4Tile::kCols + lane % 4 * 8;
#pragma unroll
      for (int i = 0; i < kCols; ++i) {
        if (i < part.num_cols) x_frag[i][0] = ptx::load_16b(x_gmem + i * W4Tile::kCols), x_frag[i][1] = ptx::load_16b(x_gmem + i * W4Tile::kCols + 32);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kCols; ++i) {
      uint4 &x = x_frag[i / 2][i % 2];
      x = w4_transpose(x, lane);
      if constexpr (Kernel::kDecoding == kWhole) {
        x = make_uint4(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x5410), __byte_perm(x.z, x.w, 0x7632));
      }
    }
  }
  // Some tiles side by side, in registers. A tile beyond the last is the first again: its x is zero.
  struct Tiles {
    uint4 codes[kW4Unroll];
    uint32_t scales[kW4Unroll][Kernel::kGroups], zeros[kW4Unroll][Kernel::kGroups];
  };
  __device__ __forceinline__ void load(Tiles &tiles, uint32_t tiles_smem, int count) const {
#pragma unroll
    for (int i = 0; i < kW4Unroll; ++i) {
      const uint32_t tile_smem = tiles_smem + (i < count ? i * Kernel::kTileBytes : 0);
      tiles.codes[i] = ptx::load_shared_16b(tile_smem + lane_codes);
#pragma unroll
      for (int j = 0; j < Kernel::kGroups; ++j) {
        tiles.scales[i][j] = ptx::load_shared_4b(tile_smem + lane_scales + j * 32);
        if constexpr (Kernel::kHasZeros) tiles.zeros[i][j] = ptx::load_shared_4b(tile_smem + lane_scales + Kernel::kPlaneBytes + j * 32);
      }
    }
  }
  __device__ __forceinline__ void decode(uint32_t (&a)[4], uint32_t word, const __nv_bfloat162 (&zero)[2]) const {
    if constexpr (Kernel::kDecoding == kWhole) w4_decode_whole(a, word, zero, pair_128);
    else w4_decode_pairs(a, word, table_smem, lane_codes / 4);
  }
  // sums += one tile times x.
  __device__ __forceinline__ void multiply(float (&sums)[4], const Tiles &tiles, int i, const uint4 (&x)[2]) const {
    const uint4 codes = tiles.codes[i];
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    const uint32_t b[8] = {x[0].x, x[0].y, x[0].z, x[0].w, x[1].x, x[1].y, x[1].z, x[1].w};
#pragma unroll
    for (int group = 0; group < Kernel::kGroups; ++group) {
      const float2 scale = w4_half_pair(tiles.scales[i][group]);
      float2 zeros = make_float2(0.0f, 0.0f);
      if constexpr (Kernel::kHasZeros) zeros = w4_half_pair(tiles.zeros[i][group]);
      const __nv_bfloat162 zero[2] = {__float2bfloat162_rn(zero_code + zeros.x), __float2bfloat162_rn(zero_code + zeros.y)};
      float part[4] = {};
#pragma unroll
      for (int j = group * Kernel::kGroupSteps; j < (group + 1) * Kernel::kGroupSteps; ++j) {
        uint32_t a[4];
        decode(a, words[j], zero);
        ptx::mma_bf16(part, a[0], a[1], a[2], a[3], b[2 * j], b[2 * j + 1]);
      }
      w4_add_scaled(sums, part, scale);
    }
  }
  // sums += tiles kFirst .. of a row times x.
  template <int kFirst> __device__ __forceinline__ void multiply(float (&sums)[4], const Tiles &tiles) const {
#pragma unroll
    for (int i = 0; i < kW4Unroll; ++i) multiply(sums, tiles, i, x_frag[kFirst + i]);
  }
};

// The CTA that finishes its rows last: their outputs from the sums of all slabs, a warp a row.
__device__ __forceinline__ void w4_add_slabs(const pagoda_w4_gemm_params &p, float factor, const W4Part &part, int warp, int lane) {
  const int64_t slab_floats = static_cast<int64_t>(part.deal.row_tiles) * kWarpSize * 4;
  for (int row = part.row_begin + warp; row < part.row_end; row += p.num_warps) {
    const float *partial = p.partials + (static_cast<int64_t>(row) * kWarpSize + lane) * 4;
    float sums[4] = {};
    uint4 v[kMaxW4Split] = {};
#pragma unroll
    for (int s = 0; s < kMaxW4Split; ++s) { // all under way before the first is used
      if (s < part.deal.split_k) v[s] = ptx::load_16b(partial + s * slab_floats);
    }
#pragma unroll
    for (int s = 0; s < kMaxW4Split; ++s) w4_add4(sums, v[s]);
    w4_store_fragment(p, row, sums, factor, lane);
  }
}

// One warp: all its rows.
template <typename Kernel>
__device__ __forceinline__ void w4_columns_walk(const pagoda_w4_gemm_params &p, const W4Book &book, const W4Part &part, W4PartRing &ring, W4Slots<Kernel::kSlots> &slots,
                                                const unsigned char *table_smem, uint32_t ring_smem, uint32_t full, uint64_t policy, int lane) {
  using Product = W4PartProduct<Kernel>;
  const Product product(p, book, part, table_smem, lane);
  W4PutSlot<Kernel::kSlots> put_slot(slots, part, lane);
  const bool has_second = part.num_cols > kW4Unroll;
  uint32_t stage_smem = ring_smem, stage_full = full, parity = 0;
#pragma unroll 1
  for (int i = 0; i < part.num_rows; ++i) {
    float sums[4] = {};
    typename Product::Tiles tiles;
    ptx::wait_barrier(stage_full, parity);
    product.load(tiles, stage_smem, part.num_cols);
    product.template multiply<0>(sums, tiles);
    if (i - Kernel::kLag == slots.next_row) slots.add(book.factor, lane);
    if (has_second) {
      product.load(tiles, stage_smem + kW4Unroll * Kernel::kTileBytes, part.num_cols - kW4Unroll);
      product.template multiply<kW4Unroll>(sums, tiles);
    }
    put_slot.put(sums, i, lane);
    // Not before the sums: right after the loads, some rows were multiplied by what the copy brought.
    if (lane == 0 && ring.not_copied > 0) ring.fill(stage_smem, stage_full, policy);
    // The other stage.
    stage_smem = 2 * ring_smem + Kernel::kStageBytes - stage_smem, stage_full = 2 * full + 8 - stage_full, parity ^= i & 1;
  }
  while (slots.next_row < part.num_rows) slots.add(book.factor, lane);
}

#endif

static_assert(kW4WarpCols == 2 * kW4Unroll && kW4ColumnsStages == 2, "a row is multiplied in two halves, rows lie in the stages in turn");

template <typename Kernel>
__global__ void __launch_bounds__(kW4ColumnsWarps *kWarpSize, 2) w4_columns_sm90_kernel(const __grid_constant__ pagoda_w4_gemm_params p, const __grid_constant__ W4Book book) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char dynamic_smem[];
  __shared__ int num_finished_smem;
  constexpr int kRingBytes = kW4ColumnsStages * Kernel::kStageBytes;
  const int lane = ptx::lane_id(), warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarpSize, 0);
  const W4Part part(p, warp);
  const uint32_t rings = ptx::smem_address(dynamic_smem) + Kernel::kTableBytes, slots_smem = rings + p.num_warps * kRingBytes;
  const uint32_t barriers = slots_smem + p.num_warps * Kernel::kSlots * kW4SlotBytes, slot_barriers = barriers + p.num_warps * kW4ColumnsStages * 8;
  const uint32_t ring_smem = rings + warp * kRingBytes, full = barriers + warp * kW4ColumnsStages * 8;
  const uint64_t policy = ptx::evict_first_policy();
  W4PartRing ring(p, part, Kernel::kTileBytes);
  W4Slots<Kernel::kSlots> slots(p, part, slots_smem + part.group * part.deal.row_warps * Kernel::kSlots * kW4SlotBytes, slot_barriers + part.group * 2 * Kernel::kSlots * 8);
  if (lane == 0 && part.num_rows > 0) {
    if (part.place == 0) slots.init();
    ptx::init_barrier(full, 1);
    ptx::init_barrier(full + 8, 1);
    ptx::fence_barrier_init();
    ring.fill(ring_smem, full, policy);
    if (ring.not_copied > 0) ring.fill(ring_smem + Kernel::kStageBytes, full + 8, policy);
  }
  if constexpr (Kernel::kDecoding == kPairTable) {
    for (int high = warp; high < 16; high += p.num_warps) fill_pair_row(dynamic_smem, book, high, lane);
  }
  __syncthreads();
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();

  if (part.num_rows > 0) w4_columns_walk<Kernel>(p, book, part, ring, slots, dynamic_smem, ring_smem, full, policy, lane);

  if (part.deal.split_k == 1) return;
  __syncthreads();
  if (threadIdx.x == 0) num_finished_smem = ptx::add_in_order(p.counters + part.rank, 1);
  __syncthreads();
  if (num_finished_smem != part.deal.split_k - 1) return;
  if (threadIdx.x == 0) p.counters[part.rank] = 0;
  w4_add_slabs(p, book.factor, part, warp, lane);
#endif
}

} // namespace pagoda
