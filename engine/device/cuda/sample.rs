//! Sampling: plain greedy on the device; every other row goes to the host and through the sampler all devices share.

use std::sync::Arc;

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::sampling::{Argmax, argmax};
use pagoda_kernels::ops::step::scatter_ints;
use pagoda_kernels::{DeviceMemory, Gpu, PinnedMemory};
use rayon::prelude::*;

use super::{CudaDevice, CudaInts, engine_error};
use crate::device::{DType, Tensor};
use crate::error::Result;
use crate::sampling::{SampleOutput, SampleRow, TokenLogprobs, sample_row, token_logprobs};

/// Rows sampled in one call at most, and pairs of blocks copied in one call.
const MAX_ROWS: usize = 1 << 15;
/// Bytes of logits on the host at a time; at least one row is taken.
const HOST_BYTES: usize = 32 << 20;
/// Temperatures below this are greedy, as in the shared sampler.
const MIN_TEMPERATURE: f32 = 1e-5;

/// Small integer buffers on the device, and host memory for rows of logits.
pub struct SampleScratch {
    gpu: Arc<Gpu>,
    /// Two vectors of `MAX_ROWS` i32, then the tokens.
    ints: DeviceMemory,
    host: Option<PinnedMemory>,
}

impl SampleScratch {
    /// Takes the device's part.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: &Arc<Gpu>) -> Result<SampleScratch> {
        let ints = DeviceMemory::zeroed(gpu, 3 * MAX_ROWS * 4).map_err(engine_error)?;
        Ok(SampleScratch { gpu: gpu.clone(), ints, host: None })
    }

    fn vector(&self, index: usize) -> DeviceBytes {
        self.ints.bytes().from(index * MAX_ROWS * 4)
    }

    /// Room for `len` i32 of block pairs: its use ends, in stream order, before the next op takes it.
    pub fn pairs(&self, len: usize) -> Result<DeviceBytes> {
        assert!(len <= 2 * MAX_ROWS, "{} pairs of blocks", len / 2);
        Ok(self.vector(0))
    }

    /// Host memory of at least `len` bytes.
    fn host(&mut self, len: usize) -> Result<&mut [u8]> {
        if self.host.as_ref().is_none_or(|host| host.as_slice().len() < len) {
            self.host = None;
            self.host = Some(PinnedMemory::zeroed(&self.gpu, len).map_err(engine_error)?);
        }
        let host = self.host.as_mut().expect("taken above");
        Ok(&mut host.as_mut_slice()[..len])
    }
}

/// Whether the row's token is the largest logit, with nothing before or after.
fn is_plain_greedy(row: &SampleRow<'_>) -> bool {
    let p = row.params;
    let greedy = p.temperature < MIN_TEMPERATURE || p.top_k == 1;
    let changes_logits =
        !p.logit_bias.is_empty() || !p.bad_words.is_empty() || (row.output_index < p.min_tokens && !row.stop_ids.is_empty());
    let penalised = p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
    greedy && !changes_logits && !penalised && p.logprobs.is_none()
}

impl CudaDevice {
    pub(super) fn sample_rows(
        &self,
        logits: &Tensor<CudaDevice>,
        rows: &[SampleRow<'_>],
        last_tokens: &mut CudaInts,
    ) -> Result<Vec<SampleOutput>> {
        assert_eq!(logits.dtype, DType::F32, "logits");
        assert!(rows.len() <= MAX_ROWS && rows.iter().all(|row| row.logits_row < logits.rows), "{} rows to sample", rows.len());
        let (greedy, other): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|&i| is_plain_greedy(&rows[i]));
        let mut outputs = vec![SampleOutput { token: 0, logprobs: None }; rows.len()];
        self.sample_greedy(logits, rows, &greedy, last_tokens, &mut outputs)?;
        self.sample_on_host(logits, rows, &other, last_tokens, &mut outputs)?;
        Ok(outputs)
    }

    fn sample_greedy(
        &self,
        logits: &Tensor<CudaDevice>,
        rows: &[SampleRow<'_>],
        greedy: &[usize],
        last_tokens: &CudaInts,
        outputs: &mut [SampleOutput],
    ) -> Result<()> {
        if greedy.is_empty() {
            return Ok(());
        }
        let scratch = self.sample_scratch.lock();
        let pick = |f: &dyn Fn(&SampleRow<'_>) -> usize| greedy.iter().map(|&i| f(&rows[i]) as i32).collect::<Vec<i32>>();
        let params = Argmax {
            tokens: scratch.vector(2),
            last_tokens: last_tokens.bytes(),
            logits: logits.buffer.bytes(),
            rows: scratch.vector(0),
            slots: scratch.vector(1),
            num_rows: greedy.len(),
            vocab: logits.cols,
        };
        let mut staging = self.staging.lock();
        staging.upload(params.rows, bytemuck::cast_slice(&pick(&|row| row.logits_row)))?;
        staging.upload(params.slots, bytemuck::cast_slice(&pick(&|row| row.slot)))?;
        self.gpu.stream().and_then(|stream| argmax(&params, stream)).map_err(engine_error)?;
        let mut tokens = vec![0i32; greedy.len()];
        self.gpu.copy_to_host(bytemuck::cast_slice_mut(&mut tokens), params.tokens).map_err(engine_error)?;
        for (&i, &token) in greedy.iter().zip(&tokens) {
            outputs[i].token = token as u32;
        }
        Ok(())
    }

    fn sample_on_host(
        &self,
        logits: &Tensor<CudaDevice>,
        rows: &[SampleRow<'_>],
        other: &[usize],
        last_tokens: &CudaInts,
        outputs: &mut [SampleOutput],
    ) -> Result<()> {
        if other.is_empty() {
            return Ok(());
        }
        let row_bytes = logits.cols * 4;
        let mut scratch = self.sample_scratch.lock();
        for group in other.chunks((HOST_BYTES / row_bytes).max(1)) {
            let host = scratch.host(group.len() * row_bytes)?;
            for (&i, row) in group.iter().zip(host.chunks_exact_mut(row_bytes)) {
                let on_device = logits.buffer.bytes().from(rows[i].logits_row * row_bytes);
                self.gpu.copy_to_host(row, on_device).map_err(engine_error)?;
            }
            let values: &mut [f32] = bytemuck::cast_slice_mut(host);
            let sampled: Vec<SampleOutput> =
                group.par_iter().zip(values.par_chunks_exact_mut(logits.cols)).map(|(&i, row)| sample_row(row, &rows[i])).collect();
            for (&i, output) in group.iter().zip(sampled) {
                outputs[i] = output;
            }
        }
        let slots: Vec<i32> = other.iter().map(|&i| rows[i].slot as i32).collect();
        let tokens: Vec<i32> = other.iter().map(|&i| outputs[i].token as i32).collect();
        let mut staging = self.staging.lock();
        let (index, values) = (scratch.vector(0), scratch.vector(1));
        staging.upload(index, bytemuck::cast_slice(&slots))?;
        staging.upload(values, bytemuck::cast_slice(&tokens))?;
        let scatter = |stream| scatter_ints(last_tokens.bytes(), index, values, other.len(), stream);
        self.gpu.stream().and_then(scatter).map_err(engine_error)
    }

    pub(super) fn logprobs_of_rows(&self, logits: &Tensor<CudaDevice>, rows: &[(usize, u32)], top: usize) -> Result<Vec<TokenLogprobs>> {
        assert_eq!(logits.dtype, DType::F32, "logits");
        let row_bytes = logits.cols * 4;
        let mut scratch = self.sample_scratch.lock();
        let mut entries = Vec::with_capacity(rows.len());
        for &(row, token) in rows {
            assert!(row < logits.rows, "row {row} of {}", logits.rows);
            let host = scratch.host(row_bytes)?;
            self.gpu.copy_to_host(host, logits.buffer.bytes().from(row * row_bytes)).map_err(engine_error)?;
            entries.push(token_logprobs(bytemuck::cast_slice(host), token, top));
        }
        Ok(entries)
    }
}
