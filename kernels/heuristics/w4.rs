//! How a product of few tokens with 4-bit weights is launched (cuda/gemm/w4.cu). Numbers: H200 (132 SMs), a chain of launches with early starts.

use super::skinny::{GpuClass, SumOrder};

/// Shape of a product with 4-bit weights: `num_tokens` rows of x by the `n` rows of w, `k` long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct W4Shape {
    /// Rows of x and of the output.
    pub num_tokens: usize,
    /// Rows of w.
    pub n: usize,
    /// Columns of x and w, a multiple of 64.
    pub k: usize,
    /// `W4Layout::tile_bytes`.
    pub tile_bytes: usize,
    /// `W4Matrix::fits_columns`.
    pub fits_columns: bool,
}

/// Which kernel of cuda/gemm/w4.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum W4Kernel {
    /// Any GPU (w4_sm80.cuh).
    Sm80,
    /// Very few tokens (w4_columns_sm90.cuh).
    Columns,
    /// Up to 64 tokens, compute capability 9.0 (w4_rows_sm90.cuh).
    Rows,
}

/// Launch of one product. The order of additions of a row depends on `kernel`, `split_k` and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct W4Plan {
    /// Which kernel.
    pub kernel: W4Kernel,
    /// CTAs of a cluster of Rows, or slabs of Columns, which share the columns.
    pub split_k: usize,
    /// Copies under way in a warp of Rows.
    pub num_stages: usize,
    /// Warps of a CTA.
    pub num_warps: usize,
    /// CTAs that share the work.
    pub max_ctas: usize,
}

/// Most tokens of a product with 4-bit weights.
pub const MAX_W4_TOKENS: usize = 64;
const TILE_ROWS: usize = 16;
const TILE_COLS: usize = 64;
/// Copies under way in a warp of Rows: with more, next to nothing changes, and the kernel after it has less room to start early.
const NUM_STAGES: usize = 2;
/// Most tokens of Columns (one tile of mma.m16n8k16).
const MAX_COLUMNS_TOKENS: usize = 8;
/// Warps of a CTA of Columns at most, and columns of tiles that one multiplies (`kW4ColumnsWarps`, `kW4WarpCols`).
const COLUMNS_WARPS: usize = 14;
const WARP_COLS: usize = 4;
const MAX_SPLIT: usize = 8;

impl W4Plan {
    /// Bytes of the sums that slabs of Columns exchange, of `n` rows of w.
    pub fn partials_bytes(&self, n: usize) -> usize {
        let exchanges = self.kernel == W4Kernel::Columns && self.split_k > 1;
        if exchanges { self.split_k * n.div_ceil(TILE_ROWS) * MAX_COLUMNS_TOKENS * TILE_ROWS * 4 } else { 0 }
    }

    /// Bytes of the counters of their CTAs.
    pub fn counters_bytes(&self) -> usize {
        if self.kernel == W4Kernel::Columns && self.split_k > 1 { self.max_ctas / self.split_k * 4 } else { 0 }
    }
}

/// How to launch a product with 4-bit weights; None for shapes it has no kernel for.
pub fn w4_plan(shape: W4Shape, gpu: GpuClass, order: SumOrder) -> Option<W4Plan> {
    let W4Shape { num_tokens, n, k, .. } = shape;
    if !(1..=MAX_W4_TOKENS).contains(&num_tokens) || n == 0 || k == 0 || !k.is_multiple_of(TILE_COLS) {
        return None;
    }
    let num_sms = gpu.num_sms as usize;
    if gpu.compute_capability != (9, 0) {
        return Some(W4Plan { kernel: W4Kernel::Sm80, split_k: 1, num_stages: NUM_STAGES, num_warps: 8, max_ctas: 2 * num_sms });
    }
    let columns = num_tokens <= MAX_COLUMNS_TOKENS && order == SumOrder::Fastest && shape.fits_columns;
    if let Some(plan) = columns.then(|| columns_plan(n, k, num_sms)).flatten() {
        return Some(plan);
    }
    let (num_warps, split_k) = rows_split(n, k, num_sms);
    Some(W4Plan { kernel: W4Kernel::Rows, split_k, num_stages: NUM_STAGES, num_warps, max_ctas: num_sms })
}

/// Two CTAs a multiprocessor: where a kernel of fewer follows one whose CTAs end at different times, some multiprocessors get two of its CTAs and
/// others none (a layer of Qwen2.5 7B with 132 CTAs for gate and up and 264 for the rest: 71 us against 48, one token). The split whose busiest CTA
/// has least; none where the columns of a row hold in one CTA. None: k is too long.
fn columns_plan(n: usize, k: usize, num_sms: usize) -> Option<W4Plan> {
    let (row_tiles, cols) = (n.div_ceil(TILE_ROWS), k / TILE_COLS);
    let holds = |split_k: &usize| cols.div_ceil(*split_k) <= COLUMNS_WARPS * WARP_COLS;
    let cost = |split_k: &usize| row_tiles.div_ceil(2 * num_sms / split_k) * cols.div_ceil(*split_k);
    let split_k = if holds(&1) { 1 } else { (2..=MAX_SPLIT).filter(holds).min_by_key(cost)? };
    let row_warps = cols.div_ceil(split_k).div_ceil(WARP_COLS);
    let groups = COLUMNS_WARPS / row_warps;
    Some(W4Plan { kernel: W4Kernel::Columns, split_k, num_stages: NUM_STAGES, num_warps: row_warps * groups, max_ctas: 2 * num_sms })
}

/// Clusters of so many CTAs that run at once where a CTA takes a multiprocessor, of 132: they do not cross the borders between groups of
/// multiprocessors (`cudaOccupancyMaxActiveClusters`).
const ACTIVE_CLUSTERS: [(usize, usize); 6] = [(1, 132), (2, 66), (3, 39), (4, 30), (6, 17), (8, 15)];

/// Warps of a CTA and CTAs of a cluster of Rows. A function of n and k alone: it fixes the order of additions.
fn rows_split(n: usize, k: usize, num_sms: usize) -> (usize, usize) {
    let (row_tiles, cols) = (n.div_ceil(TILE_ROWS), k / TILE_COLS);
    let mut best = (usize::MAX, (8, 1));
    for num_warps in [12, 8, 4] {
        for (split_k, active) in ACTIVE_CLUSTERS {
            let clusters = active * num_sms / 132;
            if split_k > cols || clusters == 0 {
                continue;
            }
            let rounds = row_tiles.div_ceil(num_warps).div_ceil(clusters);
            let cost = rounds
                * (cols.div_ceil(split_k) * (COLUMN_COST + num_warps * TILE_COST) + if split_k > 1 { EXCHANGE_COST } else { STORE_COST });
            if cost < best.0 {
                best = (cost, (num_warps, split_k));
            }
        }
    }
    best.1
}

/// What a column costs however few warps share it, what each tile of it adds, and what follows the last column of a block.
const COLUMN_COST: usize = 4;
const TILE_COST: usize = 1;
const EXCHANGE_COST: usize = 60;
const STORE_COST: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory of a CTA of compute capability 9.0, less what the driver and barriers take.
    const SMEM_BYTES: usize = 225 * 1024;
    /// Of the table of pairs (`kPairTableBytes` in cuda/gemm/w4_factors.cuh).
    const TABLE_BYTES: usize = 32 * 1024;
    /// Tiles of a copy of Rows.
    const COPY_TILES: usize = 4;
    const H100: GpuClass = GpuClass { num_sms: 132, compute_capability: (9, 0) };

    fn shape(num_tokens: usize, n: usize, k: usize) -> W4Shape {
        W4Shape { num_tokens, n, k, tile_bytes: 544, fits_columns: true }
    }

    #[test]
    fn the_order_of_additions_does_not_depend_on_the_tokens() {
        for (n, k) in [(1152, 896), (896, 4864), (4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (152_064, 3584), (16, 64)] {
            let plan = |num_tokens| w4_plan(shape(num_tokens, n, k), H100, SumOrder::BatchInvariant).expect("supported");
            for num_tokens in 1..=MAX_W4_TOKENS {
                assert_eq!(plan(num_tokens), plan(1), "{num_tokens} x {n} x {k}");
            }
            assert_eq!(plan(1).kernel, W4Kernel::Rows);
        }
    }

    /// Shared memory of a CTA of Rows (`w4_rows_smem_bytes`).
    fn rows_bytes(shape: W4Shape, plan: &W4Plan) -> usize {
        let tokens = shape.num_tokens.next_power_of_two().max(8);
        let ring = plan.num_warps * plan.num_stages * COPY_TILES * shape.tile_bytes;
        1024 + TABLE_BYTES + 4 * 2 * tokens * TILE_COLS * 2 + ring + tokens * (plan.num_warps * TILE_ROWS + 4) * 4
    }

    /// Shared memory of a CTA of Columns at most (`w4_columns_smem_bytes`).
    fn columns_bytes(shape: W4Shape, plan: &W4Plan) -> usize {
        TABLE_BYTES + plan.num_warps * (2 * WARP_COLS * shape.tile_bytes + 16 + 3 * 512) + plan.num_warps * 48
    }

    #[test]
    fn rings_fit_for_every_tile() {
        for tile_bytes in [544, 576, 640, 768] {
            for num_tokens in 1..=MAX_W4_TOKENS {
                for (n, k) in [(37888, 3584), (3584, 18944), (4096, 65536), (152_064, 8192)] {
                    let shape = W4Shape { num_tokens, n, k, tile_bytes, fits_columns: true };
                    let plan = w4_plan(shape, H100, SumOrder::Fastest).expect("supported");
                    let bytes = if plan.kernel == W4Kernel::Columns { columns_bytes(shape, &plan) } else { rows_bytes(shape, &plan) };
                    assert!(bytes <= SMEM_BYTES, "{shape:?}: {plan:?} takes {bytes}");
                }
            }
        }
    }

    #[test]
    fn plans_follow_gpu_shape_and_order() {
        let kernel = |num_tokens, k, capability, order| {
            let gpu = GpuClass { num_sms: 132, compute_capability: capability };
            w4_plan(shape(num_tokens, 4096, k), gpu, order).map(|plan| plan.kernel)
        };
        let (fastest, invariant) = (SumOrder::Fastest, SumOrder::BatchInvariant);
        let cases = [
            (1, 4096, (9, 0), fastest, Some(W4Kernel::Columns)),
            (1, 4096, (9, 0), invariant, Some(W4Kernel::Rows)),
            (5, 65536, (9, 0), fastest, Some(W4Kernel::Rows)),
            (8, 4096, (9, 0), fastest, Some(W4Kernel::Columns)),
            (16, 4096, (9, 0), fastest, Some(W4Kernel::Rows)),
            (64, 4096, (8, 0), fastest, Some(W4Kernel::Sm80)),
            (1, 4096, (10, 0), fastest, Some(W4Kernel::Sm80)),
            (65, 4096, (9, 0), fastest, None),
            (0, 4096, (9, 0), fastest, None),
            (1, 4000, (9, 0), fastest, None),
        ];
        for (num_tokens, k, capability, order, expected) in cases {
            assert_eq!(kernel(num_tokens, k, capability, order), expected, "{num_tokens} tokens, k {k}, {capability:?}, {order:?}");
        }
    }

    #[test]
    fn columns_are_dealt_evenly() {
        for (n, k, expected) in
            [(4608, 3584, (1, 14)), (37888, 3584, (1, 14)), (3584, 18944, (8, 10)), (1152, 896, (1, 12)), (16, 64, (1, 14))]
        {
            let plan = w4_plan(shape(8, n, k), H100, SumOrder::Fastest).expect("supported");
            assert_eq!((plan.split_k, plan.num_warps), expected, "{n} x {k}");
            let slabs = if expected.0 > 1 { expected.0 } else { 0 };
            assert_eq!(plan.partials_bytes(n), slabs * n.div_ceil(16) * 512, "{n} x {k}");
            assert_eq!(plan.counters_bytes(), if slabs > 0 { 33 * 4 } else { 0 }, "{n} x {k}");
        }
        let other = W4Shape { fits_columns: false, ..shape(1, 4608, 3584) };
        assert_eq!(w4_plan(other, H100, SumOrder::Fastest).map(|plan| plan.kernel), Some(W4Kernel::Rows));
    }

    #[test]
    fn the_splits_measured_fastest_are_chosen() {
        for (n, k, expected) in [(4608, 3584, (12, 4)), (3584, 3584, (8, 4)), (37888, 3584, (12, 2)), (3584, 18944, (8, 4))] {
            assert_eq!(rows_split(n, k, 132), expected, "{n} x {k}");
            for (num_tokens, order) in [(16, SumOrder::Fastest), (17, SumOrder::Fastest), (16, SumOrder::BatchInvariant)] {
                let plan = w4_plan(shape(num_tokens, n, k), H100, order).expect("supported");
                assert_eq!(
                    (plan.num_warps, plan.split_k, plan.max_ctas),
                    (expected.0, expected.1, 132),
                    "{num_tokens} x {n} x {k}, {order:?}"
                );
            }
        }
    }
}
