//! What a GPU takes beside weights, workspace and KV pool, and how large its steps are. For the memory plan.

use pagoda_kernels::ops::fp4::Fp4Inputs;
use pagoda_kernels::ops::w8::ByteCode;

use super::CudaDevice;
use super::moe::MoeScratch;
use super::planned::{Planned, planned_fp4_cols, planned_parts, planned_room};
use super::product_w8::RoundedInputs;
use super::sample::sampler_bytes;
use crate::device::{MatrixForm, MatrixUse};
use crate::error::Result;
use crate::memory_plan::StepSize;
use crate::models::config::ModelConfig;
use crate::weights::size::WeightSize;

/// A GPU of at least this much memory runs large batches by default.
const LARGE_GPU_BYTES: usize = 32 << 30;
/// Logits rows computed at once: bounds the logits buffer (152,064 f32 a row for Qwen2.5: 311 MB).
const MAX_LOGIT_ROWS: usize = 512;
/// Code of kernels and libraries, which the driver loads with their first launch.
const CODE_BYTES: usize = 192 << 20;
/// Captured graphs with their parameters.
const GRAPH_BYTES: usize = 256 << 20;

impl CudaDevice {
    pub(super) fn default_step_size(&self) -> StepSize {
        if self.gpu.info().memory_bytes >= LARGE_GPU_BYTES {
            StepSize { max_num_seqs: 512, max_num_batched_tokens: 8192, max_logit_rows: MAX_LOGIT_ROWS }
        } else {
            StepSize { max_num_seqs: 256, max_num_batched_tokens: 4096, max_logit_rows: MAX_LOGIT_ROWS }
        }
    }

    /// Partial results, staging and the workspace of the library are taken when the device is opened, before free memory is asked for.
    pub(super) fn planned_scratch(&self, config: &ModelConfig, step: StepSize, weights: &WeightSize) -> Result<usize> {
        let moe = config.moe.map_or(0, |moe| MoeScratch::bytes(config.hidden_size, moe, step.max_num_batched_tokens));
        let sampler = sampler_bytes(step.max_num_seqs, config.vocab_size)?;
        let rounded_inputs = self.byte_cols(weights).map_or(0, |cols| RoundedInputs::bytes(step.max_num_batched_tokens, cols));
        let fp4_cols = planned_fp4_cols(weights).filter(|_| self.fp4_activations);
        let fp4_inputs = fp4_cols.map_or(0, |cols| Fp4Inputs::bytes(step.max_num_batched_tokens, cols));
        Ok(CODE_BYTES + GRAPH_BYTES + moe + sampler + rounded_inputs + fp4_inputs + planned_room(weights))
    }

    /// Matrices as they will lie on the GPU, and vectors in f32 and bf16.
    pub(super) fn planned_weights(&self, weights: &WeightSize) -> usize {
        let matrix = |form: &MatrixForm, usage| match self.byte_form(form, usage) {
            Some(bytes) => form.values() + 4 * bytes.grid.count(form.n, form.k),
            None => 2 * form.values(),
        };
        let part = |(part, usage): (Planned, MatrixUse)| match part {
            Planned::Other(form) => matrix(&form, usage),
            packed => packed.packed_bytes().expect("tiles or blocks"),
        };
        planned_parts(weights).map(part).sum::<usize>() + 6 * weights.vector_values()
    }

    /// The longest row of a matrix whose inputs are rounded to 8 bits where tokens are many.
    fn byte_cols(&self, weights: &WeightSize) -> Option<usize> {
        let rounds = |form: &MatrixForm, usage| self.byte_form(form, usage).is_some_and(|bytes| bytes.code == ByteCode::E4m3);
        let projections = weights.matrices().filter(|(form, usage)| usage.is_projection() && rounds(form, *usage));
        projections.map(|(form, _)| form.k).max()
    }
}
