//! What the device keeps of every sampler slot: edits of its logits and counts of its tokens, set when a sequence is admitted; counts are
//! kept up to date by the kernels that choose tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use pagoda_kernels::ops::sampling::{
    EDIT_BYTES, IN_PROMPT, RECORD_BYTES, SampleRecord, count_stride, mask_words, set_counts, workspace_bytes,
};
use pagoda_kernels::{DeviceMemory, Gpu};

use super::super::staging::Staging;
use super::{engine_error, is_on_host};
use crate::error::Result;
use crate::sampling::params::MAX_TOKEN_LIST;
use crate::sampling::{SampleRow, TokenHistory};

/// Edits of a slot: logit_bias, bad words, stop tokens and the end-of-sequence tokens of a model, of which there are a few.
pub const MAX_EDITS: usize = 3 * MAX_TOKEN_LIST + 128;

/// What the host knows of a slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotInfo {
    /// Edits that always hold.
    pub num_edits: u32,
    /// Edits before `min_tokens`: stop tokens too.
    pub num_edits_early: u32,
    /// Whether its tokens are counted.
    pub penalized: bool,
}

/// The slots, and the memory of a call.
pub struct Slots {
    /// Elements of a row of logits.
    pub vocab: usize,
    /// Rows of a call at most: one a slot.
    pub max_rows: usize,
    /// `[slots, MAX_EDITS]`.
    pub edits: DeviceMemory,
    /// `[slots, count_stride]` u16.
    pub counts: DeviceMemory,
    /// `[slots, mask_words]` u32: of the rows of a call.
    pub masks: DeviceMemory,
    /// `[slots]` records of a call.
    pub records: DeviceMemory,
    /// What they are now.
    uploaded: Vec<u8>,
    /// What the kernels of a call hand on.
    pub workspace: DeviceMemory,
    /// Tokens and counts on their way to `counts`: `[2, vocab]` i32.
    admitted: DeviceMemory,
    slots: Vec<SlotInfo>,
}

/// Bytes of each part.
struct Parts {
    edits: usize,
    counts: usize,
    masks: usize,
    records: usize,
    workspace: usize,
    admitted: usize,
}

impl Parts {
    fn new(max_slots: usize, vocab: usize) -> Result<Parts> {
        Ok(Parts {
            edits: max_slots * MAX_EDITS * EDIT_BYTES,
            counts: max_slots * count_stride(vocab) * 2,
            masks: max_slots * mask_words(vocab) * 4,
            records: max_slots * RECORD_BYTES,
            workspace: workspace_bytes(vocab, max_slots).map_err(engine_error)?,
            admitted: 2 * vocab * 4,
        })
    }
}

/// Bytes that sampling takes for so many slots.
///
/// # Errors
/// A vocabulary too large.
pub fn sampler_bytes(max_slots: usize, vocab: usize) -> Result<usize> {
    let parts = Parts::new(max_slots, vocab)?;
    Ok(parts.edits + parts.counts + parts.masks + parts.records + parts.workspace + parts.admitted)
}

impl Slots {
    /// Takes the memory.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: &Arc<Gpu>, max_slots: usize, vocab: usize) -> Result<Slots> {
        let parts = Parts::new(max_slots, vocab)?;
        let zeroed = |bytes| DeviceMemory::zeroed(gpu, bytes).map_err(engine_error);
        Ok(Slots {
            vocab,
            max_rows: max_slots,
            edits: zeroed(parts.edits)?,
            counts: zeroed(parts.counts)?,
            masks: zeroed(parts.masks)?,
            records: zeroed(parts.records)?,
            uploaded: Vec::new(),
            workspace: zeroed(parts.workspace)?,
            admitted: zeroed(parts.admitted)?,
            slots: vec![SlotInfo::default(); max_slots],
        })
    }

    /// Nothing of what was uploaded is there any more; no slot lives.
    pub fn forget(&mut self) {
        self.uploaded.clear();
        self.slots.fill(SlotInfo::default());
    }

    /// What is known of a slot.
    pub fn slot(&self, index: usize) -> SlotInfo {
        self.slots[index]
    }

    /// Queues the state of a slot that begins a new life.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn admit(&mut self, row: &SampleRow<'_>, staging: &mut Staging, gpu: &Gpu) -> Result<()> {
        self.slots[row.slot] = SlotInfo::default();
        if is_on_host(row.params) {
            return Ok(());
        }
        let (edits, num_edits) = edits_of(row, self.vocab);
        assert!(edits.len() <= MAX_EDITS, "{} edits of the logits of a sequence", edits.len());
        if !edits.is_empty() {
            let bytes: Vec<u8> = edits.iter().flat_map(|&(token, value)| [token.to_ne_bytes(), value.to_ne_bytes()]).flatten().collect();
            staging.upload(self.edits.bytes().from(row.slot * MAX_EDITS * EDIT_BYTES), &bytes)?;
        }
        let penalized = TokenHistory::is_kept_for(row.params);
        if penalized {
            self.upload_counts(row, staging, gpu)?;
        }
        self.slots[row.slot] = SlotInfo { num_edits, num_edits_early: edits.len() as u32, penalized };
        Ok(())
    }

    fn upload_counts(&self, row: &SampleRow<'_>, staging: &mut Staging, gpu: &Gpu) -> Result<()> {
        let counts = counts_of(row.history, self.vocab);
        let (tokens, values): (Vec<i32>, Vec<i32>) = counts.into_iter().map(|(token, count)| (token as i32, i32::from(count))).unzip();
        let (on_device, values_on_device) = (self.admitted.bytes(), self.admitted.bytes().from(self.vocab * 4));
        staging.upload(on_device, bytemuck::cast_slice(&tokens))?;
        staging.upload(values_on_device, bytemuck::cast_slice(&values))?;
        let slot = self.counts.bytes().from(row.slot * count_stride(self.vocab) * 2);
        let set = |stream| set_counts(slot, on_device, values_on_device, tokens.len(), self.vocab, stream);
        gpu.stream().and_then(set).map_err(engine_error)
    }

    /// Queues the records of a call, unless they are those of the last one: a batch of greedy rows that nothing joined or left.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn upload_records(&mut self, records: &[SampleRecord], staging: &mut Staging) -> Result<()> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        records.iter().for_each(|record| bytes.extend_from_slice(&record.to_bytes()));
        if bytes != self.uploaded {
            self.uploaded.clear();
            staging.upload(self.records.bytes(), &bytes)?;
            self.uploaded = bytes;
        }
        Ok(())
    }

    /// Queues the masks of a call, in one copy.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn upload_masks(&self, masks: &[&[u32]], staging: &mut Staging) -> Result<()> {
        let row_bytes = mask_words(self.vocab) * 4;
        assert!(masks.iter().all(|mask| mask.len() * 4 == row_bytes), "words of a mask of {} tokens", self.vocab);
        staging.upload_with(self.masks.bytes(), masks.len() * row_bytes, row_bytes, |start, piece| {
            for (mask, bytes) in masks[start / row_bytes..].iter().zip(piece.chunks_exact_mut(row_bytes)) {
                bytes.copy_from_slice(bytemuck::cast_slice(mask));
            }
            Ok(())
        })
    }
}

/// Edits in the order in which the shared sampler makes them, stop tokens last; and how many come before these.
fn edits_of(row: &SampleRow<'_>, vocab: usize) -> (Vec<(u32, f32)>, u32) {
    let masked = |&token: &u32| (token, f32::NEG_INFINITY);
    let inside = |&(token, _): &(u32, f32)| (token as usize) < vocab;
    let mut edits: Vec<(u32, f32)> = row.params.logit_bias.iter().copied().filter(inside).collect();
    edits.extend(row.params.bad_words.iter().filter_map(|word| word.last()).map(masked).filter(inside));
    let num_always = edits.len() as u32;
    if row.params.min_tokens > 0 {
        edits.extend(row.stop_ids.iter().map(masked).filter(inside));
    }
    (edits, num_always)
}

/// Token -> bit of the prompt and times in the output.
fn counts_of(history: &TokenHistory, vocab: usize) -> BTreeMap<u32, u16> {
    let mut counts: BTreeMap<u32, u16> = history.prompt.iter().map(|&token| (token, IN_PROMPT)).collect();
    for (&token, &count) in &history.output_counts {
        *counts.entry(token).or_insert(0) |= count.min(u32::from(IN_PROMPT) - 1) as u16;
    }
    counts.retain(|&token, _| (token as usize) < vocab);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;

    fn row<'a>(params: &'a SamplingParams, history: &'a TokenHistory) -> SampleRow<'a> {
        let stop_ids = &[7, 99];
        SampleRow { logits_row: 0, slot: 0, params, seed: 0, stop_ids, output_index: 0, choice: 0, history, allowed: None }
    }

    #[test]
    fn edits_keep_the_order_of_the_shared_sampler() {
        let history = TokenHistory::default();
        let params = SamplingParams {
            logit_bias: vec![(5, 1.0), (3, -2.0), (5, 0.5)],
            bad_words: vec![vec![4]],
            min_tokens: 2,
            ..SamplingParams::default()
        };
        let masked = f32::NEG_INFINITY;
        assert_eq!(edits_of(&row(&params, &history), 50), (vec![(5, 1.0), (3, -2.0), (5, 0.5), (4, masked), (7, masked)], 4));
        let params = SamplingParams { min_tokens: 0, ..params };
        assert_eq!(edits_of(&row(&params, &history), 5), (vec![(3, -2.0), (4, masked)], 2));
    }

    #[test]
    fn counts_join_prompt_and_output() {
        let params = SamplingParams { repetition_penalty: 1.2, ..SamplingParams::default() };
        let mut history = TokenHistory::new(&params, &[3, 9, 3], &[9, 9, 4]);
        assert_eq!(counts_of(&history, 50), BTreeMap::from([(3, 0x8000), (4, 1), (9, 0x8002)]));
        assert_eq!(counts_of(&history, 9), BTreeMap::from([(3, 0x8000), (4, 1)]));
        history.output_counts.insert(4, 1 << 20);
        assert_eq!(counts_of(&history, 50)[&4], 0x7fff);
    }
}
