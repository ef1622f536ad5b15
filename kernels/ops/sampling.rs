//! Sampling on the device (cuda/sampling). Asynchronous on `stream`. A call of the sampler is a list of records and one launch a pass.

use std::ops::Range;

use super::{DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Most alternatives beside a token.
pub const MAX_LOGPROBS: usize = sys::PAGODA_MAX_LOGPROBS as usize;
/// Bytes of a record on the device.
pub const RECORD_BYTES: usize = size_of::<sys::pagoda_sample_row>();
/// Bytes of what is said of one token.
pub const LOGPROBS_BYTES: usize = size_of::<sys::pagoda_token_logprobs>();
/// Bytes of an edit.
pub const EDIT_BYTES: usize = size_of::<sys::pagoda_token_edit>();
/// Largest vocabulary.
pub const MAX_VOCAB: usize = 1 << 20;
/// Largest top_k that `Pass::Pick` chooses among (`kMaxPick` in cuda/sampling/workspace.cuh).
pub const MAX_PICK: u32 = 64;
/// A count's bit that says the token is in the prompt; the bits below count it in the output.
pub const IN_PROMPT: u16 = 0x8000;

/// One row to sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRecord {
    /// In [0, 1), for the draw.
    pub uniform: f64,
    /// Row of the logits.
    pub logits_row: u32,
    /// Slot of last_tokens, edits and counts.
    pub slot: u32,
    /// Index of the results.
    pub out: u32,
    /// Row of masks of allowed tokens.
    pub mask_row: Option<u32>,
    /// Edits of the slot that hold now.
    pub num_edits: u32,
    /// Whether the slot's counts are read, and the token added to them.
    pub penalized: bool,
    /// Alternatives to report.
    pub num_logprobs: Option<u32>,
    /// A token that is not sampled but asked about.
    pub given: Option<u32>,
    /// 1 / temperature; 0: greedy.
    pub inv_temperature: f32,
    /// 0: all.
    pub top_k: u32,
    /// 1: all.
    pub top_p: f32,
    /// 0: all.
    pub min_p: f32,
    /// 1: none.
    pub repetition_penalty: f32,
    /// 0: none.
    pub presence_penalty: f32,
    /// 0: none.
    pub frequency_penalty: f32,
}

/// Which passes a row needs after the scan. Records of a call are sorted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKind {
    /// None: the largest logit, or a given token.
    Greedy,
    /// `Pick`.
    FewBest,
    /// `Filter`.
    Filtered,
    /// `Draw`.
    Plain,
}

impl SampleRecord {
    /// The passes it needs.
    pub fn kind(&self) -> RowKind {
        if self.given.is_some() || self.inv_temperature == 0.0 || self.top_k == 1 {
            RowKind::Greedy
        } else if self.top_k > 1 && self.top_k <= MAX_PICK {
            RowKind::FewBest
        } else if self.top_k > 0 || self.top_p < 1.0 {
            RowKind::Filtered
        } else {
            RowKind::Plain
        }
    }

    /// As the device reads it.
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let optional = |value: Option<u32>| value.map_or(-1, |value| value as i32);
        let raw = sys::pagoda_sample_row {
            uniform: self.uniform,
            logits_row: self.logits_row as i32,
            slot: self.slot as i32,
            out: self.out as i32,
            mask_row: optional(self.mask_row),
            num_edits: self.num_edits as i32,
            penalized: i32::from(self.penalized),
            num_logprobs: optional(self.num_logprobs),
            given: optional(self.given),
            inv_temperature: self.inv_temperature,
            top_k: self.top_k.min(i32::MAX as u32) as i32,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            reserved: [0; 3],
        };
        // SAFETY: 80 bytes of numbers without padding (one f64, 15 of 4 bytes, 12 reserved).
        unsafe { std::mem::transmute(raw) }
    }
}

/// What was said of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRecord {
    /// Its log probability.
    pub logprob: f32,
    /// 1 + number of larger logits.
    pub rank: u32,
    /// The best, descending.
    pub top: Vec<(u32, f32)>,
}

impl TokenRecord {
    /// Entry `index` of the results that `Pass::Logprobs` wrote.
    pub fn read(results: &[u8], index: usize) -> TokenRecord {
        let bytes = &results[index * LOGPROBS_BYTES..][..LOGPROBS_BYTES];
        let word = |at: usize| [bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]];
        let count = (u32::from_ne_bytes(word(2)) as usize).min(MAX_LOGPROBS);
        let entry = |i: usize| (u32::from_ne_bytes(word(3 + i)), f32::from_ne_bytes(word(3 + MAX_LOGPROBS + i)));
        TokenRecord { logprob: f32::from_ne_bytes(word(0)), rank: u32::from_ne_bytes(word(1)), top: (0..count).map(entry).collect() }
    }
}

/// A pass over records of a call, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Every record: edits, the largest logit; greedy tokens are chosen.
    Scan,
    /// Records of `FewBest`.
    Pick,
    /// Records of `Filtered`.
    Filter,
    /// Records of `Plain`.
    Draw,
    /// Every record; those without `num_logprobs` are passed over.
    Logprobs,
}

/// Memory of a call of the sampler.
#[derive(Clone, Copy, Debug)]
pub struct SampleBuffers {
    /// `[records]` i32, written: device memory or pinned host memory.
    pub tokens: DeviceBytes,
    /// `[records]` of `LOGPROBS_BYTES`, written: likewise.
    pub logprobs: DeviceBytes,
    /// i32, one a slot, written.
    pub last_tokens: DeviceBytes,
    /// `[any, vocab]` f32.
    pub logits: DeviceBytes,
    /// `[records]` of `RECORD_BYTES`.
    pub records: DeviceBytes,
    /// `[any, mask_words(vocab)]` u32.
    pub masks: DeviceBytes,
    /// `[slots, max_edits]` of `EDIT_BYTES`: i32 token, f32 added to its logit, -inf masks it.
    pub edits: DeviceBytes,
    /// Row stride of `edits`.
    pub max_edits: usize,
    /// `[slots, count_stride(vocab)]` u16.
    pub counts: DeviceBytes,
    /// `workspace_bytes`, zeroed once.
    pub workspace: DeviceBytes,
    /// Records of a call at most, as `workspace_bytes` was told.
    pub max_rows: usize,
    /// Elements of a row of logits.
    pub vocab: usize,
}

/// u32 of a row of masks.
pub const fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// u16 of a slot's counts.
pub const fn count_stride(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// Bytes of the workspace for calls of `max_rows` records; 0 without kernels.
///
/// # Errors
/// `InvalidArgument` for a vocabulary above `MAX_VOCAB`.
pub fn workspace_bytes(vocab: usize, max_rows: usize) -> Result<usize> {
    const OP: &str = "sample_workspace_bytes";
    if vocab == 0 || vocab > MAX_VOCAB || max_rows == 0 {
        return Err(invalid(OP, format!("a vocabulary of {vocab}, {max_rows} rows")));
    }
    let (vocab, max_rows) = (int(OP, "vocab", vocab)?, int(OP, "max_rows", max_rows)?);
    #[cfg(have_cuda_kernels)]
    {
        let mut bytes = 0;
        // SAFETY: writes one i64 to a live local.
        let status = unsafe { sys::pagoda_sample_workspace_bytes(vocab, max_rows, &mut bytes) };
        crate::status::check(OP, status, || format!("{vocab} {max_rows}"))?;
        Ok(bytes as usize)
    }
    #[cfg(not(have_cuda_kernels))]
    {
        let _ = (vocab, max_rows);
        Ok(0)
    }
}

/// Runs one pass over `records`, with `num_splits` CTAs a row (heuristics.rs). Every range named in a record is the caller's promise.
///
/// # Errors
/// `InvalidArgument` for a range too short, `NotBuilt`, `Cuda`.
pub fn sample(pass: Pass, b: &SampleBuffers, records: Range<usize>, num_splits: usize, stream: Stream) -> Result<()> {
    const OP: &str = "sample";
    check_range(OP, "tokens", b.tokens, records.end * 4, 4)?;
    check_range(OP, "logprobs", b.logprobs, records.end * LOGPROBS_BYTES, 4)?;
    check_range(OP, "records", b.records, records.end * RECORD_BYTES, 16)?;
    check_range(OP, "last_tokens", b.last_tokens, 0, 4)?;
    check_range(OP, "logits", b.logits, b.vocab * 4, 16)?;
    check_range(OP, "counts", b.counts, count_stride(b.vocab) * 2, 8)?;
    check_range(OP, "edits", b.edits, b.max_edits * EDIT_BYTES, 8)?;
    check_range(OP, "masks", b.masks, mask_words(b.vocab) * 4, 4)?;
    check_range(OP, "workspace", b.workspace, workspace_bytes(b.vocab, b.max_rows)?, 256)?;
    let raw = sys::pagoda_sample_params {
        tokens: b.tokens.as_ptr(),
        logprobs: b.logprobs.as_ptr(),
        last_tokens: b.last_tokens.as_ptr(),
        logits: b.logits.as_ptr::<f32>(),
        rows: b.records.as_ptr::<sys::pagoda_sample_row>(),
        masks: b.masks.as_ptr::<u32>(),
        edits: b.edits.as_ptr::<sys::pagoda_token_edit>(),
        counts: b.counts.as_ptr(),
        workspace: b.workspace.as_ptr(),
        first_row: int(OP, "records", records.start)?,
        num_rows: int(OP, "records", records.len())?,
        max_rows: int(OP, "max_rows", b.max_rows)?,
        vocab: int(OP, "vocab", b.vocab)?,
        mask_stride: int(OP, "masks", mask_words(b.vocab))?,
        edit_stride: int(OP, "max_edits", b.max_edits)?,
        count_stride: int(OP, "counts", count_stride(b.vocab))?,
        num_splits: int(OP, "num_splits", num_splits)?,
    };
    match pass {
        Pass::Scan => launch!(pagoda_sample_scan, raw, stream),
        Pass::Pick => launch!(pagoda_sample_pick, raw, stream),
        Pass::Filter => launch!(pagoda_sample_filter, raw, stream),
        Pass::Draw => launch!(pagoda_sample_draw, raw, stream),
        Pass::Logprobs => launch!(pagoda_sample_logprobs, raw, stream),
    }
}

/// counts[..] = 0, then counts[tokens[i]] = values[i]: a slot begins a new life. counts: one slot's; tokens (distinct), values: i32.
///
/// # Errors
/// See `sample`.
pub fn set_counts(counts: DeviceBytes, tokens: DeviceBytes, values: DeviceBytes, count: usize, vocab: usize, stream: Stream) -> Result<()> {
    const OP: &str = "set_counts";
    check_range(OP, "counts", counts, count_stride(vocab) * 2, 8)?;
    check_range(OP, "tokens", tokens, count * 4, 4)?;
    check_range(OP, "values", values, count * 4, 4)?;
    let raw = sys::pagoda_set_counts_params {
        counts: counts.as_ptr(),
        tokens: tokens.as_ptr::<i32>(),
        values: values.as_ptr::<i32>(),
        num_tokens: int(OP, "tokens", count)?,
        count_stride: int(OP, "counts", count_stride(vocab))?,
    };
    launch!(pagoda_set_counts, raw, stream)
}
