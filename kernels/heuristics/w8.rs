//! Which kernel makes a product with weights of 8 bits. Numbers: H200 (132 SMs), 2026-11-30, chained launches over rotated weights.

use super::products::{ProductShape, WidePlan};
use super::skinny::{GpuClass, MAX_SKINNY_TOKENS, MAX_STAGES, SkinnyKernel, SkinnyPlan, SumOrder, TILE_ROWS, skinny_split_k, wave_slots};

/// Bytes of shared memory that the rings of a multiprocessor may take.
const SMEM_BYTES: usize = 225 * 1024;
const CTAS_PER_SM: usize = 2;

/// How a product is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum W8Plan {
    /// By launches of the skinny kernel over at most 64 tokens each: activations are bf16.
    Skinny,
    /// By the kernel for many tokens: activations become e4m3.
    Wide(WidePlan),
}

/// Whether weights of 8 bits stay so on such a GPU: its kernels are built on wgmma.
pub fn has_w8_kernels(gpu: GpuClass) -> bool {
    gpu.compute_capability == (9, 0)
}

/// The kernel for a product. `wide` says that one for many tokens exists for this matrix. Where a token's sums must not depend on its batch,
/// its activations must not either: they are never rounded to e4m3 there.
pub fn w8_plan(shape: &ProductShape, wide: bool, gpu: GpuClass, order: SumOrder) -> W8Plan {
    if shape.num_tokens <= MAX_SKINNY_TOKENS || !wide || !shape.whole || order == SumOrder::BatchInvariant {
        return W8Plan::Skinny;
    }
    W8Plan::Wide(wide_tiles(shape.num_tokens, if shape.gated { shape.n / 2 } else { shape.n }, shape.gated, gpu.num_sms))
}

/// Launch of the skinny kernel for at most 64 tokens of a matrix `[n, k]`. The order of additions is that of n and k alone.
pub fn skinny_w8_plan(num_tokens: usize, n: usize, k: usize, num_sms: u32) -> SkinnyPlan {
    let tokens = num_tokens.next_power_of_two().max(8);
    let num_boxes = if tokens <= 16 { 2 } else { 1 };
    // 128 bytes a row of codes, 256 a token.
    let stage_bytes = num_boxes * (TILE_ROWS * 128 + tokens * 256);
    let sums_bytes = tokens * (TILE_ROWS + 4) * 4;
    let num_stages = ((SMEM_BYTES / CTAS_PER_SM - 1024 - sums_bytes) / stage_bytes).clamp(2, MAX_STAGES);
    let narrow = |v: usize| u32::try_from(v).expect("small");
    SkinnyPlan {
        kernel: SkinnyKernel::Sm90,
        block_n: narrow(TILE_ROWS),
        split_k: narrow(skinny_split_k(n, k, num_sms as usize)),
        num_stages: narrow(num_stages),
        max_ctas: num_sms * narrow(CTAS_PER_SM),
    }
}

/// Tiles of 128 x 256 take 1.75 times as long as those of 128 x 128, and are half as many: whichever needs less time in whole waves
/// (3584 x 3584 with 512 tokens: 25.5 against 16.1 us; 37888 x 3584 with 8192: 1742 against 2071).
fn wide_tiles(num_tokens: usize, out_cols: usize, gated: bool, num_sms: u32) -> WidePlan {
    let cluster = if num_tokens > 128 { 2 } else { 1 };
    let slots = (num_sms as usize / cluster).max(1);
    let waves = |block_cols: usize| {
        let tile_cols = if gated { block_cols / 2 } else { block_cols };
        wave_slots(num_tokens.div_ceil(128 * cluster) * out_cols.div_ceil(tile_cols), slots) / slots
    };
    let block_cols = if 4 * waves(128) <= 7 * waves(256) { 128 } else { 256 };
    WidePlan { block_rows: 128, block_cols, cluster: cluster as u32, num_ranges: 1, raster: 8, max_ctas: num_sms / 2 * 2 }
}

/// The same where scales of blocks need room for a second set of sums.
pub fn wide_block_tiles(plan: WidePlan) -> WidePlan {
    WidePlan { block_cols: 128, ..plan }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: GpuClass = GpuClass { num_sms: 132, compute_capability: (9, 0) };

    #[test]
    fn many_tokens_are_quantised_unless_a_token_must_not_depend_on_them() {
        let shape = |num_tokens| ProductShape { num_tokens, n: 4608, k: 3584, gated: false, whole: true, library: false };
        let is_wide = |shape: &ProductShape, wide, order| matches!(w8_plan(shape, wide, H200, order), W8Plan::Wide(_));
        for (num_tokens, wide, order, expected) in [
            (64, true, SumOrder::Fastest, false),
            (65, true, SumOrder::Fastest, true),
            (65, false, SumOrder::Fastest, false),
            (8192, true, SumOrder::BatchInvariant, false),
        ] {
            assert_eq!(is_wide(&shape(num_tokens), wide, order), expected, "{num_tokens} {wide} {order:?}");
        }
        assert!(!is_wide(&ProductShape { whole: false, ..shape(65) }, true, SumOrder::Fastest));
    }

    #[test]
    fn tiles_fill_waves() {
        for (num_tokens, out_cols, gated, expected) in [
            (512, 4608, false, 256),
            (512, 3584, false, 128),
            (512, 18944, true, 256),
            (2048, 4608, false, 128),
            (2048, 3584, false, 256),
            (128, 18944, true, 128),
        ] {
            let plan = wide_tiles(num_tokens, out_cols, gated, 132);
            assert_eq!(plan.block_cols, expected, "{num_tokens} x {out_cols} gated {gated}");
            assert_eq!(plan.cluster, if num_tokens > 128 { 2 } else { 1 });
        }
    }

    #[test]
    fn skinny_plans_sum_alike_for_any_number_of_tokens() {
        for (n, k) in [(1152, 896), (4608, 3584), (37888, 3584), (3584, 18944), (8, 16)] {
            let alone = skinny_w8_plan(1, n, k, 132);
            for num_tokens in 1..=64 {
                let among = skinny_w8_plan(num_tokens, n, k, 132);
                assert_eq!(among.split_k, alone.split_k, "{num_tokens} x {n} x {k}");
                assert!(
                    (2..=8).contains(&among.num_stages) && among.split_k as usize <= k.div_ceil(128),
                    "{num_tokens} x {n} x {k}: {among:?}"
                );
            }
        }
    }
}
