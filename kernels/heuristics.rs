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
    /// Rows of w a CTA (Sm90: 64 or 128) or a warp (Gemv: 1, 2, 4) works on at a time.
    pub block_n: u32,
    /// CTAs that share one tile of Sm90, 1..=8.
    pub split_k: u32,
    /// Depth of the ring of Sm90, 2..=8.
    pub num_stages: u32,
    /// CTAs that walk over all tiles.
    pub max_ctas: u32,
}

const MAX_SKINNY_TOKENS: usize = 64;
/// Columns of a box (`kBoxK` in cuda/gemm/skinny_sm90.cuh).
const BOX_K: usize = 64;
const MAX_SPLIT: usize = 8;
const MAX_STAGES: usize = 8;
/// Two CTAs a multiprocessor: one ring drains into the tensor cores while the other waits for memory.
const CTAS_PER_SM: usize = 2;

/// How to launch a skinny product; None for shapes it has no kernel for.
pub fn skinny_plan(shape: SkinnyShape, gpu: GpuClass, order: SumOrder) -> Option<SkinnyPlan> {
    let SkinnyShape { num_tokens, n, k } = shape;
    if !(1..=MAX_SKINNY_TOKENS).contains(&num_tokens) || n == 0 || k == 0 || !k.is_multiple_of(8) {
        return None;
    }
    let num_slots = gpu.num_sms as usize * CTAS_PER_SM;
    if num_tokens == 1 && order == SumOrder::Fastest && k * 2 <= MAX_GEMV_X_BYTES {
        return plan(SkinnyKernel::Gemv, if n >= MANY_ROWS { 4 } else { 2 }, 1, 2, MAX_GEMV_CTAS_PER_SM * gpu.num_sms as usize);
    }
    if gpu.compute_capability.0 < 9 {
        return plan(SkinnyKernel::Sm80, 16, 1, 2, num_slots);
    }
    let block_n = skinny_block_n(num_tokens);
    plan(SkinnyKernel::Sm90, block_n, skinny_split_k(n, k, num_slots), skinny_stages(num_tokens, block_n), num_slots)
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

/// x of one token has to fit in the shared memory that every GPU grants.
const MAX_GEMV_X_BYTES: usize = 96 * 1024;
/// From here on there are enough rows for 4 a warp.
const MANY_ROWS: usize = 16384;
const MAX_GEMV_CTAS_PER_SM: usize = 9;

/// Wide tiles once the bytes of x that every tile reads again are no longer small beside those of w.
fn skinny_block_n(num_tokens: usize) -> usize {
    if num_tokens <= 16 { 64 } else { 128 }
}

/// As many ranges of k as make one wave of 64-row tiles. A function of n and k alone: it fixes the order of additions.
fn skinny_split_k(n: usize, k: usize, num_slots: usize) -> usize {
    let num_tiles = n.div_ceil(64);
    (num_slots / num_tiles).min(k.div_ceil(BOX_K) / 2).clamp(1, MAX_SPLIT)
}

/// Ring of about 56 KB, so that this kernel's two CTAs a multiprocessor and the next kernel's fit together; at least 3 deep.
fn skinny_stages(num_tokens: usize, block_n: usize) -> usize {
    const RING_BYTES: usize = 56 * 1024;
    let tokens = num_tokens.next_power_of_two().max(8);
    let num_boxes = if tokens * block_n <= 2048 { 2 } else { 1 };
    (RING_BYTES / (num_boxes * BOX_K * 2 * (block_n + tokens))).clamp(3, MAX_STAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(alone.split_k == 1 || n.div_ceil(64) * alone.split_k as usize <= 264, "{n} x {k}: {alone:?}");
            for num_tokens in 1..=MAX_SKINNY_TOKENS {
                let among = plan(num_tokens);
                assert_eq!((among.kernel, among.split_k), (alone.kernel, alone.split_k), "{num_tokens} x {n} x {k}");
            }
        }
    }

    #[test]
    fn skinny_plans_follow_gpu_and_order() {
        let plan = |num_tokens, k, major, order| {
            let gpu = GpuClass { num_sms: 108, compute_capability: (major, 0) };
            skinny_plan(SkinnyShape { num_tokens, n: 4096, k }, gpu, order).map(|p| p.kernel)
        };
        let cases = [
            (1, 4096, 9, SumOrder::Fastest, Some(SkinnyKernel::Gemv)),
            (1, 4096, 9, SumOrder::BatchInvariant, Some(SkinnyKernel::Sm90)),
            (1, 65536, 9, SumOrder::Fastest, Some(SkinnyKernel::Sm90)),
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
