//! How a product of few tokens is launched. Numbers: H100 (132 SMs), sweeps of examples/bench_gemm.rs.

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
pub(super) const MOST_SKINNY_TOKENS: usize = 128;
/// Rows of a tile of Sm90 (`kSkinnyRows` in cuda/gemm/skinny_sm90.cuh).
pub(super) const TILE_ROWS: usize = 64;
/// Columns of a box (`kBoxK` there).
pub(super) const BOX_K: usize = 64;
const MAX_SPLIT: usize = 8;
/// Boxes of a range, at least: with fewer, joining the sums costs more than it saves (896 x 896, 64 tokens: 3.9 us by 4 ranges, 4.2 by 8).
const MIN_RANGE_BOXES: usize = 4;
pub(super) const MAX_STAGES: usize = 8;
const GEMV_WARPS: usize = 8;
/// k that a warp of Gemv loads before it waits for the kernel before it, with 8 loads a lane.
const GEMV_LOADS_K: usize = 8 * 32 * 8;
/// Loads a lane where its CTA has a multiprocessor to itself (`kDeepLoads` in cuda/gemm/skinny_gemv.cuh).
const DEEP_GEMV_LOADS: usize = 20;
/// Rings of about 100 KB each; so many 2-row warps of Gemv that every one walks over several rows.
pub(super) const CTAS_PER_SM: usize = 2;
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
pub(super) fn wave_slots(count: usize, slots: usize) -> usize {
    count.div_ceil(slots) * slots
}

/// Ranges of k that fill one wave; clusters of 7 do not pack, and of the others 1.7 CTAs a multiprocessor fit without a second wave.
/// A function of n and k alone: it fixes the order of additions.
pub(super) fn skinny_split_k(n: usize, k: usize, num_sms: usize) -> usize {
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
}
