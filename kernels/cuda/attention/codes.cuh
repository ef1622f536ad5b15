// Keys and values as e4m3 codes in fragment order, four at a time: to bf16 exactly, and from bf16 divided by a scale.
#pragma once
#include "../gemm/codes_w8.cuh"

namespace pagoda {

__device__ __forceinline__ CodePairs decode_e4m3(uint32_t codes) { return decode_codes<PAGODA_W8_E4M3>(codes); }

// Of two pairs of bf16: dims {2t, 2t + 1} and {2t + 8, 2t + 9} of 16.
__device__ __forceinline__ uint32_t encode_e4m3(uint32_t low, uint32_t high, float scale) {
  return e4m3_pair(low_f32(low) / scale, low_f32(high) / scale) | e4m3_pair(high_f32(low) / scale, high_f32(high) / scale) << 16;
}

} // namespace pagoda
