//! Where the memory goes, computed before any of it is taken. No trial allocation.

use std::fmt;

use crate::device::DType;
use crate::error::{EngineError, Result};
use crate::loader::EngineOptions;
use crate::models::config::ModelConfig;
use crate::runner::workspace::workspace_bytes;

/// Context length that a default start offers at most; a longer one must be asked for.
const DEFAULT_MAX_MODEL_LEN: usize = 32_768;
/// Logits rows computed at once, whatever the batch: bounds the logits buffer.
const MAX_LOGIT_ROWS: usize = 64;

/// What a plan is made from.
pub struct PlanRequest<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// The options.
    pub options: &'a EngineOptions,
    /// Element type of the KV cache.
    pub kv_dtype: DType,
    /// Element type of activations.
    pub activation_dtype: DType,
    /// Bytes of the weights.
    pub weight_bytes: usize,
    /// Bytes that are free now.
    pub free_bytes: usize,
    /// Share of them that the KV pool takes by default.
    pub kv_share: f32,
}

/// A plan: what each part takes.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Bytes free when the plan was made.
    pub free_bytes: usize,
    /// Weights (mapped from their files on a CPU).
    pub weight_bytes: usize,
    /// Activations and rope tables.
    pub workspace_bytes: usize,
    /// KV pool.
    pub kv_bytes: usize,
    /// Keys and values of one token.
    pub kv_bytes_per_token: usize,
    /// Element type of the KV cache.
    pub kv_dtype: DType,
    /// Blocks of the pool.
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Longest prompt plus output.
    pub max_model_len: usize,
    /// Logits rows computed at once.
    pub max_logit_rows: usize,
}

impl MemoryPlan {
    /// Plans.
    ///
    /// # Errors
    /// `OutOfMemory` when the weights, or one sequence of `max_model_len`, do not fit; `Option` when `max_model_len` exceeds the model's.
    pub fn new(request: &PlanRequest<'_>) -> Result<MemoryPlan> {
        let (config, options) = (request.config, request.options);
        let wanted_len = wanted_len(config, options)?;
        let max_logit_rows = options.max_num_seqs.min(MAX_LOGIT_ROWS);
        let rope_bytes = 2 * wanted_len * config.rope.rotary_dim / 2 * 4 * if config.rope_local.is_some() { 2 } else { 1 };
        let workspace_bytes =
            rope_bytes + workspace_bytes(config, options.max_num_batched_tokens, max_logit_rows, request.activation_dtype);
        let budget = (request.free_bytes as f64 * f64::from(options.memory_utilization)) as usize;
        let fixed = request.weight_bytes.saturating_add(workspace_bytes);
        if fixed > budget {
            return Err(EngineError::OutOfMemory {
                what: "model weights and workspace".into(),
                needed_bytes: fixed,
                available_bytes: budget,
                hint: "use a smaller or more quantised model, or free memory".into(),
            });
        }
        let kv_bytes_per_token = config.kv_bytes_per_token(request.kv_dtype.size());
        let block_bytes = kv_bytes_per_token * options.block_size;
        let num_blocks = num_blocks(request, wanted_len, block_bytes, budget - fixed)?;
        let max_model_len = model_len(options, wanted_len, num_blocks, block_bytes, budget - fixed)?;
        Ok(MemoryPlan {
            free_bytes: request.free_bytes,
            weight_bytes: request.weight_bytes,
            workspace_bytes,
            kv_bytes: num_blocks * block_bytes,
            kv_bytes_per_token,
            kv_dtype: request.kv_dtype,
            num_blocks,
            block_size: options.block_size,
            max_model_len,
            max_logit_rows,
        })
    }
}

fn wanted_len(config: &ModelConfig, options: &EngineOptions) -> Result<usize> {
    let most = config.max_position_embeddings;
    match options.max_model_len {
        Some(len) if len > most => {
            Err(EngineError::Option { option: "max_model_len", reason: format!("{len} exceeds the model's {most}") })
        }
        Some(len) => Ok(len),
        None => Ok(most.min(DEFAULT_MAX_MODEL_LEN)),
    }
}

/// Blocks of the pool: as many as a full batch of longest sequences could use, within what the budget and the options leave.
fn num_blocks(request: &PlanRequest<'_>, wanted_len: usize, block_bytes: usize, left_bytes: usize) -> Result<usize> {
    let options = request.options;
    let useful = wanted_len.div_ceil(options.block_size) * options.max_num_seqs;
    let bytes = match options.kv_cache_bytes {
        Some(bytes) if bytes > left_bytes => {
            return Err(EngineError::OutOfMemory {
                what: "kv cache (kv_cache_bytes)".into(),
                needed_bytes: bytes,
                available_bytes: left_bytes,
                hint: "lower kv_cache_bytes".into(),
            });
        }
        Some(bytes) => bytes,
        None => {
            let one_sequence = wanted_len.div_ceil(options.block_size) * block_bytes;
            let share = (request.free_bytes as f64 * f64::from(request.kv_share)) as usize;
            share.max(one_sequence).min(left_bytes)
        }
    };
    Ok((bytes / block_bytes).min(useful))
}

/// The context length that the pool can hold: the wanted one, or less where the caller left it open.
fn model_len(options: &EngineOptions, wanted_len: usize, num_blocks: usize, block_bytes: usize, left_bytes: usize) -> Result<usize> {
    let holds = num_blocks * options.block_size;
    if holds >= wanted_len {
        return Ok(wanted_len);
    }
    if options.max_model_len.is_none() && holds >= options.block_size.max(2) {
        return Ok(holds);
    }
    Err(EngineError::OutOfMemory {
        what: format!("kv cache of one sequence of {wanted_len} tokens"),
        needed_bytes: wanted_len.div_ceil(options.block_size) * block_bytes,
        available_bytes: options.kv_cache_bytes.unwrap_or(left_bytes).min(left_bytes),
        hint: format!("lower max_model_len to at most {holds}"),
    })
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        writeln!(f, "weights      {:>10.1} MiB", mib(self.weight_bytes))?;
        writeln!(f, "workspace    {:>10.1} MiB", mib(self.workspace_bytes))?;
        writeln!(f, "kv cache     {:>10.1} MiB = {} blocks of {} tokens", mib(self.kv_bytes), self.num_blocks, self.block_size)?;
        writeln!(f, "kv per token {:>10} bytes ({:?})", self.kv_bytes_per_token, self.kv_dtype)?;
        writeln!(f, "context      {:>10} tokens", self.max_model_len)?;
        write!(f, "free before  {:>10.1} MiB", mib(self.free_bytes))
    }
}
