// Global and shared memory, one instruction a function. Not `.nc`: the callers' outputs may alias their inputs.
#pragma once
#include <stdint.h>

namespace pagoda::ptx {

// As instructions on shared memory take it.
__device__ __forceinline__ uint32_t smem_address(const void *smem) { return static_cast<uint32_t>(__cvta_generic_to_shared(smem)); }

// From L2: what an earlier kernel left of it in L1 may be stale (common/launch.cuh).
__device__ __forceinline__ uint4 load_16b(const void *gmem) {
  uint4 r;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(gmem) : "memory");
  return r;
}

__device__ __forceinline__ uint2 load_8b(const void *gmem) {
  uint2 r;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(gmem) : "memory");
  return r;
}

__device__ __forceinline__ uint32_t load_4b(const void *gmem) {
  uint32_t r;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(r) : "l"(gmem) : "memory");
  return r;
}

__device__ __forceinline__ uint16_t load_2b(const void *gmem) {
  uint16_t r;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(r) : "l"(gmem) : "memory");
  return r;
}

__device__ __forceinline__ void store_16b(void *gmem, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(gmem), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// What this thread knows of was written before the addition, and what it reads afterwards was written before the additions that it saw.
__device__ __forceinline__ int32_t add_in_order(int32_t *gmem, int32_t v) {
  int32_t r;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(r) : "l"(gmem), "r"(v) : "memory");
  return r;
}

// The lane of this thread, which the compiler keeps instead of reading it again in a loop.
__device__ __forceinline__ int lane_id() {
  int r;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(r));
  return r;
}

// A constant that the compiler takes for a variable.
__device__ __forceinline__ uint32_t in_register(uint32_t v) {
  uint32_t r;
  asm volatile("mov.b32 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

// a & b | c in one instruction, where at most one of them is a constant.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// Leaves `r` alone where not `wanted`.
__device__ __forceinline__ void load_shared_16b_if(uint4 &r, uint32_t smem, bool wanted) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.b32 p, %5, 0;\n"
               "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               "}"
               : "+r"(r.x), "+r"(r.y), "+r"(r.z), "+r"(r.w)
               : "r"(smem), "r"(static_cast<int>(wanted))
               : "memory");
}

__device__ __forceinline__ uint4 load_shared_16b(uint32_t smem) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(smem) : "memory");
  return r;
}

__device__ __forceinline__ uint2 load_shared_8b(uint32_t smem) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "r"(smem) : "memory");
  return r;
}

__device__ __forceinline__ uint32_t load_shared_4b(uint32_t smem) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(smem) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_4b(uint32_t smem, uint32_t v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(smem), "r"(v) : "memory"); }

__device__ __forceinline__ void store_shared_16b(uint32_t smem, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(smem), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

} // namespace pagoda::ptx
