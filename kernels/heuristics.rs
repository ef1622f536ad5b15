//! Shape to launch configuration. Pure, so that it is tested without a GPU.

/// 16-byte vectors a thread of a row kernel holds at most (`kMaxVecs` in cuda/norm.cuh).
const MAX_VECS_PER_THREAD: usize = 4;
const WARP: usize = 32;
const MAX_THREADS: usize = 1024;

/// Threads of the CTA that normalises one row of `row_bytes` bytes; None when a row is no whole number of vectors or too long.
///
/// One vector a thread while that fits, else as many vectors as needed, spread evenly.
pub fn rms_norm_threads(row_bytes: usize) -> Option<u32> {
    if row_bytes == 0 || !row_bytes.is_multiple_of(16) || row_bytes / 16 > MAX_VECS_PER_THREAD * MAX_THREADS {
        return None;
    }
    let num_vecs = row_bytes / 16;
    let vecs_per_thread = num_vecs.div_ceil(MAX_THREADS);
    let threads = num_vecs.div_ceil(vecs_per_thread).next_multiple_of(WARP);
    u32::try_from(threads).ok()
}

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
    /// Depth of the ring of Sm90, 2..=8.
    pub num_stages: u32,
    /// CTAs that walk over all tiles or rows.
    pub max_ctas: u32,
}

/// Most tokens of a skinny product.
pub const MAX_SKINNY_TOKENS: usize = 64;
/// Rows of a tile of Sm90 (`kSkinnyRows` in cuda/gemm/skinny_sm90.cuh).
const TILE_ROWS: usize = 64;
/// Columns of a box (`kBoxK` there).
const BOX_K: usize = 64;
const MAX_SPLIT: usize = 8;
const MAX_STAGES: usize = 8;
const GEMV_WARPS: usize = 8;
/// Rings of about 100 KB each; so many 2-row warps of Gemv that every one walks over several rows.
const CTAS_PER_SM: usize = 2;
/// x of one token has to fit in the shared memory that every GPU grants.
const MAX_GEMV_X_BYTES: usize = 96 * 1024;
/// With more rows than this the ring has enough to run ahead with.
const MAX_GEMV_ROWS: usize = 8192;

/// How to launch a skinny product; None for shapes it has no kernel for. Numbers: H100 (132 SMs), sweeps of examples/bench_gemm.rs.
pub fn skinny_plan(shape: SkinnyShape, gpu: GpuClass, order: SumOrder) -> Option<SkinnyPlan> {
    let SkinnyShape { num_tokens, n, k } = shape;
    if !(1..=MAX_SKINNY_TOKENS).contains(&num_tokens) || n == 0 || k == 0 || !k.is_multiple_of(8) {
        return None;
    }
    let (num_sms, has_ring) = (gpu.num_sms as usize, gpu.compute_capability.0 >= 9);
    if num_tokens == 1 && order == SumOrder::Fastest && k * 2 <= MAX_GEMV_X_BYTES && (!has_ring || gemv_is_faster(n, num_sms)) {
        // One row a warp wins by its eight loads along k, where k is long enough for them.
        let few = n <= MAX_GEMV_ROWS && k >= 1024;
        return plan(SkinnyKernel::Gemv, if few { 1 } else { 2 }, 1, 2, if few { n.div_ceil(GEMV_WARPS) } else { num_sms * CTAS_PER_SM });
    }
    if !has_ring {
        return plan(SkinnyKernel::Sm80, 16, 1, 2, num_sms);
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
    match most.min(k.div_ceil(BOX_K)).clamp(1, MAX_SPLIT) {
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

/// Token count that a library product is asked for instead of `num_tokens`, so that there are few shapes; never above `max_tokens`,
/// the rows that operands have room for.
pub fn padded_tokens(num_tokens: usize, max_tokens: usize) -> usize {
    let step = match num_tokens {
        0..=256 => 16,
        257..=1024 => 64,
        _ => 128,
    };
    num_tokens.next_multiple_of(step).min(max_tokens).max(num_tokens)
}

/// How decode attention cuts contexts into pieces for one CTA each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeSplits {
    /// Keys of a piece.
    pub split_len: usize,
    /// Pieces of the longest context.
    pub num_splits: usize,
}

/// Keys of a piece while the scratch suffices: fixed, so that a sequence's sums do not depend on its batch.
const SPLIT_LEN: usize = 256;

/// Splits for `num_seqs` sequences of at most `max_context` keys, in a scratch of `scratch_rows` rows (one a query head and piece).
/// When that is too small the pieces grow, so that any step fits.
pub fn decode_splits(num_seqs: usize, num_heads: usize, max_context: usize, scratch_rows: usize) -> DecodeSplits {
    let mut splits = DecodeSplits { split_len: SPLIT_LEN, num_splits: max_context.div_ceil(SPLIT_LEN).max(1) };
    while splits.num_splits > 1 && num_seqs * num_heads * splits.num_splits > scratch_rows {
        splits.split_len *= 2;
        splits.num_splits = max_context.div_ceil(splits.split_len).max(1);
    }
    splits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_tokens_cover_and_fit() {
        for (num_tokens, max, expected) in [(5, 8192, 16), (16, 8192, 16), (257, 8192, 320), (1025, 8192, 1152), (20, 24, 24), (24, 24, 24)]
        {
            assert_eq!(padded_tokens(num_tokens, max), expected, "{num_tokens} of {max}");
        }
    }

    #[test]
    fn decode_splits_fit_their_scratch() {
        let splits = |seqs, context, rows| decode_splits(seqs, 28, context, rows);
        assert_eq!(splits(1, 1, 1000), DecodeSplits { split_len: 256, num_splits: 1 });
        assert_eq!(splits(1, 257, 1000), DecodeSplits { split_len: 256, num_splits: 2 });
        assert_eq!(splits(8, 1024, 28 * 8 * 2), DecodeSplits { split_len: 512, num_splits: 2 });
        assert_eq!(splits(512, 32768, 1), DecodeSplits { split_len: 32768, num_splits: 1 });
    }

    #[test]
    fn rms_norm_threads_cover_the_row() {
        for row_bytes in (16..=MAX_VECS_PER_THREAD * MAX_THREADS * 16).step_by(16) {
            let threads = rms_norm_threads(row_bytes).expect("supported") as usize;
            assert!(threads.is_multiple_of(WARP) && threads <= MAX_THREADS, "{row_bytes}: {threads}");
            assert!(row_bytes / 16 <= threads * MAX_VECS_PER_THREAD, "{row_bytes}: {threads}");
        }
        for bad in [0, 8, 24, MAX_VECS_PER_THREAD * MAX_THREADS * 16 + 16] {
            assert_eq!(rms_norm_threads(bad), None, "{bad}");
        }
    }

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
            (65, 4096, 9, SumOrder::Fastest, None),
            (1, 4092, 9, SumOrder::Fastest, None),
            (0, 4096, 9, SumOrder::Fastest, None),
        ];
        for (num_tokens, k, major, order, expected) in cases {
            assert_eq!(plan(num_tokens, k, major, order), expected, "{num_tokens} tokens, k {k}, {major}.0, {order:?}");
        }
    }
}
