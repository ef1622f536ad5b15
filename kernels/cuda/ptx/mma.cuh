// Tensor core instructions of sm_80 and later, one a function.
#pragma once
#include <stdint.h>

namespace pagoda::ptx {

// d[16x8] += a[16x16] * b[16x8], bf16 operands, f32 sums. Lane (g = lane / 4, t = lane % 4) holds
//   a: rows {g, g+8} x columns {2t, 2t+1, 2t+8, 2t+9} in the order (g, lo) (g+8, lo) (g, hi) (g+8, hi)
//   b: rows {2t, 2t+1}, {2t+8, 2t+9} of column g;   d: rows {g, g+8} x columns {2t, 2t+1}
__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem)
               : "memory");
}

// Two of them, addressed by lanes 0 to 15.
__device__ __forceinline__ void load_matrix_x2(uint32_t (&r)[2], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(smem) : "memory");
}

__device__ __forceinline__ void load_matrix_x2_trans(uint32_t (&r)[2], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(smem) : "memory");
}

// Four, each matrix transposed.
__device__ __forceinline__ void load_matrix_x4_trans(uint32_t (&r)[4], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem)
               : "memory");
}

#if __CUDA_ARCH__ >= 900
// Stores four 8x8 matrices held as mma_bf16's d is, packed; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void store_matrix_x4(uint32_t smem, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}
#endif

// Compute capability 12.x, compiled for 120a or 120f.
#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ / 100 == 12
#define PAGODA_HAS_MMA_FP4 1
// d[16x8] += a[16x64] * b[64x8], e2m1 with an e4m3 scale for 16 columns, f32 sums. Lane (g, t) holds eight neighbours in a register:
//   a: rows {g, g+8} x columns 8t.. in 0 and 1, columns 32+8t.. in 2 and 3;   b: rows 8t.., 32+8t.. of column g;   d: as above
//   a_scales: a byte for 16 columns, of row g where t = 0, of row g+8 where t = 1;   b_scales: of column g where t = 0
__device__ __forceinline__ void mma_fp4(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, uint32_t a_scales, uint32_t b_scales) {
  asm volatile("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, 0}, {%11}, {0, 0};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(a_scales), "r"(b_scales));
}
#endif

// Transposes an 8x8 matrix of 16-bit elements across the warp.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

} // namespace pagoda::ptx
