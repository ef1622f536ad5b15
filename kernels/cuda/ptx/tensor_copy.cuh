// What sm_90 and later add around copies: barriers that count bytes, tensor copies, clusters.
// One instruction a function, nothing below sm_90.
#pragma once
#include "barrier.cuh"
#include "dependent_launch.cuh"
#include "memory.cuh"
#include <cuda.h>
#include <stdint.h>

namespace pagoda::ptx {

#if __CUDA_ARCH__ >= 900

// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier of another CTA of the cluster; the address is from address_in_rank.
__device__ __forceinline__ void arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t smem, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(smem), "f"(v) : "memory"); }

// Policy of copies of what is read once: leaves L2 first.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Policy of copies of what many CTAs read: leaves L2 last.
__device__ __forceinline__ uint64_t evict_last_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Policy of copies of what is read again by some.
__device__ __forceinline__ uint64_t normal_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// `bytes` bytes, a multiple of 16, between addresses that are.
__device__ __forceinline__ void copy_bytes(uint32_t smem, const void *gmem, uint32_t bytes, uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(smem), "l"(gmem), "r"(bytes),
               "r"(barrier), "l"(policy)
               : "memory");
}

// One box of a matrix: columns from `col`, rows from `row`; what lies outside the matrix arrives as zeros, and counts as bytes.
__device__ __forceinline__ void copy_box(uint32_t smem, const CUtensorMap *map, int32_t col, int32_t row, uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem),
               "l"(map), "r"(col), "r"(row), "r"(barrier), "l"(policy)
               : "memory");
}

// The same box to the same place in every CTA of the cluster named by `ranks`, one bit each, counted by the barrier of each.
__device__ __forceinline__ void copy_box_to(uint32_t smem, const CUtensorMap *map, int32_t col, int32_t row, uint32_t barrier, uint16_t ranks, uint64_t policy) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(smem),
               "l"(map), "r"(col), "r"(row), "r"(barrier), "h"(ranks), "l"(policy)
               : "memory");
}

// One box of a stack of matrices mapped by encode_row_groups. A `matrix` outside the stack arrives as zeros.
__device__ __forceinline__ void copy_row_groups(uint32_t smem, const CUtensorMap *map, int32_t first_group, int32_t matrix, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %2, %2, %3, %4}], [%5];" ::"r"(smem),
               "l"(map), "r"(0), "r"(first_group), "r"(matrix), "r"(barrier)
               : "memory");
}

// What this thread wrote to shared memory can be read by copies and warpgroup products, after a barrier.
__device__ __forceinline__ void fence_shared_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// One box of a tensor of four dimensions whose first has 64 elements: everything from `row` of the second on.
__device__ __forceinline__ void copy_box_4d(uint32_t smem, const CUtensorMap *map, int32_t row, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %2, %2}], [%4];" ::"r"(smem), "l"(map),
               "r"(0), "r"(row), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Counts this warp in a barrier that others wait at.
__device__ __forceinline__ void arrive_threads(uint32_t id, uint32_t num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// A barrier of all threads of the cluster; what was written to shared memory before it can be read by the others after it.
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Address of the same variable in the CTA of this rank in the cluster.
__device__ __forceinline__ uint32_t address_in_rank(uint32_t smem, uint32_t rank) {
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(smem), "r"(rank));
  return r;
}

__device__ __forceinline__ float load_cluster_f32(uint32_t address) {
  float v;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ float4 load_cluster_16b(uint32_t address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
  return v;
}

#endif

} // namespace pagoda::ptx
