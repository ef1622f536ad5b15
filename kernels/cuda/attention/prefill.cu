// pagoda_attention_prefill: checks, dispatch and the instantiation table of prefill.cuh.
#include "prefill.cuh"

namespace pagoda {
namespace {

struct Entry {
  int head_dim;
  void (*kernel)(const pagoda_attention_params);
  int smem_bytes;
};

template <int kHeadDim> constexpr Entry entry() { return {kHeadDim, attention_prefill_kernel<kHeadDim>, sizeof(PrefillSmem<kHeadDim>)}; }

// The head sizes of the families, and two small ones for tests.
const Entry kEntries[] = {entry<16>(), entry<32>(), entry<64>(), entry<80>(), entry<96>(), entry<128>(), entry<256>()};

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_attention_prefill(const pagoda_attention_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->qkv || !p->kv || !p->cu_seqlens_q || !p->context_lens || !p->block_tables) return PAGODA_INVALID_ARGUMENT;
  if (p->num_heads <= 0 || p->num_kv_heads <= 0 || p->num_heads % p->num_kv_heads != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_seqs < 0 || p->num_tokens < 0 || p->block_size <= 0 || p->num_kv_heads > 65535) return PAGODA_INVALID_ARGUMENT;
  if (p->num_tokens == 0 || p->num_seqs == 0) return PAGODA_OK;
  // At most: every sequence has one tile that is not full. The surplus leaves at once.
  const int64_t packed_rows = static_cast<int64_t>(p->num_tokens) * (p->num_heads / p->num_kv_heads);
  const unsigned max_tiles = static_cast<unsigned>(packed_rows / kBlockM + p->num_seqs);
  for (const Entry &e : kEntries) {
    if (e.head_dim != p->head_dim) continue;
    const cudaError_t error = cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, e.smem_bytes);
    if (error != cudaSuccess) return to_status(error);
    e.kernel<<<dim3(max_tiles, p->num_kv_heads), kPrefillWarps * kWarpSize, e.smem_bytes, stream>>>(*p);
    return launch_status();
  }
  return PAGODA_UNSUPPORTED;
}
