//! From a folder to a running pooling model: open, size the batches, check the memory, load, start.

use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::config::{PoolingConfig, PoolingKind, architecture, detect};
use super::decoder_model::{DecoderLimits, DecoderModel};
use super::encoder_model::EncoderModel;
use super::engine::{PoolingHandle, PoolingLimits, start};
use super::head::{Classifier, Scores};
use super::{BatchLimits, PoolingText, SequenceModel, template};
use crate::device::cpu::CpuDevice;
use crate::device::encoder::{EncoderDevice, Pooling};
use crate::error::{EngineError, Result};
use crate::loader::{EngineOptions, KvDtype, LoadProgress, cuda_device, kv_dtype};
use crate::models::decoder::Decoder;
use crate::models::encoder::Encoder;
use crate::models::encoder_families::is_encoder;
use crate::runner::workspace::workspace_bytes;
use crate::text::Tokenizer;
use crate::weights::checkpoint::{Checkpoint, LinearRole};
use crate::weights::encoder_checkpoint::EncoderCheckpoint;
use crate::weights::json::{Fields, checkpoint_error, read_object};

/// Tokens of a decoder's longest sequence when nobody says: its cache is taken for good.
const DEFAULT_DECODER_LEN: usize = 8192;
/// Sequences of a batch when nobody says.
const DEFAULT_MAX_SEQS: usize = 256;
/// Sequences of a decoder's batch when nobody says: each has a row of logits.
const DEFAULT_DECODER_SEQS: usize = 64;
/// Tokens of a batch when nobody says, in those of a decoder's step on the device: 1024 on a CPU, enough to read the weights seldom and few
/// enough for the caches; 16384 on a large GPU.
const BATCH_STEPS: usize = 2;

/// How a reranker reads a query and a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// As a pair of texts; the score is a logit.
    Pair,
    /// As a question in the model's frame; the score is the log-odds of yes against no.
    Question,
}

/// A running pooling model and what callers need around it.
pub struct LoadedPooling {
    /// The thread.
    pub handle: PoolingHandle,
    /// Makes sequences.
    pub text: PoolingText,
    /// Pooling, normalisation, prompts.
    pub config: PoolingConfig,
    /// Numbers of a vector.
    pub dims: usize,
    /// Scores of a sequence; 0: it has none.
    pub num_labels: usize,
    /// How a reranker reads.
    pub scoring: Scoring,
    /// "cpu avx512".
    pub device: String,
}

/// An opened folder, of either kind.
enum Opened {
    Encoder(Box<EncoderCheckpoint>),
    Decoder(Box<Checkpoint>),
}

/// Opens the model of a folder, loads it and starts its thread. `kind` None: what the files say.
///
/// # Errors
/// Options out of range, a damaged or unknown checkpoint, one of another kind, not enough memory.
pub fn load(
    path: &Path,
    kind: Option<PoolingKind>,
    options: &EngineOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadedPooling> {
    options.validate()?;
    let known = detect(path)?;
    let kind = kind.or(known).ok_or_else(|| checkpoint_error(path, "is no model of embeddings or for reranking"))?;
    let opened = open(path, kind, options)?;
    if options.device.is_cuda() {
        return load_on(&Arc::new(cuda_device(options)?), &opened, path, kind, options, progress);
    }
    load_on(&Arc::new(CpuDevice::new(options.threads)?), &opened, path, kind, options, progress)
}

fn open(path: &Path, kind: PoolingKind, options: &EngineOptions) -> Result<Opened> {
    let config = path.join("config.json");
    let name = if path.is_dir() { architecture(&Fields::new(&config, read_object(&config)?))?.unwrap_or_default() } else { String::new() };
    if !is_encoder(&name) {
        let mut checkpoint = Checkpoint::open(path)?;
        if options.quantization.is_some() || options.head_format.is_some() {
            checkpoint.quantize_at_load(options.quantization, options.head_format)?;
        }
        return Ok(Opened::Decoder(Box::new(checkpoint)));
    }
    if options.quantization.is_some() {
        return Err(EngineError::Option { option: "quantization", reason: format!("`{name}` is an encoder, which runs as it is stored") });
    }
    let checkpoint = EncoderCheckpoint::open(path)?;
    match (kind, checkpoint.config.head) {
        (PoolingKind::Reranker, None) => Err(checkpoint_error(&config, format!("`{name}` has no classification head to rerank with"))),
        (PoolingKind::Embedding, Some(_)) => Err(checkpoint_error(&config, format!("`{name}` is a classifier, not a model of embeddings"))),
        (PoolingKind::Reranker, Some(head)) if head.num_labels != 1 => {
            Err(checkpoint_error(&config, format!("`{name}` has {} labels, a reranker has one", head.num_labels)))
        }
        _ => Ok(Opened::Encoder(Box::new(checkpoint))),
    }
}

fn load_on<D: EncoderDevice>(
    device: &Arc<D>,
    opened: &Opened,
    path: &Path,
    kind: PoolingKind,
    options: &EngineOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadedPooling> {
    let fallback = if matches!(opened, Opened::Encoder(_)) { Pooling::Mean } else { Pooling::Last };
    let config = PoolingConfig::read(path, kind, fallback)?;
    let (source, strings) = match opened {
        Opened::Encoder(checkpoint) => (&checkpoint.tokenizer, &checkpoint.text),
        Opened::Decoder(checkpoint) => (&checkpoint.tokenizer, &checkpoint.text),
    };
    let tokenizer = Tokenizer::from_source(source, strings)?;
    let parts = match opened {
        Opened::Encoder(checkpoint) => load_encoder(device, checkpoint, &config, options, progress)?,
        Opened::Decoder(checkpoint) => load_decoder(device, checkpoint, &config, &tokenizer, options, progress)?,
    };
    let Parts { model, limits, dims, num_labels, scoring } = parts;
    let text = PoolingText::new(tokenizer, limits.max_seq_len);
    let device = device.name();
    let BatchLimits { max_tokens, max_seqs } = limits.batch;
    info!(?kind, device, dims, max_seq_len = limits.max_seq_len, max_tokens, max_seqs, "pooling model ready");
    Ok(LoadedPooling { handle: start(model, limits)?, text, config, dims, num_labels, scoring, device })
}

/// A loaded model, not started yet.
struct Parts {
    model: Box<dyn SequenceModel>,
    limits: PoolingLimits,
    dims: usize,
    num_labels: usize,
    scoring: Scoring,
}

fn load_encoder<D: EncoderDevice>(
    device: &Arc<D>,
    checkpoint: &EncoderCheckpoint,
    config: &PoolingConfig,
    options: &EngineOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Parts> {
    let shape = &checkpoint.config;
    let most = config.max_seq_len.map_or(shape.max_seq_len, |len| len.min(shape.max_seq_len));
    let max_seq_len = sequence_len(options, shape.max_seq_len, most)?;
    let batch = batch_limits(&**device, options, max_seq_len, DEFAULT_MAX_SEQS);
    let per_token = 7 * shape.hidden_size + 3 * shape.intermediate_size;
    let workspace = batch.max_tokens * per_token * device.activation_dtype().size();
    let total_bytes = checkpoint.weight_bytes();
    check_memory(&**device, options, total_bytes + workspace)?;
    let mut on_layer = |done: usize, layers: usize| {
        progress(LoadProgress { stage: "weights", done_bytes: total_bytes / layers * done, total_bytes });
    };
    let encoder = Encoder::load(&**device, checkpoint, max_seq_len, &mut on_layer)?;
    let (dims, vocab_size) = (shape.hidden_size, shape.vocab_size);
    let num_labels = shape.head.map_or(0, |head| head.num_labels);
    let model = EncoderModel::new(device.clone(), encoder, Classifier::load(checkpoint)?, config.pooling, batch)?;
    let limits = PoolingLimits { batch, max_seq_len, vocab_size, max_waiting: options.max_waiting };
    Ok(Parts { model: Box::new(model), limits, dims, num_labels, scoring: Scoring::Pair })
}

fn load_decoder<D: EncoderDevice>(
    device: &Arc<D>,
    checkpoint: &Checkpoint,
    config: &PoolingConfig,
    tokenizer: &Tokenizer,
    options: &EngineOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Parts> {
    if config.kind == PoolingKind::Embedding && config.pooling != Pooling::Last {
        let reason = format!("a decoder whose vector is pooled by {:?}; expected its last token", config.pooling);
        return Err(EngineError::Unsupported(reason));
    }
    let shape = &checkpoint.config;
    let most = config.max_seq_len.unwrap_or(usize::MAX).min(shape.max_position_embeddings).min(DEFAULT_DECODER_LEN);
    let max_seq_len = sequence_len(options, shape.max_position_embeddings, most)?;
    if options.kv_cache_dtype == KvDtype::Fp8 {
        let reason = "fp8 is for models that generate; the cache of one that pools lives for a batch".to_owned();
        return Err(EngineError::Option { option: "kv_cache_dtype", reason });
    }
    let kv_dtype = kv_dtype(&**device, options.kv_cache_dtype);
    let step = options.max_num_batched_tokens.unwrap_or_else(|| device.step_size().max_num_batched_tokens);
    let limits = DecoderLimits {
        batch: batch_limits(&**device, options, max_seq_len, DEFAULT_DECODER_SEQS),
        max_step_tokens: step,
        max_seq_len,
        kv_dtype,
    };
    let workspace = workspace_bytes(shape, step, limits.batch.max_seqs, device.activation_dtype(), device.residual_dtype());
    let cache = limits.cache_tokens() * shape.kv_bytes_per_token(kv_dtype.size());
    let weights = device.weight_bytes(checkpoint.weight_size());
    check_memory(&**device, options, weights + workspace + cache)?;
    let scores = match config.kind {
        PoolingKind::Embedding => None,
        PoolingKind::Reranker => {
            let (yes, no) = template::answers(tokenizer)?;
            Some(Scores::difference(&checkpoint.linear(LinearRole::LmHead, 0)?.parts, yes, no))
        }
    };
    let mut on_layer = |done: usize, layers: usize| {
        progress(LoadProgress { stage: "weights", done_bytes: weights / layers * done, total_bytes: weights });
    };
    let decoder = Decoder::load(&**device, checkpoint, max_seq_len, &mut on_layer)?;
    let num_labels = usize::from(scores.is_some());
    let pooling = PoolingLimits { batch: limits.batch, max_seq_len, vocab_size: shape.vocab_size, max_waiting: options.max_waiting };
    let model = DecoderModel::new(device.clone(), decoder, scores, limits)?;
    Ok(Parts { model: Box::new(model), limits: pooling, dims: shape.hidden_size, num_labels, scoring: Scoring::Question })
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

fn check_memory<D: EncoderDevice>(device: &D, options: &EngineOptions, needed_bytes: usize) -> Result<()> {
    let free = match options.memory_limit_bytes {
        Some(bytes) => bytes,
        None => device.free_memory()?,
    };
    let available_bytes = (free as f64 * f64::from(options.memory_utilization)) as usize;
    if needed_bytes <= available_bytes {
        return Ok(());
    }
    let hint = "lower max_model_len or max_num_batched_tokens, or use a smaller model".to_owned();
    Err(EngineError::OutOfMemory { what: "a pooling model with its buffers".into(), needed_bytes, available_bytes, hint })
}
