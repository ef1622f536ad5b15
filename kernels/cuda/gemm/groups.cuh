// Rows in groups, as the kernels see them: which group a tile belongs to, found from the groups' offsets on the device, so that the host
// need not know their sizes.
//
//   units (tiles of rows):  | g0 u0 | g0 u1 | g1 u0 | g3 u0 | ...      group g has ceil(rows / unit_rows) of them; begin[g] is its first
//
// A unit times the tiles of columns are the tiles of a product; those of one group follow each other.
#pragma once
#include "../common/reduce.cuh"
#include <stdint.h>

namespace pagoda {

constexpr int kMaxGroups = 512;

struct GroupUnits {
  uint16_t begin[kMaxGroups + 1];
};

// One warp: counts the units of every group. A barrier of the CTA must follow.
__device__ __forceinline__ void count_units(GroupUnits &units, const int32_t *offsets, int num_groups, int unit_rows, int lane) {
  int total = 0;
#pragma unroll 4
  for (int first = 0; first < num_groups; first += kWarpSize) {
    const int group = first + lane;
    const int rows = group < num_groups ? __ldcg(offsets + group + 1) - __ldcg(offsets + group) : 0;
    const int count = (rows + unit_rows - 1) / unit_rows;
    int sum = count; // of this and the lanes below
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += below;
    }
    if (group < num_groups) units.begin[group] = static_cast<uint16_t>(total + sum - count);
    total += __shfl_sync(0xffffffffu, sum, kWarpSize - 1);
  }
  if (lane == 0) units.begin[num_groups] = static_cast<uint16_t>(total);
}

// The group that this unit belongs to; the unit exists.
__device__ __forceinline__ int group_of_unit(const GroupUnits &units, int num_groups, int unit) {
  int low = 0, high = num_groups; // begin[low] <= unit < begin[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (units.begin[middle] <= unit) low = middle;
    else high = middle;
  }
  return low;
}

} // namespace pagoda
