//! Shape to launch configuration. Pure, so that it is tested without a GPU.

mod products;

pub use products::{
    GpuClass, GroupedPlan, GroupedShape, MAX_SKINNY_TOKENS, ProductPlan, ProductShape, SkinnyKernel, SkinnyPlan, SkinnyShape, SumOrder,
    WidePlan, grouped_plan, product_plan, skinny_plan, wide_plan,
};

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
}
