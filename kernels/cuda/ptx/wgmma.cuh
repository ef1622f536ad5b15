// Warpgroup products of sm_90a, one instruction a function: d[64 x 8 q] += a[64 x 16] * b[8 q x 16]^T, bf16 in shared memory, f32 sums.
// Warp v of the group holds rows 16 v .. 16 v + 15 of d, as fragments of mma.m16n8k16, one for every 8 columns.
#pragma once
#include <stdint.h>

namespace pagoda::ptx {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Describes rows of 128 bytes in the swizzle of a tensor copy; groups of 8 rows follow each other. 16 bf16 further along a row is + 2.
__device__ __forceinline__ uint64_t swizzled_rows(uint32_t smem) {
  constexpr uint64_t kGroupBytes = 1024, kSwizzle128 = 1;
  return (smem & 0x3ffff) >> 4 | 1ull << 16 | kGroupBytes >> 4 << 32 | kSwizzle128 << 62;
}

// Keeps the compiler from moving what it does with the sums across this point.
template <int kTiles> __device__ __forceinline__ void pin_sums(float (&d)[kTiles][4]) {
#pragma unroll
  for (int q = 0; q < kTiles; ++q) asm volatile("" : "+f"(d[q][0]), "+f"(d[q][1]), "+f"(d[q][2]), "+f"(d[q][3])::"memory");
}

// Before the first product of a batch: the sums in registers are final.
template <int kTiles> __device__ __forceinline__ void begin_products(float (&d)[kTiles][4]) {
  pin_sums(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Returns when all products of the warpgroup are done.
template <int kTiles> __device__ __forceinline__ void finish_products(float (&d)[kTiles][4]) {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  pin_sums(d);
}

__device__ __forceinline__ void multiply_group(float (&d)[1][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3}, "
               "%4, %5, 1, 1, 1, 0, 0;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3])
               : "l"(a), "l"(b));
}

__device__ __forceinline__ void multiply_group(float (&d)[2][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7}, "
               "%8, %9, 1, 1, 1, 0, 0;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3])
               : "l"(a), "l"(b));
}

__device__ __forceinline__ void multiply_group(float (&d)[4][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
               "%16, %17, 1, 1, 1, 0, 0;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3])
               : "l"(a), "l"(b));
}

__device__ __forceinline__ void multiply_group(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "%32, %33, 1, 1, 1, 0, 0;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
                 "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
                 "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
               : "l"(a), "l"(b));
}

#endif

} // namespace pagoda::ptx
