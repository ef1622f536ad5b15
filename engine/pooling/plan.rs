//! Where the memory of a pooling model goes, computed before any of it is taken.

use std::fmt;

use super::BatchLimits;
use super::config::PoolingKind;
use super::decoder_model::DecoderLimits;
use super::engine::PoolingLimits;
use super::source::{Opened, Source};
use crate::device::DType;
use crate::device::encoder::{EncoderDevice, Pooling};
use crate::error::{EngineError, Result};
use crate::loader::{EngineOptions, KvDtype, kv_dtype};
use crate::runner::workspace::workspace_bytes;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::encoder_checkpoint::EncoderCheckpoint;

/// Tokens of a decoder's longest sequence when nobody says: its cache is taken for good.
const DEFAULT_DECODER_LEN: usize = 8192;
/// Sequences of a batch when nobody says.
const DEFAULT_MAX_SEQS: usize = 256;
/// Sequences of a decoder's batch when nobody says: each has a row of logits.
const DEFAULT_DECODER_SEQS: usize = 64;
/// Tokens of a batch when nobody says, in those of a decoder's step on the device: 1024 on a CPU, enough to read the weights seldom and few
/// enough for the caches; 16384 on a large GPU.
const BATCH_STEPS: usize = 2;

/// What each part takes.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolingPlan {
    /// What the model is for.
    pub kind: PoolingKind,
    /// Row of the table of families.
    pub family: &'static str,
    /// Layers.
    pub num_layers: usize,
    /// Numbers of a vector, or scores of a pair.
    pub num_outputs: usize,
    /// Bytes free when the plan was made.
    pub free_bytes: usize,
    /// Weights (mapped from their files on a CPU).
    pub weight_bytes: usize,
    /// Activations of the largest batch.
    pub workspace_bytes: usize,
    /// Keys and values of a decoder's largest batch; 0: an encoder has none.
    pub kv_bytes: usize,
    /// Tokens of a sequence, tokens and sequences of a batch.
    pub limits: PoolingLimits,
}

impl PoolingPlan {
    /// Plans, and checks that it fits.
    ///
    /// # Errors
    /// An option out of range; `OutOfMemory`.
    pub(super) fn new<D: EncoderDevice>(device: &D, source: &Source, options: &EngineOptions) -> Result<PoolingPlan> {
        let free_bytes = match options.memory_limit_bytes {
            Some(bytes) => bytes,
            None => device.free_memory()?,
        };
        let mut plan = match &source.opened {
            Opened::Encoder(checkpoint) => of_encoder(device, checkpoint, source, options)?,
            Opened::Decoder(checkpoint) => of_decoder(device, checkpoint, source, options)?,
        };
        plan.free_bytes = free_bytes;
        plan.check(options.memory_utilization)?;
        Ok(plan)
    }

    /// Everything that is to be taken.
    pub fn total_bytes(&self) -> usize {
        self.weight_bytes + self.workspace_bytes + self.kv_bytes
    }

    /// Whether it fits into this share of what is free.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn check(&self, utilization: f32) -> Result<()> {
        let (needed_bytes, available_bytes) = (self.total_bytes(), (self.free_bytes as f64 * f64::from(utilization)) as usize);
        if needed_bytes <= available_bytes {
            return Ok(());
        }
        let hint = "lower max_model_len or max_num_batched_tokens, or use a smaller model".to_owned();
        Err(EngineError::OutOfMemory { what: "a pooling model with its buffers".into(), needed_bytes, available_bytes, hint })
    }
}

fn of_encoder<D: EncoderDevice>(
    device: &D,
    checkpoint: &EncoderCheckpoint,
    source: &Source,
    options: &EngineOptions,
) -> Result<PoolingPlan> {
    let shape = &checkpoint.config;
    let most = source.config.max_seq_len.map_or(shape.max_seq_len, |len| len.min(shape.max_seq_len));
    let max_seq_len = sequence_len(options, shape.max_seq_len, most)?;
    let batch = batch_limits(device, options, max_seq_len, DEFAULT_MAX_SEQS);
    let per_token = 7 * shape.hidden_size + if shape.gated { 3 } else { 1 } * shape.intermediate_size;
    let of_sequences = 2 * batch.max_seqs * shape.hidden_size * DType::F32.size();
    // A device with memory of its own makes everything bf16.
    let copied_bytes = device.memory_in_use().map(|_| checkpoint.num_values() * DType::BF16.size());
    Ok(PoolingPlan {
        kind: source.kind,
        family: shape.family,
        num_layers: shape.radii.len(),
        num_outputs: if source.kind == PoolingKind::Embedding { source.dims() } else { source.num_labels() },
        free_bytes: 0,
        weight_bytes: copied_bytes.unwrap_or_else(|| checkpoint.weight_bytes()),
        workspace_bytes: batch.max_tokens * (per_token * device.activation_dtype().size() + 3 * 4) + of_sequences,
        kv_bytes: 0,
        limits: PoolingLimits { batch, max_seq_len, vocab_size: shape.vocab_size, max_waiting: options.max_waiting },
    })
}

fn of_decoder<D: EncoderDevice>(device: &D, checkpoint: &Checkpoint, source: &Source, options: &EngineOptions) -> Result<PoolingPlan> {
    let shape = &checkpoint.config;
    let limits = decoder_limits(device, checkpoint, source, options)?;
    let (step, batch) = (limits.max_step_tokens, limits.batch);
    Ok(PoolingPlan {
        kind: source.kind,
        family: shape.family,
        num_layers: shape.layers.len(),
        num_outputs: if source.kind == PoolingKind::Embedding { source.dims() } else { source.num_labels() },
        free_bytes: 0,
        weight_bytes: device.weight_bytes(checkpoint.weight_size()),
        workspace_bytes: workspace_bytes(shape, step, batch.max_seqs, device.activation_dtype(), device.residual_dtype()),
        kv_bytes: limits.cache_tokens() * shape.kv_bytes_per_token(limits.kv_dtype.size()),
        limits: PoolingLimits { batch, max_seq_len: limits.max_seq_len, vocab_size: shape.vocab_size, max_waiting: options.max_waiting },
    })
}

/// How large the batches and steps of a decoder are.
///
/// # Errors
/// An option out of range; a decoder whose rows are pooled by something else than their last one.
pub(super) fn decoder_limits<D: EncoderDevice>(
    device: &D,
    checkpoint: &Checkpoint,
    source: &Source,
    options: &EngineOptions,
) -> Result<DecoderLimits> {
    if source.kind == PoolingKind::Embedding && source.config.pooling != Pooling::Last {
        let reason = format!("a decoder whose vector is pooled by {:?}; expected its last token", source.config.pooling);
        return Err(EngineError::Unsupported(reason));
    }
    if options.kv_cache_dtype == KvDtype::Fp8 {
        let reason = "fp8 is for models that generate; the cache of one that pools lives for a batch".to_owned();
        return Err(EngineError::Option { option: "kv_cache_dtype", reason });
    }
    let positions = checkpoint.config.max_position_embeddings;
    let most = source.config.max_seq_len.unwrap_or(usize::MAX).min(positions).min(DEFAULT_DECODER_LEN);
    let max_seq_len = sequence_len(options, positions, most)?;
    Ok(DecoderLimits {
        batch: batch_limits(device, options, max_seq_len, DEFAULT_DECODER_SEQS),
        max_step_tokens: options.max_num_batched_tokens.unwrap_or_else(|| device.step_size().max_num_batched_tokens),
        max_seq_len,
        kv_dtype: kv_dtype(device, options.kv_cache_dtype),
    })
}

/// The longest sequence: what the options say, at most what the model can, else `default`.
fn sequence_len(options: &EngineOptions, most: usize, default: usize) -> Result<usize> {
    match options.max_model_len {
        Some(len) if len > most => {
            Err(EngineError::Option { option: "max_model_len", reason: format!("{len} exceeds the model's {most}") })
        }
        Some(len) => Ok(len),
        None => Ok(default),
    }
}

fn batch_limits<D: EncoderDevice>(device: &D, options: &EngineOptions, max_seq_len: usize, default_seqs: usize) -> BatchLimits {
    let default_tokens = BATCH_STEPS * device.step_size().max_num_batched_tokens;
    BatchLimits {
        max_tokens: options.max_num_batched_tokens.unwrap_or(default_tokens).max(max_seq_len),
        max_seqs: options.max_num_seqs.unwrap_or(default_seqs),
    }
}

impl fmt::Display for PoolingPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        let batch = self.limits.batch;
        writeln!(f, "weights      {:>10.1} MiB", mib(self.weight_bytes))?;
        let (workspace, tokens) = (mib(self.workspace_bytes), batch.max_tokens);
        writeln!(f, "workspace    {workspace:>10.1} MiB for {} sequences, {tokens} tokens a batch", batch.max_seqs)?;
        if self.kv_bytes > 0 {
            writeln!(f, "kv cache     {:>10.1} MiB of one batch", mib(self.kv_bytes))?;
        }
        writeln!(f, "length       {:>10} tokens at most", self.limits.max_seq_len)?;
        let what = if self.kind == PoolingKind::Embedding { "numbers a vector" } else { "score a pair" };
        writeln!(f, "output       {:>10} {what}", self.num_outputs)?;
        write!(f, "in all       {:>10.1} MiB of {:.1} MiB free", mib(self.total_bytes()), mib(self.free_bytes))
    }
}
