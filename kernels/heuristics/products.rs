//! Which kernel makes a product, and how it is launched. Numbers: H100 (132 SMs), sweeps of examples/bench_gemm.rs.

/// What the choice of a launch has to know of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuClass {
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Compute capability: (9, 0) is Hopper.
    pub compute_capability: (u32, u32),
}

/// Shape of a skinny product: `num_tokens` rows of x by the `n` rows of w, `k` long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkinnyShape {
    /// Rows of x and of the output, 1..=64.
    pub num_tokens: usize,
    /// Rows of w.
    pub n: usize,
    /// Columns of x and w, a multiple of 8.
    pub k: usize,
}

/// Which kernel of cuda/gemm/.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkinnyKernel {
    /// One token, multiply-adds (skinny_gemv.cuh).
    Gemv,
    /// Any GPU (skinny_sm80.cuh).
    Sm80,
    /// Compute capability 9.0 and later (skinny_sm90.cuh).
    Sm90,
}

/// Whether one token may be summed by the kernel that is fastest for it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumOrder {
    /// One token alone may round differently than the same token among others.
    Fastest,
    /// The same bits for a token, whatever else is in the batch.
    BatchInvariant,
}

/// Launch of one skinny product. The order of additions depends on `kernel`, `split_k` and k alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkinnyPlan {
    /// Which kernel.
    pub kernel: SkinnyKernel,
    /// Rows of w a CTA (Sm90: 64) or a warp (Gemv: 1 or 2) works on at a time.
    pub block_n: u32,
    /// CTAs that share one tile of Sm90, 1..=8.
    pub split_k: u32,
    /// Depth of the ring of Sm90, 2..=8; loads under way in a lane of Gemv, where they are more than 8.
    pub num_stages: u32,
    /// CTAs that walk over all tiles or rows.
    pub max_ctas: u32,
}

/// Most tokens of a skinny product whose order of additions is that of one token alone.
pub const MAX_SKINNY_TOKENS: usize = 64;
/// Most tokens of a skinny product.
const MOST_SKINNY_TOKENS: usize = 128;
/// Rows of a tile of Sm90 (`kSkinnyRows` in cuda/gemm/skinny_sm90.cuh).
const TILE_ROWS: usize = 64;
/// Columns of a box (`kBoxK` there).
const BOX_K: usize = 64;
const MAX_SPLIT: usize = 8;
/// Boxes of a range, at least: with fewer, joining the sums costs more than it saves (896 x 896, 64 tokens: 3.9 us by 4 ranges, 4.2 by 8).
const MIN_RANGE_BOXES: usize = 4;
const MAX_STAGES: usize = 8;
const GEMV_WARPS: usize = 8;
/// k that a warp of Gemv loads before it waits for the kernel before it, with 8 loads a lane.
const GEMV_LOADS_K: usize = 8 * 32 * 8;
/// Loads a lane where its CTA has a multiprocessor to itself (`kDeepLoads` in cuda/gemm/skinny_gemv.cuh).
const DEEP_GEMV_LOADS: usize = 20;
/// Tokens of a tile of the kernel for many.
const WIDE_TILE_TOKENS: usize = 128;
/// Rings of about 100 KB each; so many 2-row warps of Gemv that every one walks over several rows.
const CTAS_PER_SM: usize = 2;
/// x of one token has to fit in the shared memory that every GPU grants.
const MAX_GEMV_X_BYTES: usize = 96 * 1024;
/// With more rows than this the ring has enough to run ahead with.
const MAX_GEMV_ROWS: usize = 8192;

/// How to launch a skinny product; None for shapes it has no kernel for. Numbers: H100 (132 SMs), sweeps of examples/bench_gemm.rs.
pub fn skinny_plan(shape: SkinnyShape, gpu: GpuClass, order: SumOrder) -> Option<SkinnyPlan> {
    let SkinnyShape { num_tokens, n, k } = shape;
    let most = if order == SumOrder::Fastest && gpu.compute_capability.0 >= 9 { MOST_SKINNY_TOKENS } else { MAX_SKINNY_TOKENS };
    if !(1..=most).contains(&num_tokens) || n == 0 || k == 0 || !k.is_multiple_of(8) {
        return None;
    }
    let (num_sms, has_ring) = (gpu.num_sms as usize, gpu.compute_capability.0 >= 9);
    if num_tokens == 1 && order == SumOrder::Fastest && k * 2 <= MAX_GEMV_X_BYTES && (!has_ring || gemv_is_faster(n, num_sms)) {
        // One row a warp wins by its eight loads along k, where k is long enough for them.
        let few = n <= MAX_GEMV_ROWS && k >= 1024;
        if !few {
            return plan(SkinnyKernel::Gemv, 2, 1, 2, num_sms * CTAS_PER_SM);
        }
        let num_ctas = n.div_ceil(GEMV_WARPS);
        let deep = num_ctas <= num_sms && (GEMV_LOADS_K..=DEEP_GEMV_LOADS * GEMV_LOADS_K / 8).contains(&k);
        return plan(SkinnyKernel::Gemv, 1, 1, if deep { DEEP_GEMV_LOADS } else { 2 }, num_ctas);
    }
    if !has_ring {
        return plan(SkinnyKernel::Sm80, 16, 1, 2, num_sms);
    }
    if num_tokens > MAX_SKINNY_TOKENS {
        // One ring a multiprocessor and twice the rows: 3584 x 18944 with 128 tokens takes 52.7 us.
        let split_k = (num_sms / n.div_ceil(2 * TILE_ROWS)).min(k.div_ceil(MIN_RANGE_BOXES * BOX_K)).clamp(1, MAX_SPLIT);
        return plan(SkinnyKernel::Sm90, 2 * TILE_ROWS, split_k, 4, num_sms);
    }
    let split_k = skinny_split_k(n, k, num_sms);
    let ctas_per_sm = if split_k > 1 { CTAS_PER_SM } else { skinny_ctas_per_sm(n.div_ceil(TILE_ROWS), num_sms) };
    plan(SkinnyKernel::Sm90, TILE_ROWS, split_k, skinny_stages(num_tokens, ctas_per_sm), ctas_per_sm * num_sms)
}

fn plan(kernel: SkinnyKernel, block_n: usize, split_k: usize, num_stages: usize, max_ctas: usize) -> Option<SkinnyPlan> {
    let narrow = |v: usize| u32::try_from(v).ok();
    Some(SkinnyPlan {
        kernel,
        block_n: narrow(block_n)?,
        split_k: narrow(split_k)?,
        num_stages: narrow(num_stages)?,
        max_ctas: narrow(max_ctas)?,
    })
}

/// Few rows (4096 x 4096: 11.8 against 13.6 us), unless its CTAs leave much of their last wave idle (4608 x 3584: 15.0 against 13.3 us).
fn gemv_is_faster(n: usize, num_sms: usize) -> bool {
    let (ctas, slots) = (n.div_ceil(GEMV_WARPS), num_sms * CTAS_PER_SM);
    n <= MAX_GEMV_ROWS && (ctas <= slots || wave_slots(ctas, slots) * 100 <= ctas * 115)
}

/// `count` rounded up to whole waves of `slots`.
fn wave_slots(count: usize, slots: usize) -> usize {
    count.div_ceil(slots) * slots
}

/// Ranges of k that fill one wave; clusters of 7 do not pack, and of the others 1.7 CTAs a multiprocessor fit without a second wave.
/// A function of n and k alone: it fixes the order of additions.
fn skinny_split_k(n: usize, k: usize, num_sms: usize) -> usize {
    let most = num_sms * 17 / 10 / n.div_ceil(TILE_ROWS);
    match most.min(k.div_ceil(MIN_RANGE_BOXES * BOX_K)).clamp(1, MAX_SPLIT) {
        7 => 6,
        split => split,
    }
}

/// Three short rings or two long ones, whichever leaves less of the last wave idle (344 tiles: 30.2 against 31.7 us; 448: 82.1, 78.3).
fn skinny_ctas_per_sm(num_tiles: usize, num_sms: usize) -> usize {
    let slots = |ctas_per_sm: usize| wave_slots(num_tiles, ctas_per_sm * num_sms);
    if num_tiles > 2 * num_sms && slots(3) <= slots(2) { 3 } else { 2 }
}

/// As deep a ring as lets `ctas_per_sm` CTAs share the 227 KB of a multiprocessor. The order of additions does not depend on it.
fn skinny_stages(num_tokens: usize, ctas_per_sm: usize) -> usize {
    const SMEM_BYTES: usize = 225 * 1024;
    const ALIGNMENT_BYTES: usize = 1024;
    let tokens = num_tokens.next_power_of_two().max(8);
    let num_boxes = if tokens <= 16 { 2 } else { 1 };
    let stage_bytes = num_boxes * BOX_K * 2 * (TILE_ROWS + tokens);
    let sums_bytes = tokens * (TILE_ROWS + 4) * 4;
    ((SMEM_BYTES / ctas_per_sm - ALIGNMENT_BYTES - sums_bytes) / stage_bytes).clamp(3, MAX_STAGES)
}

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
    use super::*;

    #[test]
    fn skinny_plans_fit_one_wave_and_sum_alike_for_any_number_of_tokens() {
        let h100 = GpuClass { num_sms: 132, compute_capability: (9, 0) };
        let shapes = [(1152, 896), (896, 4864), (4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (152_064, 3584), (8, 8)];
        for (n, k) in shapes {
            let plan = |num_tokens| skinny_plan(SkinnyShape { num_tokens, n, k }, h100, SumOrder::BatchInvariant).expect("supported");
            let alone = plan(1);
            assert!(alone.split_k == 1 || n.div_ceil(64) * alone.split_k as usize <= 224, "{n} x {k}: {alone:?}");
            for num_tokens in 1..=MAX_SKINNY_TOKENS {
                let among = plan(num_tokens);
                assert!((3..=8).contains(&among.num_stages), "{num_tokens} x {n} x {k}: {among:?}");
                assert_eq!((among.kernel, among.split_k), (alone.kernel, alone.split_k), "{num_tokens} x {n} x {k}");
            }
        }
    }

    #[test]
    fn skinny_plans_follow_gpu_and_order() {
        let plan = |num_tokens, k, major, order| {
            let gpu = GpuClass { num_sms: 132, compute_capability: (major, 0) };
            skinny_plan(SkinnyShape { num_tokens, n: 4096, k }, gpu, order).map(|p| p.kernel)
        };
        let cases = [
            (1, 4096, 9, SumOrder::Fastest, Some(SkinnyKernel::Gemv)),
            (1, 4096, 9, SumOrder::BatchInvariant, Some(SkinnyKernel::Sm90)),
            (1, 65536, 9, SumOrder::Fastest, Some(SkinnyKernel::Sm90)),
            (1, 65536, 8, SumOrder::Fastest, Some(SkinnyKernel::Sm80)),
            (1, 4096, 8, SumOrder::BatchInvariant, Some(SkinnyKernel::Sm80)),
            (2, 4096, 9, SumOrder::Fastest, Some(SkinnyKernel::Sm90)),
            (64, 4096, 8, SumOrder::Fastest, Some(SkinnyKernel::Sm80)),
            (65, 4096, 9, SumOrder::Fastest, Some(SkinnyKernel::Sm90)),
            (65, 4096, 9, SumOrder::BatchInvariant, None),
            (65, 4096, 8, SumOrder::Fastest, None),
            (129, 4096, 9, SumOrder::Fastest, None),
            (1, 4092, 9, SumOrder::Fastest, None),
            (0, 4096, 9, SumOrder::Fastest, None),
        ];
        for (num_tokens, k, major, order, expected) in cases {
            assert_eq!(plan(num_tokens, k, major, order), expected, "{num_tokens} tokens, k {k}, {major}.0, {order:?}");
        }
    }

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
