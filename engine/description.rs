//! What is known of a model before its weights are loaded: for callers that load and unload models as they are needed.

use std::path::Path;

use crate::device::Device;
use crate::device::cpu::CpuDevice;
use crate::error::{EngineError, Result};
use crate::loader::{EngineOptions, cuda_device, open, plan_of, read_text};
use crate::memory_plan::MemoryPlan;
use crate::models::config::ModelConfig;
use crate::models::families::{is_known_decoder, known_architectures};
use crate::text::chat_template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::weights::checkpoint::GenerationDefaults;
use crate::weights::json::{Fields, read_object, read_optional, read_text as read_text_file};
use crate::weights::text_files;

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

/// The text side of a Hugging Face folder, whatever its architecture.
pub struct TextDescription {
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
}

/// Reads what a folder says about text, for those who run its model elsewhere; `template` is a file with another chat template.
///
/// # Errors
/// A file is missing or damaged.
pub fn describe_text(folder: &Path, template: Option<&Path>) -> Result<TextDescription> {
    let path = folder.join("config.json");
    let mut eos_token_ids = Fields::new(&path, read_object(&path)?).token_ids("eos_token_id")?;
    let found = text_files::read_folder(folder)?;
    for id in found.eos_token_ids {
        if !eos_token_ids.contains(&id) {
            eos_token_ids.push(id);
        }
    }
    let tokenizer = Tokenizer::from_source(&found.tokenizer, &found.text)?;
    let source = template.map(read_text_file).transpose()?.or(found.text.chat_template.clone());
    let chat_template = source.map(|source| ChatTemplate::new(&source, &found.text)).transpose()?;
    Ok(TextDescription { tokenizer, chat_template, generation: found.generation, eos_token_ids })
}

/// Endings of architectures that generate text.
const GENERATIVE: [&str; 2] = ["ForCausalLM", "LMHeadModel"];

/// That a folder's model generates text and is of an architecture that the engine has not; None: it has it, or cannot tell.
///
/// # Errors
/// config.json is damaged.
pub fn unknown_architecture(path: &Path) -> Result<Option<EngineError>> {
    let config = path.join("config.json");
    let Some(map) = (if path.is_dir() { read_optional(&config)? } else { None }) else { return Ok(None) };
    let fields = Fields::new(&config, map);
    let name = fields.opt_list("architectures", 16)?.and_then(|list| list.first()).and_then(|name| name.as_str());
    let unknown = name.filter(|name| GENERATIVE.iter().any(|end| name.ends_with(end)) && !is_known_decoder(name));
    Ok(unknown.map(|name| EngineError::UnknownArchitecture { name: name.to_owned(), known: known_architectures() }))
}
