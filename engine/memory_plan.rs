//! Where the memory goes, computed before any of it is taken. No trial allocation.

use std::fmt;

use crate::device::{DType, StepRoom};
use crate::error::{EngineError, Result};
use crate::loader::{DenseCopy, EngineOptions};
use crate::models::config::ModelConfig;
use crate::runner::workspace::workspace_bytes;

/// Context length that a default start offers at most; a longer one must be asked for.
const DEFAULT_MAX_MODEL_LEN: usize = 32_768;

/// Tokens of each sequence of a full batch that the KV pool has to hold before memory goes to dense copies of weights.
const USEFUL_LEN: usize = 1024;

/// How large a step may be: what the options say, else what suits the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSize {
    /// Sequences of a step.
    pub max_num_seqs: usize,
    /// Tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Logits rows computed at once; more are done in groups.
    pub max_logit_rows: usize,
}

impl StepSize {
    /// The size that `options` ask for; what they leave open comes from `default`, made to fit the rest.
    pub fn new(options: &EngineOptions, default: StepSize) -> StepSize {
        let tokens = options.max_num_batched_tokens;
        // Room for a chunk of three beside decodes, so that none of one token is needed.
        let spare = if options.deterministic { 2 } else { 0 };
        let max_num_seqs =
            options.max_num_seqs.unwrap_or_else(|| default.max_num_seqs.min(tokens.unwrap_or(usize::MAX).saturating_sub(spare).max(1)));
        StepSize {
            max_num_seqs,
            max_num_batched_tokens: tokens.unwrap_or_else(|| default.max_num_batched_tokens.max(max_num_seqs + spare)),
            max_logit_rows: default.max_logit_rows.min(max_num_seqs),
        }
    }
}

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
    /// Of the residual stream.
    pub residual_dtype: DType,
    /// Bytes of the weights.
    pub weight_bytes: usize,
    /// Bytes of dense copies of packed weights, if they are kept.
    pub dense_copy_bytes: usize,
    /// Bytes that the device needs beside weights, workspace and KV pool.
    pub scratch_bytes: usize,
    /// Bytes that are free now.
    pub free_bytes: usize,
    /// Bytes of the device's own memory that are taken already.
    pub in_use_bytes: Option<usize>,
    /// How large a step may be.
    pub step: StepSize,
    /// Share of them that the KV pool takes by default.
    pub kv_share: f32,
}

/// A plan: what each part takes.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Bytes free when the plan was made.
    pub free_bytes: usize,
    /// Bytes taken by then: other processes, the device's context, workspaces of libraries and kernels. None on a CPU.
    pub in_use_bytes: Option<usize>,
    /// Weights (mapped from their files on a CPU).
    pub weight_bytes: usize,
    /// Dense copies of packed weights; 0 where none are kept.
    pub dense_copy_bytes: usize,
    /// Activations, rope tables and the arrays of a step.
    pub workspace_bytes: usize,
    /// What the device takes beside: scratch of its ops, graphs, code.
    pub scratch_bytes: usize,
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
    /// How large a step may be.
    pub step: StepSize,
}

impl MemoryPlan {
    /// Everything that is to be taken.
    pub fn total_bytes(&self) -> usize {
        self.weight_bytes + self.dense_copy_bytes + self.workspace_bytes + self.scratch_bytes + self.kv_bytes
    }

    /// Plans.
    ///
    /// # Errors
    /// `OutOfMemory` when the weights, or one sequence of `max_model_len`, do not fit; `Option` when `max_model_len` exceeds the model's.
    pub fn new(request: &PlanRequest<'_>) -> Result<MemoryPlan> {
        let (config, options) = (request.config, request.options);
        let wanted_len = wanted_len(config, options)?;
        let StepSize { max_num_batched_tokens, max_logit_rows, .. } = request.step;
        let rope_bytes = 2 * wanted_len * config.rope.rotary_dim / 2 * 4 * if config.rope_local.is_some() { 2 } else { 1 };
        let (activations, residual) = (request.activation_dtype, request.residual_dtype);
        let max_blocks_per_seq = wanted_len.div_ceil(options.block_size);
        let step_bytes = StepRoom { max_tokens: max_num_batched_tokens, max_seqs: request.step.max_num_seqs, max_blocks_per_seq }.bytes();
        let workspace_bytes =
            rope_bytes + step_bytes + workspace_bytes(config, max_num_batched_tokens, max_logit_rows, activations, residual);
        let budget = (request.free_bytes as f64 * f64::from(options.memory_utilization)) as usize;
        let mut fixed = request.weight_bytes.saturating_add(workspace_bytes).saturating_add(request.scratch_bytes);
        let kv_bytes_per_token = config.kv_bytes_per_token(request.kv_dtype.size());
        let left = budget.saturating_sub(fixed);
        let dense_copy_bytes = dense_copy(request, wanted_len, kv_bytes_per_token, left);
        fixed += dense_copy_bytes;
        if fixed > budget {
            return Err(EngineError::OutOfMemory {
                what: "model weights and workspace".into(),
                needed_bytes: fixed,
                available_bytes: budget,
                hint: "use a smaller or more quantised model, no dense copy, or free memory".into(),
            });
        }
        let block_bytes = kv_bytes_per_token * options.block_size;
        let num_blocks = num_blocks(request, wanted_len, block_bytes, budget - fixed)?;
        let max_model_len = model_len(options, wanted_len, num_blocks, block_bytes, budget - fixed)?;
        Ok(MemoryPlan {
            free_bytes: request.free_bytes,
            in_use_bytes: request.in_use_bytes,
            weight_bytes: request.weight_bytes,
            dense_copy_bytes,
            workspace_bytes,
            scratch_bytes: request.scratch_bytes,
            kv_bytes: num_blocks * block_bytes,
            kv_bytes_per_token,
            kv_dtype: request.kv_dtype,
            num_blocks,
            block_size: options.block_size,
            max_model_len,
            step: request.step,
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

/// Bytes of dense copies: those that there could be, or none. `left_bytes` is what weights, workspace and scratch leave.
fn dense_copy(request: &PlanRequest<'_>, wanted_len: usize, kv_bytes_per_token: usize, left_bytes: usize) -> usize {
    let options = request.options;
    let full_batch =
        request.step.max_num_seqs.saturating_mul(wanted_len.min(USEFUL_LEN)).max(wanted_len).saturating_mul(kv_bytes_per_token);
    let pool = options.kv_cache_bytes.unwrap_or(full_batch);
    match options.dense_copy {
        DenseCopy::Off => 0,
        DenseCopy::On => request.dense_copy_bytes,
        // Products of many tokens read tiles.
        DenseCopy::Auto if options.fp4_activations => 0,
        DenseCopy::Auto if request.dense_copy_bytes.saturating_add(pool) <= left_bytes => request.dense_copy_bytes,
        DenseCopy::Auto => 0,
    }
}

/// Blocks of the pool: as many as a full batch of longest sequences could use, within what the budget and the options leave.
fn num_blocks(request: &PlanRequest<'_>, wanted_len: usize, block_bytes: usize, left_bytes: usize) -> Result<usize> {
    let options = request.options;
    let useful = wanted_len.div_ceil(options.block_size) * request.step.max_num_seqs;
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
        if self.dense_copy_bytes > 0 {
            writeln!(f, "dense copy   {:>10.1} MiB for steps of many tokens", mib(self.dense_copy_bytes))?;
        }
        let StepSize { max_num_seqs, max_num_batched_tokens, .. } = self.step;
        let workspace = mib(self.workspace_bytes);
        writeln!(f, "workspace    {workspace:>10.1} MiB for {max_num_seqs} sequences, {max_num_batched_tokens} tokens a step")?;
        writeln!(f, "scratch      {:>10.1} MiB", mib(self.scratch_bytes))?;
        writeln!(f, "kv cache     {:>10.1} MiB = {} blocks of {} tokens", mib(self.kv_bytes), self.num_blocks, self.block_size)?;
        writeln!(f, "kv per token {:>10} bytes ({:?})", self.kv_bytes_per_token, self.kv_dtype)?;
        writeln!(f, "context      {:>10} tokens", self.max_model_len)?;
        if let Some(in_use) = self.in_use_bytes {
            writeln!(f, "in use       {:>10.1} MiB before: others, context, workspaces of libraries and kernels", mib(in_use))?;
        }
        write!(f, "in all       {:>10.1} MiB of {:.1} MiB free", mib(self.total_bytes()), mib(self.free_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_copies_are_kept_where_a_full_batch_still_fits() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = crate::testing::write_tiny(folder.path(), "qwen2", 1);
        let config = crate::weights::Checkpoint::open(&path).expect("opens").config;
        let step = StepSize { max_num_seqs: 4, max_num_batched_tokens: 64, max_logit_rows: 4 };
        let plan_with = |options: EngineOptions, free_bytes| {
            let request = PlanRequest {
                config: &config,
                options: &options,
                kv_dtype: DType::BF16,
                activation_dtype: DType::BF16,
                residual_dtype: DType::F32,
                weight_bytes: 10 << 20,
                dense_copy_bytes: 40 << 20,
                scratch_bytes: 1 << 20,
                free_bytes,
                in_use_bytes: None,
                step,
                kv_share: 1.0,
            };
            MemoryPlan::new(&request)
        };
        let whole = EngineOptions { memory_utilization: 1.0, ..EngineOptions::default() };
        let plan =
            |dense_copy, kv_cache_bytes, free_bytes| plan_with(EngineOptions { dense_copy, kv_cache_bytes, ..whole.clone() }, free_bytes);
        let none = plan(DenseCopy::Off, None, 1 << 30).expect("fits");
        let len = none.max_model_len.min(USEFUL_LEN);
        let pool = (4 * len).max(none.max_model_len) * none.kv_bytes_per_token;
        let enough = none.total_bytes() - none.kv_bytes + (40 << 20) + pool;
        let copies = |plan: Result<MemoryPlan>| plan.map(|plan| plan.dense_copy_bytes).map_err(|error| error.to_string());
        assert_eq!(copies(plan(DenseCopy::Auto, None, enough)), Ok(40 << 20));
        assert_eq!(copies(plan(DenseCopy::Auto, None, enough - 1)), Ok(0));
        assert_eq!(copies(plan_with(EngineOptions { fp4_activations: true, ..whole.clone() }, enough)), Ok(0), "tiles are read");
        assert_eq!(copies(plan(DenseCopy::Auto, Some(1 << 20), enough - pool + (1 << 20))), Ok(40 << 20), "a pool of a size of its own");
        assert_eq!(copies(plan(DenseCopy::On, None, enough - 1)), Ok(40 << 20));
        assert!(copies(plan(DenseCopy::On, None, 50 << 20)).is_err_and(|error| error.contains("no dense copy")));
        let with = plan(DenseCopy::On, None, 1 << 30).expect("fits");
        assert!(with.to_string().contains("dense copy") && !none.to_string().contains("dense copy"));
        assert!(with.total_bytes() <= 1 << 30);
    }
}
