// pagoda_attention_prefill: checks, dispatch and the instantiation tables of prefill_sm90.cuh and prefill.cuh.
#include "../common/tensor_map.cuh"
#include "prefill.cuh"
#include "prefill_sm90.cuh"
#include <algorithm>
#include <atomic>

namespace pagoda {
namespace {

using Params = pagoda_attention_params;

struct Entry {
  int head_dim;
  void (*kernel)(const Params);
  size_t smem_bytes;
  int block_m;
};

template <int kHeadDim, bool kCodes = false> constexpr Entry entry() {
  using Smem = PrefillSmem<kHeadDim, kCodes>;
  return {kHeadDim, attention_prefill_kernel<kHeadDim, kCodes>, sizeof(Smem), Smem::kBlockM};
}

// The head sizes of the families, and two small ones for tests.
const Entry kEntries[] = {entry<16>(), entry<32>(), entry<64>(), entry<80>(), entry<96>(), entry<128>(), entry<256>()};
// The same for a cache of codes.
const Entry kCodesEntries[] = {entry<16, true>(), entry<32, true>(), entry<64, true>(), entry<80, true>(), entry<96, true>(), entry<128, true>(), entry<256, true>()};

struct Sm90Entry {
  int head_dim;
  bool soft_cap;
  void (*kernel)(const Params, const CUtensorMap, const PrefillBoxes);
  unsigned num_threads;
  size_t smem_bytes;
  int block_m, block_n;
};

template <typename Tile, bool kSoftCap> constexpr Sm90Entry sm90_entry() {
  return {Tile::kHeadDim, kSoftCap, attention_prefill_sm90_kernel<Tile, kSoftCap>, Tile::kThreads, Tile::kSmemBytes, Tile::kBlockM, Tile::kBlockN};
}

// Head sizes that are whole panels. The cap of scores needs registers that three groups lack, and so does decoding.
using Tile64 = PrefillTile<64, 128, 3, 10, false>;
using Tile64Cap = PrefillTile<64, 128, 2, 12, false>;
using Tile128 = PrefillTile<128, 128, 2, 6, true>;
using Tile256 = PrefillTile<256, 64, 2, 5, true>;
const Sm90Entry kSm90Entries[] = {sm90_entry<Tile64, false>(), sm90_entry<Tile64Cap, true>(), sm90_entry<Tile128, false>(),
                                  sm90_entry<Tile128, true>(), sm90_entry<Tile256, false>(), sm90_entry<Tile256, true>()};
// The same for a cache of codes: of the ring, codes of the three tiles to come take the place of some slots.
using Codes64 = PrefillTile<64, 128, 2, 10, false, true>;
using Codes128 = PrefillTile<128, 128, 2, 4, true, true>;
using Codes256 = PrefillTile<256, 64, 2, 3, true, true>;
const Sm90Entry kSm90CodesEntries[] = {sm90_entry<Codes64, false>(),  sm90_entry<Codes64, true>(),  sm90_entry<Codes128, false>(),
                                       sm90_entry<Codes128, true>(), sm90_entry<Codes256, false>(), sm90_entry<Codes256, true>()};

// At most: every sequence has one tile that is not full. The surplus leaves at once.
unsigned max_tiles(const Params &p, int block_m) {
  const int64_t packed_rows = static_cast<int64_t>(p.num_tokens) * (p.num_heads / p.num_kv_heads);
  return static_cast<unsigned>(packed_rows / block_m + p.num_seqs);
}

pagoda_status launch_sm80(const Params &p, cudaStream_t stream) {
  for (const Entry &e : p.kv_scales ? kCodesEntries : kEntries) {
    if (e.head_dim != p.head_dim) continue;
    const dim3 grid(max_tiles(p, e.block_m), p.num_kv_heads);
    return launch(e.kernel, {grid, kPrefillWarps * kWarpSize, e.smem_bytes}, p, stream);
  }
  return PAGODA_UNSUPPORTED;
}

// box_rows is 0 where tensor copies cannot serve: blocks of fewer rows than a pattern of the swizzle, or of no power of two.
PrefillBoxes prefill_boxes(const Params &p, int block_n) {
  constexpr int kPatternRows = 8;
  const int64_t num_matrices = static_cast<int64_t>(p.num_blocks) * 2 * p.num_kv_heads;
  const bool fits = p.block_size >= kPatternRows && (p.block_size & (p.block_size - 1)) == 0 && num_matrices > 0 && num_matrices < INT32_MAX;
  int shift = 0;
  while (1 << shift < p.block_size) ++shift;
  return {fits ? std::min(p.block_size, block_n) : 0, shift, static_cast<int>(num_matrices)};
}

// Multiprocessors of the current GPU, 0 where it is no sm_90 or this binary holds no code with the instructions of sm_90a: the kernel
// is empty then and asks for no shared memory. Asked once a GPU.
int sm90_multiprocessors() {
  constexpr int kMaxDevices = 64, kUnknown = -1;
  static std::atomic<int> known[kMaxDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return 0;
  const int answer = known[device].load(std::memory_order_relaxed) + kUnknown;
  if (answer != kUnknown) return answer;
  int major = 0, num_sms = 0;
  cudaFuncAttributes attributes = {};
  const bool asked = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
                     cudaFuncGetAttributes(&attributes, kSm90Entries[0].kernel) == cudaSuccess;
  const int found = asked && major == 9 && attributes.sharedSizeBytes > 0 ? num_sms : 0;
  known[device].store(found - kUnknown, std::memory_order_relaxed);
  return found;
}

// PAGODA_UNSUPPORTED where the other kernel has to serve.
pagoda_status launch_sm90(Params p, cudaStream_t stream) {
  const int num_sms = sm90_multiprocessors();
  if (num_sms == 0) return PAGODA_UNSUPPORTED;
  for (const Sm90Entry &e : p.kv_scales ? kSm90CodesEntries : kSm90Entries) {
    if (e.head_dim != p.head_dim || e.soft_cap != (p.soft_cap > 0.0f)) continue;
    PrefillBoxes boxes = prefill_boxes(p, e.block_n);
    CUtensorMap map = {}; // of codes there is none
    if (boxes.box_rows == 0) return PAGODA_UNSUPPORTED;
    if (!p.kv_scales && !encode_row_groups(&map, p.kv, boxes.num_matrices, p.block_size, p.head_dim, boxes.box_rows)) return PAGODA_UNSUPPORTED;
    const int64_t items = static_cast<int64_t>(max_tiles(p, e.block_m)) * p.num_kv_heads;
    const unsigned num_ctas = static_cast<unsigned>(std::min<int64_t>(items, num_sms));
    void *args[] = {&p, &map, &boxes};
    return launch_raw(reinterpret_cast<const void *>(e.kernel), {dim3(num_ctas), e.num_threads, e.smem_bytes}, args, stream);
  }
  return PAGODA_UNSUPPORTED;
}

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_attention_prefill(const pagoda_attention_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->qkv || !p->kv || !p->cu_seqlens_q || !p->context_lens || !p->block_tables) return PAGODA_INVALID_ARGUMENT;
  if (p->num_heads <= 0 || p->num_kv_heads <= 0 || p->num_heads % p->num_kv_heads != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_seqs < 0 || p->num_tokens < 0 || p->block_size <= 0 || p->num_kv_heads > 65535 || !(p->scale > 0.0f)) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens == 0 || p->num_seqs == 0) return PAGODA_OK;
  const pagoda_status status = launch_sm90(*p, stream);
  return status == PAGODA_UNSUPPORTED ? launch_sm80(*p, stream) : status;
}
