//! What a GPU takes beside weights, workspace and KV pool, and how large its steps are. For the memory plan.

use super::CudaDevice;
use super::moe::MoeScratch;
use super::sample::sampler_bytes;
use crate::memory_plan::StepSize;
use crate::models::config::ModelConfig;

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
    pub(super) fn planned_scratch(&self, config: &ModelConfig, step: StepSize) -> usize {
        let moe = config.moe.map_or(0, |moe| MoeScratch::bytes(config.hidden_size, moe, step.max_num_batched_tokens));
        let sampler = sampler_bytes(step.max_num_seqs, config.vocab_size).unwrap_or(0);
        CODE_BYTES + GRAPH_BYTES + moe + sampler
    }
}
