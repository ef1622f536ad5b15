//! Shape to launch configuration. Pure, so that it is tested without a GPU.

mod blocks;
mod products;
mod skinny;
mod w4;
mod w8;

pub use blocks::{MAX_BLOCK_TOKENS, MAX_BLOCK_TOKENS_BESIDE_COPY, blocks_plan};
pub use products::{GroupedPlan, GroupedShape, ProductPlan, ProductShape, WidePlan, grouped_plan, product_plan, wide_plan};
pub use skinny::{GpuClass, MAX_SKINNY_TOKENS, SkinnyKernel, SkinnyPlan, SkinnyShape, SumOrder, skinny_plan};
pub use w4::{MAX_W4_TOKENS, W4Kernel, W4Plan, W4Shape, w4_plan};
pub use w8::{W8Plan, has_w8_kernels, skinny_w8_plan, w8_plan, wide_block_tiles};

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

/// Logits of a warp at a time, and CTAs of a row at most (`kUnit`, `kMaxSplits` in cuda/sampling/workspace.cuh).
const SAMPLE_UNIT: usize = 512;
const MAX_SAMPLE_SPLITS: usize = 64;

/// CTAs of `warps` warps that share a row of logits: as many as stand side by side, `ctas_per_sm` on a multiprocessor, so that there is one
/// wave (64 rows of 151,936 on an H100: 18.6 us in one wave of 8 CTAs a row, 20.7 in two of 12). Tokens and logprobs do not depend on it.
pub fn sample_splits(num_rows: usize, vocab: usize, warps: usize, ctas_per_sm: usize, num_sms: usize) -> usize {
    let most = vocab.div_ceil(SAMPLE_UNIT * warps).min(MAX_SAMPLE_SPLITS);
    (ctas_per_sm * num_sms / num_rows.max(1)).clamp(1, most.max(1))
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

/// Keys of the pieces into which decode attention cuts contexts, where a sequence's sums must not depend on its batch.
const DECODE_SPLIT_LEN: usize = 256;
/// Keys of the shortest pieces that it cuts where they may (`kMinSplit` in cuda/attention/decode_work.cuh).
const MIN_DECODE_SPLIT: usize = 128;
/// Query heads of one kv head that a CTA takes at once (`kDecodeHeads` there).
const DECODE_HEADS: usize = 8;

/// Keys of the pieces into which decode attention cuts contexts; 0: as is best for the batch.
pub fn decode_split_len(order: SumOrder) -> usize {
    match order {
        SumOrder::Fastest => 0,
        SumOrder::BatchInvariant => DECODE_SPLIT_LEN,
    }
}

/// Sequences of a step of decode attention with prefixes (`kMaxPlanSeqs` there).
const MAX_PREFIX_SEQS: usize = 512;

/// Whether such a GPU can compute shared prefixes apart (cuda/attention/prefix.cuh): it takes tensor copies.
pub fn has_prefix_kernel(compute_capability: (u32, u32)) -> bool {
    compute_capability.0 >= 9
}

/// Whether it has a kernel for these heads and blocks, and this many sequences.
pub fn takes_prefixes(head_dim: usize, block_size: usize, num_seqs: usize) -> bool {
    matches!(head_dim, 64 | 128 | 256) && block_size.is_multiple_of(16) && num_seqs <= MAX_PREFIX_SEQS
}

/// CTAs that share the pieces of `num_seqs` contexts of at most `max_context` keys: one a piece, or as many as run at once (registers and
/// rings of cuda/attention/decode.cuh).
pub fn decode_ctas(num_seqs: usize, num_heads: usize, num_kv_heads: usize, head_dim: usize, max_context: usize, num_sms: u32) -> usize {
    let ctas_per_sm = match head_dim {
        0..=64 => 3,
        65..=128 => 2,
        _ => 1,
    };
    let chunks = num_kv_heads * (num_heads / num_kv_heads).div_ceil(DECODE_HEADS);
    // A window may begin inside of a piece.
    let pieces = num_seqs * (max_context.div_ceil(MIN_DECODE_SPLIT) + 1);
    (pieces * chunks).clamp(1, num_sms as usize * ctas_per_sm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_logits_are_split_into_one_wave() {
        for (num_rows, expected) in [(0, 38), (1, 38), (16, 33), (64, 8), (512, 1), (4096, 1)] {
            assert_eq!(sample_splits(num_rows, 151_936, 8, 4, 132), expected, "{num_rows} rows");
        }
        assert_eq!(sample_splits(1, 100, 8, 4, 132), 1);
        assert_eq!(sample_splits(1, 1 << 20, 8, 4, 132), 64);
    }

    #[test]
    fn padded_tokens_cover_and_fit() {
        for (num_tokens, max, expected) in [(5, 8192, 16), (16, 8192, 16), (257, 8192, 320), (1025, 8192, 1152), (20, 24, 24), (24, 24, 24)]
        {
            assert_eq!(padded_tokens(num_tokens, max), expected, "{num_tokens} of {max}");
        }
    }

    #[test]
    fn decode_ctas_follow_the_pieces_up_to_what_runs_at_once() {
        for (seqs, heads, kv_heads, head_dim, context, expected) in [
            (1, 28, 4, 128, 256, 12),
            (1, 28, 4, 128, 1024, 36),
            (3, 24, 2, 64, 1, 24),
            (1, 16, 1, 128, 16384, 258),
            (64, 28, 4, 128, 640, 264),
            (64, 14, 2, 64, 640, 396),
            (64, 8, 4, 256, 640, 132),
            (0, 4, 4, 128, 0, 1),
        ] {
            let ctas = decode_ctas(seqs, heads, kv_heads, head_dim, context, 132);
            assert_eq!(ctas, expected, "{seqs} x {context}, {heads} / {kv_heads} x {head_dim}");
        }
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
}
