// pagoda_grouped_gemm: checks and launch of grouped.cuh.
#include "grouped.cuh"

extern "C" pagoda_status pagoda_grouped_gemm(const pagoda_grouped_gemm_params *p, pagoda_stream stream) {
  using namespace pagoda;
  if (!p || !p->out || !p->x || !p->w || p->num_rows < 0 || p->num_groups <= 0 || p->n <= 0 || p->k <= 0) return PAGODA_INVALID_ARGUMENT;
  if (p->ld_out < p->n || (p->row_map && p->row_div <= 0) || (!p->offsets && p->num_groups != 1)) return PAGODA_INVALID_ARGUMENT;
  if (p->out_dtype != PAGODA_F32 && p->out_dtype != PAGODA_BF16) return PAGODA_UNSUPPORTED;
  if (p->k % 8 != 0) return PAGODA_UNSUPPORTED;
  if (p->num_rows == 0) return PAGODA_OK;
  // At most: every group, but no more than there are rows, has one tile that is not full. The surplus leaves at once.
  const int64_t max_tiles = p->num_rows / kTileRows + (p->num_rows < p->num_groups ? p->num_rows : p->num_groups);
  if (max_tiles > 65535) return PAGODA_UNSUPPORTED;
  const unsigned col_tiles = static_cast<unsigned>((p->n + kTileCols - 1) / kTileCols);
  grouped_gemm_kernel<<<dim3(col_tiles, static_cast<unsigned>(max_tiles)), kGemmThreads, 0, stream>>>(*p);
  return launch_status();
}
