// Warpgroup products of sm_90a over codes of 8 bits, one instruction a function. See wgmma.cuh for fragments and descriptors.
#pragma once
#include "wgmma.cuh"

namespace pagoda::ptx {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define PAGODA_SUMS(q) "+f"(d[q][0]), "+f"(d[q][1]), "+f"(d[q][2]), "+f"(d[q][3])

// d[64 x 8 q] += a[64 x 32] * b[8 q x 32]^T, e4m3 in shared memory. 32 bytes further along a row is + 2.
__device__ __forceinline__ void multiply_e4m3(float (&d)[16][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
               " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
               " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "%64, %65, 1, 1, 1;"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3),
                 PAGODA_SUMS(4), PAGODA_SUMS(5), PAGODA_SUMS(6), PAGODA_SUMS(7),
                 PAGODA_SUMS(8), PAGODA_SUMS(9), PAGODA_SUMS(10), PAGODA_SUMS(11),
                 PAGODA_SUMS(12), PAGODA_SUMS(13), PAGODA_SUMS(14), PAGODA_SUMS(15)
               : "l"(a), "l"(b));
}

__device__ __forceinline__ void multiply_e4m3(float (&d)[32][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
               " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
               " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
               " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
               " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
               " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
               " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
               "%128, %129, 1, 1, 1;"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3),
                 PAGODA_SUMS(4), PAGODA_SUMS(5), PAGODA_SUMS(6), PAGODA_SUMS(7),
                 PAGODA_SUMS(8), PAGODA_SUMS(9), PAGODA_SUMS(10), PAGODA_SUMS(11),
                 PAGODA_SUMS(12), PAGODA_SUMS(13), PAGODA_SUMS(14), PAGODA_SUMS(15),
                 PAGODA_SUMS(16), PAGODA_SUMS(17), PAGODA_SUMS(18), PAGODA_SUMS(19),
                 PAGODA_SUMS(20), PAGODA_SUMS(21), PAGODA_SUMS(22), PAGODA_SUMS(23),
                 PAGODA_SUMS(24), PAGODA_SUMS(25), PAGODA_SUMS(26), PAGODA_SUMS(27),
                 PAGODA_SUMS(28), PAGODA_SUMS(29), PAGODA_SUMS(30), PAGODA_SUMS(31)
               : "l"(a), "l"(b));
}

// d[64 x 8 q] += a[64 x 16] * b[8 q x 16]^T, bf16: a in registers as the fragment of mma.m16n8k16 of each warp, b in shared memory.
__device__ __forceinline__ void multiply_registers(float (&d)[1][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
               : PAGODA_SUMS(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void multiply_registers(float (&d)[2][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7}, "
               "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
               : PAGODA_SUMS(0), PAGODA_SUMS(1)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void multiply_registers(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
               "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void multiply_registers(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3),
                 PAGODA_SUMS(4), PAGODA_SUMS(5), PAGODA_SUMS(6), PAGODA_SUMS(7)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void multiply_registers(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
               " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
               " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3),
                 PAGODA_SUMS(4), PAGODA_SUMS(5), PAGODA_SUMS(6), PAGODA_SUMS(7),
                 PAGODA_SUMS(8), PAGODA_SUMS(9), PAGODA_SUMS(10), PAGODA_SUMS(11),
                 PAGODA_SUMS(12), PAGODA_SUMS(13), PAGODA_SUMS(14), PAGODA_SUMS(15)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef PAGODA_SUMS

#endif

} // namespace pagoda::ptx
