//! Sampling: passes over rows of logits on the device, results through pinned memory; the host waits in `sampled` alone.
//!
//! Only rows with bad words of several tokens go to the host and through the sampler that all devices share: `sample` waits for those.

mod host;
mod results;
mod slots;

use std::sync::Arc;

use pagoda_kernels::heuristics::sample_splits;
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::sampling::{Pass, RowKind, SampleBuffers, SampleRecord, sample};
use pagoda_kernels::{DeviceMemory, Gpu, PinnedMemory};

pub use self::results::CudaPending;
use self::results::{Results, RowResult};
pub use self::slots::sampler_bytes;
use self::slots::{MAX_EDITS, Slots};
use super::{CudaDevice, CudaInts, engine_error};
use crate::device::{DType, Tensor};
use crate::error::Result;
use crate::sampling::sampler::{MIN_TEMPERATURE, uniform};
use crate::sampling::{SampleRow, SamplingParams, TokenLogprobs};

/// Integers of pairs of blocks that are copied in one call.
const MAX_PAIR_INTS: usize = 1 << 16;
/// Warps of a CTA of `Pass::Scan`, and of the other passes.
const SCAN_WARPS: usize = 8;
const WARPS: usize = 16;
/// CTAs that a multiprocessor holds, of the same.
const SCAN_CTAS: usize = 4;
const CTAS: usize = 2;

/// What sampling keeps on the device, and host memory for rows that are sampled there.
pub struct SampleScratch {
    gpu: Arc<Gpu>,
    pairs: DeviceMemory,
    host: Option<PinnedMemory>,
    slots: Option<Slots>,
    results: Results,
}

impl SampleScratch {
    /// Takes what does not depend on the model.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: &Arc<Gpu>) -> Result<SampleScratch> {
        let pairs = DeviceMemory::zeroed(gpu, MAX_PAIR_INTS * 4).map_err(engine_error)?;
        Ok(SampleScratch { gpu: gpu.clone(), pairs, host: None, slots: None, results: Results::new(gpu) })
    }

    /// Room for `len` i32 of block pairs: its use ends, in stream order, before the next op takes it.
    pub fn pairs(&self, len: usize) -> Result<DeviceBytes> {
        assert!(len <= MAX_PAIR_INTS, "{} pairs of blocks", len / 2);
        Ok(self.pairs.bytes())
    }

    /// The device's memory does not hold any more what it held.
    pub fn forget(&mut self) {
        if let Some(slots) = &mut self.slots {
            slots.forget();
        }
    }

    fn slots(&mut self) -> &mut Slots {
        self.slots.as_mut().expect("prepare_sampling comes before sampling")
    }
}

/// Whether rows with these parameters are sampled on the host.
pub(super) fn is_on_host(params: &SamplingParams) -> bool {
    params.bad_words.iter().any(|word| word.len() > 1)
}

/// What the device needs of a row; `out` is its place among the results.
fn record_of(row: &SampleRow<'_>, out: usize, mask_row: Option<u32>, slots: &Slots) -> SampleRecord {
    let (p, slot) = (row.params, slots.slot(row.slot));
    let num_edits = if row.output_index < p.min_tokens { slot.num_edits_early } else { slot.num_edits };
    let inv_temperature = if p.temperature < MIN_TEMPERATURE { 0.0 } else { 1.0 / p.temperature };
    SampleRecord {
        // Greedy rows ask for nothing that changes from step to step.
        uniform: if inv_temperature == 0.0 { 0.0 } else { uniform(row.seed, row.choice, row.output_index) },
        logits_row: row.logits_row as u32,
        slot: row.slot as u32,
        out: out as u32,
        mask_row,
        num_edits,
        penalized: slot.penalized,
        num_logprobs: p.logprobs,
        given: None,
        inv_temperature,
        top_k: p.top_k,
        top_p: p.top_p,
        min_p: p.min_p,
        repetition_penalty: p.repetition_penalty,
        presence_penalty: p.presence_penalty,
        frequency_penalty: p.frequency_penalty,
    }
}

impl CudaDevice {
    pub(super) fn prepare_slots(&self, max_slots: usize, vocab: usize) -> Result<()> {
        let mut scratch = self.sample_scratch.lock();
        scratch.slots = Some(Slots::new(&self.gpu, max_slots, vocab)?);
        scratch.results.prepare(max_slots)
    }

    pub(super) fn admit_rows(&self, rows: &[SampleRow<'_>]) -> Result<()> {
        let mut scratch = self.sample_scratch.lock();
        let mut staging = self.staging.lock();
        rows.iter().try_for_each(|row| scratch.slots().admit(row, &mut staging, &self.gpu))
    }

    pub(super) fn sample_rows(
        &self,
        logits: &Tensor<CudaDevice>,
        rows: &[SampleRow<'_>],
        last_tokens: &mut CudaInts,
    ) -> Result<CudaPending> {
        assert_eq!(logits.dtype, DType::F32, "logits");
        assert!(rows.iter().all(|row| row.logits_row < logits.rows), "a sampled row is one of the {} logits rows", logits.rows);
        let (on_host, on_device): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|&i| is_on_host(rows[i].params));
        let mut scratch = self.sample_scratch.lock();
        let mut records = Vec::with_capacity(on_device.len());
        let mut masks = Vec::new();
        for (out, &i) in on_device.iter().enumerate() {
            let mask_row = rows[i].allowed.map(|_| masks.len() as u32);
            masks.extend(rows[i].allowed);
            records.push(record_of(&rows[i], out, mask_row, scratch.slots()));
        }
        scratch.slots().upload_masks(&masks, &mut self.staging.lock())?;
        let entry =
            if records.is_empty() { None } else { Some(self.queue_records(&mut scratch, logits, last_tokens.bytes(), &mut records)?) };
        let mut results = vec![RowResult::Device { out: 0, logprobs: false }; rows.len()];
        for (out, &i) in on_device.iter().enumerate() {
            results[i] = RowResult::Device { out, logprobs: rows[i].params.logprobs.is_some() };
        }
        for (&i, output) in on_host.iter().zip(self.sample_on_host(&mut scratch, logits, rows, &on_host, last_tokens)?) {
            results[i] = RowResult::Host(output);
        }
        Ok(CudaPending { entry, rows: results })
    }

    /// Uploads the records and queues the passes that they need.
    fn queue_records(
        &self,
        scratch: &mut SampleScratch,
        logits: &Tensor<CudaDevice>,
        last_tokens: DeviceBytes,
        records: &mut [SampleRecord],
    ) -> Result<results::Entry> {
        records.sort_by_key(SampleRecord::kind);
        let entry = scratch.results.take()?;
        let slots = scratch.slots();
        assert!(records.len() <= slots.max_rows, "{} rows to sample in {} slots", records.len(), slots.max_rows);
        assert_eq!(logits.cols, slots.vocab, "columns of logits");
        slots.upload_records(records, &mut self.staging.lock())?;
        let buffers = SampleBuffers {
            tokens: entry.tokens(),
            logprobs: entry.logprobs(),
            last_tokens,
            logits: logits.buffer.bytes(),
            records: slots.records.bytes(),
            masks: slots.masks.bytes(),
            edits: slots.edits.bytes(),
            max_edits: MAX_EDITS,
            counts: slots.counts.bytes(),
            workspace: slots.workspace.bytes(),
            max_rows: slots.max_rows,
            vocab: slots.vocab,
        };
        let count = |kind| records.iter().filter(|record| record.kind() == kind).count();
        let few_best = count(RowKind::Greedy)..count(RowKind::Greedy) + count(RowKind::FewBest);
        let filtered = few_best.end..few_best.end + count(RowKind::Filtered);
        let logprobs = if records.iter().any(|record| record.num_logprobs.is_some()) { records.len() } else { 0 };
        let passes = [
            (Pass::Scan, 0..records.len()),
            (Pass::Pick, few_best.clone()),
            (Pass::Filter, filtered.clone()),
            (Pass::Draw, filtered.end..records.len()),
            (Pass::Logprobs, 0..logprobs),
        ];
        let num_sms = self.gpu.info().num_sms as usize;
        let stream = self.gpu.stream().map_err(engine_error)?;
        for (pass, range) in passes.into_iter().filter(|(_, range)| !range.is_empty()) {
            let (warps, ctas) = if pass == Pass::Scan { (SCAN_WARPS, SCAN_CTAS) } else { (WARPS, CTAS) };
            let splits = sample_splits(range.len(), slots.vocab, warps, ctas, num_sms);
            sample(pass, &buffers, range, splits, stream).map_err(engine_error)?;
        }
        entry.mark()?;
        Ok(entry)
    }

    pub(super) fn logprobs_of_rows(&self, logits: &Tensor<CudaDevice>, rows: &[(usize, u32)], top: usize) -> Result<Vec<TokenLogprobs>> {
        assert_eq!(logits.dtype, DType::F32, "logits");
        assert!(rows.iter().all(|&(row, _)| row < logits.rows), "rows of {}", logits.rows);
        let mut entries = Vec::with_capacity(rows.len());
        let mut scratch = self.sample_scratch.lock();
        let max_rows = scratch.slots().max_rows;
        for group in rows.chunks(max_rows) {
            let asked = |(out, &(row, token)): (usize, &(usize, u32))| SampleRecord {
                uniform: 0.0,
                logits_row: row as u32,
                slot: 0,
                out: out as u32,
                mask_row: None,
                num_edits: 0,
                penalized: false,
                num_logprobs: Some(top as u32),
                given: Some(token),
                inv_temperature: 0.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                repetition_penalty: 1.0,
                presence_penalty: 0.0,
                frequency_penalty: 0.0,
            };
            let mut records: Vec<SampleRecord> = group.iter().enumerate().map(asked).collect();
            // Nothing is written to last_tokens for given tokens.
            let nowhere = scratch.pairs.bytes();
            let entry = self.queue_records(&mut scratch, logits, nowhere, &mut records)?;
            entry.wait()?;
            entries.extend(group.iter().enumerate().map(|(out, &(_, token))| entry.token_logprobs(out, token)));
            scratch.results.give_back(entry);
        }
        Ok(entries)
    }
}
