// Warpgroup products of sm_90a with the first operand in registers, one instruction a function:
//   d[64 x 8 q] = a[64 x 16] * b[8 q x 16]^T (+ d), bf16, f32 sums.
// a is the fragment of mma.m16n8k16 of each warp; b lies in shared memory as wgmma.cuh's swizzled_rows describe it. They run while their
// warpgroup does other work: see wgmma_async.cuh for fences and waits.
#pragma once
#include <stdint.h>

namespace pagoda::ptx {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define PAGODA_SUMS(q) "+f"(d[q][0]), "+f"(d[q][1]), "+f"(d[q][2]), "+f"(d[q][3])
#define PAGODA_OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd)

template <bool kAdd> __device__ __forceinline__ void multiply_fragment_rows(float (&d)[1][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}"
               : PAGODA_SUMS(0)
               : PAGODA_OPERANDS);
}

template <bool kAdd> __device__ __forceinline__ void multiply_fragment_rows(float (&d)[2][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7}, "
               "{%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}"
               : PAGODA_SUMS(0), PAGODA_SUMS(1)
               : PAGODA_OPERANDS);
}

template <bool kAdd> __device__ __forceinline__ void multiply_fragment_rows(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
               "{%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3)
               : PAGODA_OPERANDS);
}

template <bool kAdd> __device__ __forceinline__ void multiply_fragment_rows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3),
                 PAGODA_SUMS(4), PAGODA_SUMS(5), PAGODA_SUMS(6), PAGODA_SUMS(7)
               : PAGODA_OPERANDS);
}

template <bool kAdd> __device__ __forceinline__ void multiply_fragment_rows(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
               " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
               " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
               " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
               : PAGODA_SUMS(0), PAGODA_SUMS(1), PAGODA_SUMS(2), PAGODA_SUMS(3),
                 PAGODA_SUMS(4), PAGODA_SUMS(5), PAGODA_SUMS(6), PAGODA_SUMS(7),
                 PAGODA_SUMS(8), PAGODA_SUMS(9), PAGODA_SUMS(10), PAGODA_SUMS(11),
                 PAGODA_SUMS(12), PAGODA_SUMS(13), PAGODA_SUMS(14), PAGODA_SUMS(15)
               : PAGODA_OPERANDS);
}

#undef PAGODA_OPERANDS
#undef PAGODA_SUMS

#endif

} // namespace pagoda::ptx
