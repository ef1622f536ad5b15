// pagoda_attention_decode and pagoda_attention_prefix: checks, tensor maps, dispatch and the instantiation table of decode.cuh, prefix.cuh.
#include "../common/tensor_map.cuh"
#include "decode.cuh"
#include "prefix.cuh"

namespace pagoda {
namespace {

// The cache as [k, v][head_dim / 64][rows][64]: a box is the k and v of 16 keys in the layout of KvTile. A pool of any size: block tables
// name no row behind its end.
bool encode(CUtensorMap *map, const pagoda_attention_params &p) {
  const EncodeTiled encoder = tensor_map_encoder();
  if (!encoder) return false;
  constexpr cuuint64_t kRows = 1ull << 31;
  const cuuint64_t row_bytes = static_cast<cuuint64_t>(p.head_dim) * (p.kv_scales ? 1 : 2), panel_bytes = row_bytes < 128 ? row_bytes : 128;
  const cuuint64_t panel = p.kv_scales ? panel_bytes : 64, num_panels = row_bytes / panel_bytes;
  const cuuint64_t dims[4] = {panel, kRows, num_panels, 2};
  const cuuint64_t strides[3] = {row_bytes, panel_bytes, static_cast<cuuint64_t>(p.num_kv_heads) * p.block_size * row_bytes};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(panel), kTileKeys, static_cast<cuuint32_t>(num_panels), 2};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type = p.kv_scales ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUtensorMapSwizzle swizzle = panel_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  return encoder(map, type, 4, p.kv, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

using Kernel = void (*)(const pagoda_attention_decode_params, const CUtensorMap);

struct Entry {
  int head_dim;
  Kernel any;      // cp.async
  Kernel tensors;  // tensor copies, or null
  size_t smem_bytes;
  Kernel prefix;   // or null
  size_t prefix_smem_bytes;
};

template <int kHeadDim, int kSlots, bool kCodes = false> constexpr Entry entry() {
  constexpr size_t kBytes = sizeof(DecodeSmem<kHeadDim, kSlots, kCodes>) + kDecodeAlign;
  if constexpr (KvTile<kHeadDim>::kSwizzled) {
    return {kHeadDim, attention_decode_kernel<kHeadDim, kSlots, false, kCodes>, attention_decode_kernel<kHeadDim, kSlots, true, kCodes>, kBytes,
            attention_prefix_kernel<kHeadDim, kCodes>, sizeof(PrefixSmem<kHeadDim, kCodes>) + kDecodeAlign};
  } else {
    return {kHeadDim, attention_decode_kernel<kHeadDim, kSlots, false, kCodes>, nullptr, kBytes, nullptr, 0};
  }
}

// The head sizes of the families, and two small ones for tests. Rings such that two CTAs share a multiprocessor (one, at 256).
const Entry kEntries[] = {entry<16, 16>(), entry<32, 16>(), entry<64, 12>(), entry<80, 8>(), entry<96, 8>(), entry<128, 8>(), entry<256, 8>()};

// The same for a cache of codes. Tiles are half as large: twice as many.
const Entry kCodesEntries[] = {entry<16, 16, true>(), entry<32, 16, true>(),  entry<64, 16, true>(), entry<80, 16, true>(),
                               entry<96, 16, true>(), entry<128, 16, true>(), entry<256, 16, true>()};

const Entry *find_entry(const pagoda_attention_params &p) {
  for (const Entry &e : p.kv_scales ? kCodesEntries : kEntries) {
    if (e.head_dim == p.head_dim) return &e;
  }
  return nullptr;
}

bool is_valid(const pagoda_attention_decode_params &d) {
  const pagoda_attention_params &p = d.attention;
  if (!p.out || !p.qkv || !p.kv || !p.cu_seqlens_q || !p.context_lens || !p.block_tables || !d.partials || !d.counters) return false;
  if (p.num_heads <= 0 || p.num_kv_heads <= 0 || p.num_heads % p.num_kv_heads != 0 || p.num_seqs < 0 || p.block_size <= 0) return false;
  if (d.split_len < 0 || d.split_len % kTileKeys != 0 || d.num_ctas <= 0) return false;
  if (d.prefixes.lens && (!d.prefixes.groups || !d.prefixes.members || !d.prefixes.partials)) return false;
  return d.max_partials >= static_cast<int64_t>(min(p.num_seqs, kMaxPlanSeqs)) * p.num_heads && (!d.cos || d.sin);
}

bool has_rotation(const pagoda_attention_decode_params &d) {
  if (!d.cos) return true;
  return d.interleaved ? d.rotary_dim % 2 == 0 && d.rotary_dim <= d.attention.head_dim : d.rotary_dim == d.attention.head_dim;
}

bool is_power_of_two(int v) { return (v & (v - 1)) == 0; }

bool takes_tensor_copies(const void *kernel, const pagoda_attention_params &p, CUtensorMap *map) {
  return kernel && p.block_size % kTileKeys == 0 && can_start_early(kernel) && encode(map, p);
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_attention_decode(const pagoda_attention_decode_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params || !is_valid(*params)) return PAGODA_INVALID_ARGUMENT;
  pagoda_attention_decode_params d = *params;
  const Entry *e = find_entry(d.attention);
  if (!e || !has_rotation(d) || !is_power_of_two(d.attention.block_size)) return PAGODA_UNSUPPORTED;
  if (d.prefixes.lens && d.attention.num_seqs > kMaxPlanSeqs) return PAGODA_UNSUPPORTED;
  CUtensorMap map = {};
  const bool tensors = takes_tensor_copies(reinterpret_cast<const void *>(e->tensors), d.attention, &map);
  for (int rest = params->attention.num_seqs; rest > 0; rest -= kMaxPlanSeqs) {
    d.attention.num_seqs = min(rest, kMaxPlanSeqs);
    void *args[] = {&d, &map};
    const LaunchShape shape = {dim3(d.num_ctas), kDecodeThreads, e->smem_bytes};
    const pagoda_status status = launch_raw(reinterpret_cast<const void *>(tensors ? e->tensors : e->any), shape, args, stream);
    if (status != PAGODA_OK) return status;
    d.attention.cu_seqlens_q += kMaxPlanSeqs;
    d.attention.context_lens += kMaxPlanSeqs;
    d.attention.block_tables += static_cast<int64_t>(kMaxPlanSeqs) * d.attention.max_blocks_per_seq;
  }
  return PAGODA_OK;
}

extern "C" pagoda_status pagoda_attention_prefix(const pagoda_attention_decode_params *params, pagoda_stream stream) {
  using namespace pagoda;
  if (!params || !is_valid(*params) || !params->prefixes.lens || params->attention.window != 0) return PAGODA_INVALID_ARGUMENT;
  pagoda_attention_decode_params d = *params;
  const Entry *e = find_entry(d.attention);
  CUtensorMap map = {};
  if (!e || !e->prefix || !has_rotation(d) || !is_power_of_two(d.attention.block_size) || d.attention.num_seqs > kMaxPlanSeqs) return PAGODA_UNSUPPORTED;
  if (!takes_tensor_copies(reinterpret_cast<const void *>(e->prefix), d.attention, &map)) return PAGODA_UNSUPPORTED;
  void *args[] = {&d, &map};
  return launch_raw(reinterpret_cast<const void *>(e->prefix), {dim3(d.num_ctas), kPrefixThreads, e->prefix_smem_bytes}, args, stream);
}
