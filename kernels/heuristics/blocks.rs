//! When a product reads GGUF's blocks as they are, and how (cuda/gemm/blocks.cuh). Numbers: H200 (132 SMs), `pagoda bench kernels`.

use super::skinny::{SkinnyKernel, SkinnyPlan, SkinnyShape, SumOrder};

/// Tokens up to which reading the blocks takes less than making the weights dense and reading them again; those of one pass over the blocks
/// (the largest `kTiles` of 8 in cuda/gemm/blocks.cu).
pub const MAX_BLOCK_TOKENS: usize = 32;
/// Tokens up to which it takes less than reading a copy in bf16 (the four products of a 7B layer in Q4_K: 91 against 120 us at 8, 133 at 16).
pub const MAX_BLOCK_TOKENS_BESIDE_COPY: usize = 8;

const TILE_ROWS: usize = 16;
const STEP_COLS: usize = 128;
const WARPS: u32 = 8;
const CTAS_PER_SM: u32 = 2;
/// Bytes of x in shared memory at once (`kXBytes`).
const X_BYTES: usize = 64 << 10;
/// Most warps of a tile where x is read again for every group of tiles: with fewer of them a group has more rows.
const MAX_SPLIT_OF_LONG_X: u32 = 2;

/// The launch of a product with blocks. Most warps a tile, or fewer where the busiest multiprocessor has less to do then and all have two CTAs.
pub fn blocks_plan(shape: SkinnyShape, num_sms: u32, order: SumOrder) -> SkinnyPlan {
    let (tiles, steps) = (shape.n.div_ceil(TILE_ROWS), shape.k.div_ceil(STEP_COLS));
    let groups = |split: u32| tiles.div_ceil((WARPS / split) as usize);
    let cost = |split: u32| groups(split).div_ceil(num_sms as usize) * steps.div_ceil(split as usize);
    let holds_x = shape.num_tokens * steps * STEP_COLS * 2 <= X_BYTES;
    let reads_x_again = !holds_x && order == SumOrder::Fastest;
    let at_once = CTAS_PER_SM * num_sms;
    let mut split_k = WARPS;
    for split in [4, 2, 1] {
        let pays = if reads_x_again { split_k > MAX_SPLIT_OF_LONG_X || cost(split) <= cost(split_k) } else { cost(split) < cost(split_k) };
        if pays && groups(split) >= at_once as usize {
            split_k = split;
        }
    }
    SkinnyPlan { kernel: SkinnyKernel::Gemv, block_n: 2, split_k, num_stages: 1, max_ctas: at_once }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_warps_share_a_tile_as_keeps_all_multiprocessors_busy() {
        let split = |num_tokens, n, k, order| blocks_plan(SkinnyShape { num_tokens, n, k }, 132, order).split_k;
        for (n, k, few, many) in
            [(4608, 3584, 8, 8), (3584, 3584, 8, 8), (37888, 3584, 4, 2), (3584, 18944, 8, 8), (152_064, 3584, 4, 1), (16, 32, 8, 8)]
        {
            assert_eq!(split(1, n, k, SumOrder::Fastest), few, "{n} x {k}");
            assert_eq!(split(32, n, k, SumOrder::Fastest), many, "{n} x {k}");
            for num_tokens in 1..=MAX_BLOCK_TOKENS {
                assert_eq!(split(num_tokens, n, k, SumOrder::BatchInvariant), few, "{num_tokens} x {n} x {k}");
            }
        }
    }
}
