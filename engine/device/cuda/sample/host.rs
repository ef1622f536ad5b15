//! Rows that are sampled on the host: copied there, through the sampler that all devices share, and their tokens back.

use pagoda_kernels::PinnedMemory;
use pagoda_kernels::ops::step::scatter_ints;
use rayon::prelude::*;

use super::{CudaDevice, CudaInts, SampleScratch, engine_error};
use crate::device::Tensor;
use crate::error::Result;
use crate::sampling::{SampleOutput, SampleRow, sample_row};

/// Bytes of logits on the host at a time; at least one row is taken.
const HOST_BYTES: usize = 32 << 20;

impl SampleScratch {
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

impl CudaDevice {
    /// Outputs of `rows[wanted]`, in the order of `wanted`.
    pub(super) fn sample_on_host(
        &self,
        scratch: &mut SampleScratch,
        logits: &Tensor<CudaDevice>,
        rows: &[SampleRow<'_>],
        wanted: &[usize],
        last_tokens: &CudaInts,
    ) -> Result<Vec<SampleOutput>> {
        let mut outputs = Vec::with_capacity(wanted.len());
        let row_bytes = logits.cols * 4;
        for group in wanted.chunks((HOST_BYTES / row_bytes).max(1)) {
            let host = scratch.host(group.len() * row_bytes)?;
            for (&i, row) in group.iter().zip(host.chunks_exact_mut(row_bytes)) {
                let on_device = logits.buffer.bytes().from(rows[i].logits_row * row_bytes);
                self.gpu.copy_to_host(row, on_device).map_err(engine_error)?;
            }
            let values: &mut [f32] = bytemuck::cast_slice_mut(host);
            let values = values.par_chunks_exact_mut(logits.cols);
            let sampled: Vec<SampleOutput> = group.par_iter().zip(values).map(|(&i, row)| sample_row(row, &rows[i])).collect();
            outputs.extend(sampled);
        }
        if !outputs.is_empty() {
            let slots: Vec<i32> = wanted.iter().map(|&i| rows[i].slot as i32).collect();
            let tokens: Vec<i32> = outputs.iter().map(|output| output.token as i32).collect();
            let index = scratch.pairs(2 * slots.len())?;
            let values = index.from(4 * slots.len());
            let mut staging = self.staging.lock();
            staging.upload(index, bytemuck::cast_slice(&slots))?;
            staging.upload(values, bytemuck::cast_slice(&tokens))?;
            let scatter = |stream| scatter_ints(last_tokens.bytes(), index, values, slots.len(), stream);
            self.gpu.stream().and_then(scatter).map_err(engine_error)?;
        }
        Ok(outputs)
    }
}
