// Shared memory of the sm_90a prefill kernel, and positions in its rings. See prefill_sm90.cuh.
#pragma once
#include "../ptx/tensor_copy.cuh"
#include "prefill_items.cuh"

namespace pagoda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kItemSlots = 4;

// Position in a ring.
template <int kSlots> struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  // By at most kSlots.
  __device__ __forceinline__ void advance(int by = 1) {
    slot += by;
    if (slot >= kSlots) slot -= kSlots, parity ^= 1;
  }
};

// Addresses in shared memory.
template <typename Tile> struct PrefillShared {
  uint32_t q, ring;
  uint32_t staging;               // codes, with a cache of them
  uint32_t full, empty;           // barriers, one a slot
  uint32_t item_full, item_empty; // barriers, one an item
  PrefillItem *items;
  __device__ __forceinline__ uint32_t slot(int i) const { return ring + i * Tile::kSlotBytes; }
  __device__ __forceinline__ uint32_t full_barrier(int i) const { return full + 8 * i; }
  __device__ __forceinline__ uint32_t empty_barrier(int i) const { return empty + 8 * i; }

  // Waits for an item. Whoever reads it calls `release` when done.
  __device__ __forceinline__ const PrefillItem &item(Ring<kItemSlots> at) const {
    ptx::wait_barrier(item_full + 8 * at.slot, at.parity);
    return items[at.slot];
  }
  __device__ __forceinline__ void release(Ring<kItemSlots> at) const { ptx::arrive(item_empty + 8 * at.slot); }
};

#endif

} // namespace pagoda
