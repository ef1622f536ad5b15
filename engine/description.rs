//! What is known of a model before its weights are loaded: for callers that load and unload models as they are needed.

use std::path::Path;

use crate::device::Device;
use crate::device::cpu::CpuDevice;
use crate::error::Result;
use crate::loader::{EngineOptions, cuda_device, open, plan_of, read_text};
use crate::memory_plan::MemoryPlan;
use crate::models::config::ModelConfig;
use crate::text::chat_template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::weights::checkpoint::GenerationDefaults;

/// What is known of a checkpoint before its weights are loaded.
pub struct Description {
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Its shape.
    pub config: ModelConfig,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// Where the memory would go.
    pub plan: MemoryPlan,
}

/// Reads everything but the weights.
///
/// # Errors
/// As `load`.
pub fn describe(path: &Path, options: &EngineOptions) -> Result<Description> {
    let checkpoint = open(path, options)?;
    let plan = plan_of(&checkpoint, options)?;
    let (tokenizer, chat_template) = read_text(&checkpoint)?;
    let (config, generation) = (checkpoint.config, checkpoint.generation);
    Ok(Description { tokenizer, chat_template, config, generation, plan })
}

/// Host memory that the weights of sleeping engines on the device of `options` may take when nobody says: a quarter of what is free, and none
/// where it is the device's own.
///
/// # Errors
/// The system does not say what is free.
pub fn swap_memory(options: &EngineOptions) -> Result<usize> {
    if options.device.is_cuda() { Ok(crate::device::cpu::memory::available()? / 4) } else { Ok(0) }
}

/// Bytes that engines on the device of `options` may take together.
///
/// # Errors
/// No such device.
pub fn usable_memory(options: &EngineOptions) -> Result<usize> {
    let free_bytes = match options.memory_limit_bytes {
        Some(bytes) => bytes,
        None if options.device.is_cuda() => cuda_device(options)?.free_memory()?,
        None => CpuDevice::new(options.threads)?.free_memory()?,
    };
    Ok((free_bytes as f64 * f64::from(options.memory_utilization)) as usize)
}
