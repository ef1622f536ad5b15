// pagoda_attention_decode: checks, dispatch and the instantiation table of decode.cuh.
#include "decode.cuh"

namespace pagoda {
namespace {

struct Entry {
  int head_dim;
  void (*kernel)(const pagoda_attention_params);
  int smem_bytes;
};

template <int kHeadDim> constexpr Entry entry() { return {kHeadDim, attention_decode_kernel<kHeadDim>, sizeof(DecodeSmem<kHeadDim>)}; }

// The head sizes of the families, and two small ones for tests.
const Entry kEntries[] = {entry<16>(), entry<32>(), entry<64>(), entry<80>(), entry<96>(), entry<128>(), entry<256>()};

} // namespace
} // namespace pagoda

extern "C" pagoda_status pagoda_attention_decode(const pagoda_attention_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->qkv || !p->kv || !p->cu_seqlens_q || !p->context_lens || !p->block_tables) return PAGODA_INVALID_ARGUMENT;
  if (p->num_heads <= 0 || p->num_kv_heads <= 0 || p->num_heads % p->num_kv_heads != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_seqs < 0 || p->num_seqs > 65535 || p->block_size <= 0 || p->split_len <= 0 || p->split_len % 64 != 0) return PAGODA_INVALID_ARGUMENT;
  if (p->num_splits <= 0 || (p->num_splits > 1 && (!p->partials || !p->counters))) return PAGODA_INVALID_ARGUMENT;
  if (p->num_seqs == 0) return PAGODA_OK;
  const int chunks = (p->num_heads / p->num_kv_heads + kDecodeHeads - 1) / kDecodeHeads;
  for (const Entry &e : kEntries) {
    if (e.head_dim != p->head_dim) continue;
    const cudaError_t error = cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, e.smem_bytes);
    if (error != cudaSuccess) return to_status(error);
    e.kernel<<<dim3(p->num_splits, p->num_kv_heads * chunks, p->num_seqs), kDecodeWarps * kWarpSize, e.smem_bytes, stream>>>(*p);
    return launch_status();
  }
  return PAGODA_UNSUPPORTED;
}
