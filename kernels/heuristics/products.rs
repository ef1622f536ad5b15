//! Which kernel makes a product. Numbers: H100 (132 SMs), examples/bench_products.rs.

use super::skinny::{
    BOX_K, CTAS_PER_SM, GpuClass, MAX_SKINNY_TOKENS, MAX_STAGES, MOST_SKINNY_TOKENS, SkinnyKernel, SkinnyPlan, SumOrder, TILE_ROWS,
    skinny_split_k, wave_slots,
};

/// Tokens of a tile of the kernel for many.
const WIDE_TILE_TOKENS: usize = 128;

/// Launch of one product of many tokens (cuda/gemm/wide_sm90.cuh). The order of additions depends on `num_ranges` and k alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WidePlan {
    /// Tokens in a tile, 128 or 256.
    pub block_rows: u32,
    /// Rows of w in a tile, 256 or 128.
    pub block_cols: u32,
    /// CTAs that share what they read, 1 or 2.
    pub cluster: u32,
    /// Ranges of k whose sums are added in order.
    pub num_ranges: u32,
    /// Tiles of tokens (times `cluster`) that share what they read of w.
    pub raster: u32,
    /// CTAs that walk over all tiles.
    pub max_ctas: u32,
}

/// A product as far as the choice of its kernel depends on it: `num_tokens` rows of x by the `n` rows of w, `k` long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    /// Rows of x and of the output.
    pub num_tokens: usize,
    /// Rows of w.
    pub n: usize,
    /// Columns of x and w.
    pub k: usize,
    /// Whether w holds gate and up, to be joined at once.
    pub gated: bool,
    /// Whether the output is bf16 in whole vectors of 8, all of it aligned to 16 bytes.
    pub whole: bool,
    /// Whether there is a library for what our kernels do slowly.
    pub library: bool,
}

/// How a product is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductPlan {
    /// By launches of the skinny kernel over this many tokens each.
    Skinny(usize),
    /// By the kernel for many tokens.
    Wide(WidePlan),
    /// By the library; a gate is another launch.
    Library,
    /// By the kernel that runs everywhere; a gate is another launch.
    Portable,
}

/// Where one launch that also joins gate and up beats the library with a launch for the gate: where its tiles are full, and so are their
/// waves (37888 x 3584, us: 256 tokens 134 against 128, 512: 193, 200; 1024: 332, 375; 8192: 2711, 2907; 9728 x 896: 512: 24, 22; 2048: 56, 71).
fn fills_wide_waves(num_tokens: usize, n: usize, num_sms: usize) -> bool {
    const MIN_PERCENT: usize = 80;
    const UNIT_TOKENS: usize = 2 * WIDE_TILE_TOKENS; // of a cluster, which makes half as many columns
    const UNIT_COLS: usize = WIDE_TILE_TOKENS;
    let units = num_tokens.div_ceil(UNIT_TOKENS) * (n / 2).div_ceil(UNIT_COLS);
    let slots = wave_slots(units, (num_sms / 2).max(1)) * UNIT_TOKENS * UNIT_COLS;
    num_tokens * (n / 2) * 100 >= slots * MIN_PERCENT
}

/// The kernel for a product.
pub fn product_plan(shape: &ProductShape, gpu: GpuClass, order: SumOrder) -> ProductPlan {
    let ProductShape { num_tokens, n, k, gated, whole, library } = *shape;
    let wide = whole && gpu.compute_capability == (9, 0) && k.is_multiple_of(8);
    if order == SumOrder::BatchInvariant {
        let num_ranges = if gpu.compute_capability.0 >= 9 { skinny_split_k(n, k, gpu.num_sms as usize) } else { 1 };
        return match num_tokens {
            0..=MAX_SKINNY_TOKENS => ProductPlan::Skinny(MAX_SKINNY_TOKENS),
            _ if wide => ProductPlan::Wide(wide_plan(num_tokens, num_ranges, gpu)),
            _ => ProductPlan::Skinny(MAX_SKINNY_TOKENS),
        };
    }
    if num_tokens <= MAX_SKINNY_TOKENS || (num_tokens <= MOST_SKINNY_TOKENS && is_long(n, k) && gpu.compute_capability.0 >= 9) {
        return ProductPlan::Skinny(MOST_SKINNY_TOKENS);
    }
    if wide && ((gated && fills_wide_waves(num_tokens, n, gpu.num_sms as usize)) || !library) {
        return ProductPlan::Wide(wide_plan(num_tokens, 1, gpu));
    }
    if library { ProductPlan::Library } else { ProductPlan::Portable }
}

/// Matrices of long rows: the library reads them at a lower rate (3584 x 18944 with 128 tokens: 60.2 us).
fn is_long(n: usize, k: usize) -> bool {
    k >= 2 * n && n * k >= 32 << 20
}

/// Rows in groups with a matrix each, as far as the choice of a kernel depends on them: how the rows spread is known on the device alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedShape {
    /// Rows of all groups.
    pub num_rows: usize,
    /// Matrices.
    pub num_groups: usize,
    /// Whether a row of the output is whole vectors of 8.
    pub whole: bool,
}

/// How a product of rows in groups is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupedPlan {
    /// By the skinny kernel, with so many tokens a tile: groups of few rows, where reading the matrices is all that counts.
    Skinny(SkinnyPlan, usize),
    /// By the kernel for many tokens.
    Wide(WidePlan),
    /// By the kernel that runs everywhere; a gate is another launch.
    Portable,
}

/// The kernel for a product of rows in groups.
pub fn grouped_plan(shape: &GroupedShape, gpu: GpuClass) -> GroupedPlan {
    /// Mean rows of a group from which tiles of 128 tokens win: with 32 both take 0.29 and 0.155 ms (128 experts, 2048 x 768), with 256 the skinny ones 0.97 and 0.60, the wide ones 0.51 and 0.29.
    const MIN_WIDE_ROWS: usize = 48;
    const SMEM_BYTES: usize = 220 * 1024;
    if gpu.compute_capability.0 < 9 {
        return GroupedPlan::Portable;
    }
    let mean = shape.num_rows.div_ceil(shape.num_groups);
    if mean >= MIN_WIDE_ROWS && shape.whole && gpu.compute_capability == (9, 0) {
        return GroupedPlan::Wide(WidePlan { cluster: 1, ..wide_plan(shape.num_rows, 1, gpu) });
    }
    // Groups differ: most hold less than twice the mean, and none more than all rows.
    let block_tokens = (2 * mean).min(shape.num_rows).next_power_of_two().clamp(8, 64);
    let num_boxes = if block_tokens <= 16 { 2 } else { 1 };
    let (stage_bytes, sums_bytes) = (num_boxes * BOX_K * 2 * (TILE_ROWS + block_tokens), block_tokens * (TILE_ROWS + 4) * 4);
    let num_stages = ((SMEM_BYTES / CTAS_PER_SM - 2048 - sums_bytes) / stage_bytes).min(MAX_STAGES);
    let max_ctas = gpu.num_sms * CTAS_PER_SM as u32;
    let plan = SkinnyPlan { kernel: SkinnyKernel::Sm90, block_n: TILE_ROWS as u32, split_k: 1, num_stages: num_stages as u32, max_ctas };
    GroupedPlan::Skinny(plan, block_tokens)
}

/// Launch of the kernel for many tokens. Sums of several ranges need room for themselves: smaller tiles. The order of additions is that
/// of the ranges alone, whatever the tile.
pub fn wide_plan(num_tokens: usize, num_ranges: usize, gpu: GpuClass) -> WidePlan {
    WidePlan {
        block_rows: WIDE_TILE_TOKENS as u32,
        block_cols: if num_ranges > 1 { 128 } else { 256 },
        cluster: if num_tokens > WIDE_TILE_TOKENS { 2 } else { 1 },
        num_ranges: num_ranges as u32,
        raster: 8,
        max_ctas: gpu.num_sms / 2 * 2,
    }
}

#[cfg(test)]
mod tests {
    use super::super::skinny::{SkinnyShape, skinny_plan};
    use super::*;

    #[test]
    fn products_go_where_they_are_fastest_or_always_alike() {
        let h100 = GpuClass { num_sms: 132, compute_capability: (9, 0) };
        let a100 = GpuClass { num_sms: 108, compute_capability: (8, 0) };
        let shape = |num_tokens, gated| ProductShape { num_tokens, n: 37888, k: 3584, gated, whole: true, library: true };
        let kind = |shape: &ProductShape, gpu, order| match product_plan(shape, gpu, order) {
            ProductPlan::Skinny(_) => "skinny",
            ProductPlan::Wide(_) => "wide",
            ProductPlan::Library => "library",
            ProductPlan::Portable => "portable",
        };
        let down = ProductShape { n: 3584, k: 18944, ..shape(100, false) };
        let logits = ProductShape { whole: false, ..shape(300, false) };
        let cases = [
            (shape(64, true), h100, SumOrder::Fastest, "skinny"),
            (shape(65, true), h100, SumOrder::Fastest, "library"),
            (down, h100, SumOrder::Fastest, "skinny"),
            (down, a100, SumOrder::Fastest, "library"),
            (shape(256, true), h100, SumOrder::Fastest, "library"),
            (shape(300, true), h100, SumOrder::Fastest, "library"),
            (shape(512, true), h100, SumOrder::Fastest, "wide"),
            (ProductShape { n: 9728, k: 896, ..shape(512, true) }, h100, SumOrder::Fastest, "library"),
            (shape(2048, true), h100, SumOrder::Fastest, "wide"),
            (shape(2048, false), h100, SumOrder::Fastest, "library"),
            (shape(2048, true), a100, SumOrder::Fastest, "library"),
            (ProductShape { library: false, ..shape(2048, false) }, h100, SumOrder::Fastest, "wide"),
            (ProductShape { library: false, ..shape(2048, false) }, a100, SumOrder::Fastest, "portable"),
            (shape(65, false), h100, SumOrder::BatchInvariant, "wide"),
            (logits, h100, SumOrder::BatchInvariant, "skinny"),
            (shape(2048, false), a100, SumOrder::BatchInvariant, "skinny"),
        ];
        for (shape, gpu, order, expected) in cases {
            assert_eq!(kind(&shape, gpu, order), expected, "{shape:?} {gpu:?} {order:?}");
        }
    }

    #[test]
    fn batch_invariant_products_add_in_one_order() {
        let h100 = GpuClass { num_sms: 132, compute_capability: (9, 0) };
        for (n, k) in [(1152, 896), (896, 4864), (4608, 3584), (37888, 3584), (3584, 18944)] {
            let alone = skinny_plan(SkinnyShape { num_tokens: 1, n, k }, h100, SumOrder::BatchInvariant).expect("supported");
            for num_tokens in [65, 128, 129, 4096] {
                let shape = ProductShape { num_tokens, n, k, gated: false, whole: true, library: true };
                let ProductPlan::Wide(plan) = product_plan(&shape, h100, SumOrder::BatchInvariant) else { panic!("{shape:?}") };
                assert_eq!(plan.num_ranges, alone.split_k, "{shape:?}");
            }
        }
    }

    #[test]
    fn groups_get_tiles_of_their_size() {
        let h100 = GpuClass { num_sms: 132, compute_capability: (9, 0) };
        let tokens = |num_rows| match grouped_plan(&GroupedShape { num_rows, num_groups: 128, whole: true }, h100) {
            GroupedPlan::Skinny(plan, block_tokens) => {
                assert!((3..=8).contains(&plan.num_stages), "{num_rows}: {plan:?}");
                block_tokens
            }
            GroupedPlan::Wide(_) => 128,
            GroupedPlan::Portable => 0,
        };
        for (num_rows, expected) in [(1, 8), (8, 8), (512, 8), (1024, 16), (4096, 64), (8192, 128), (32768, 128)] {
            assert_eq!(tokens(num_rows), expected, "{num_rows} rows");
        }
    }
}
