//! From a folder to a running pooling model: open, plan the memory, load, start.

use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::config::PoolingKind;
use super::decoder_model::DecoderModel;
use super::dense::Projected;
use super::encoder_model::EncoderModel;
use super::engine::{PoolingHandle, start};
use super::head::{Classifier, Scores};
use super::plan::{PoolingPlan, decoder_limits};
use super::source::{Opened, PoolingDescription, Source};
use super::{BatchLimits, SequenceModel, template};
use crate::device::cpu::CpuDevice;
use crate::device::encoder::EncoderDevice;
use crate::error::Result;
use crate::loader::{EngineOptions, LoadProgress, cuda_device};
use crate::memory_meter::MemoryMeter;
use crate::models::decoder::Decoder;
use crate::models::encoder::Encoder;
use crate::weights::checkpoint::{Checkpoint, LinearRole};
use crate::weights::encoder_checkpoint::EncoderCheckpoint;

/// A running pooling model and what callers need around it.
pub struct LoadedPooling {
    /// The thread.
    pub handle: PoolingHandle,
    /// What it is.
    pub description: PoolingDescription,
    /// What was taken of the memory.
    pub memory: MemoryMeter,
    /// "cpu avx512".
    pub device: String,
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
    let source = Source::open(path, kind, options)?;
    if options.device.is_cuda() {
        return load_on(&Arc::new(cuda_device(options)?), source, options, progress);
    }
    load_on(&Arc::new(CpuDevice::new(options.threads)?), source, options, progress)
}

/// Reads everything but the weights.
///
/// # Errors
/// As `load`.
pub fn describe(path: &Path, kind: Option<PoolingKind>, options: &EngineOptions) -> Result<PoolingDescription> {
    let source = Source::open(path, kind, options)?;
    let plan = if options.device.is_cuda() {
        PoolingPlan::new(&cuda_device(options)?, &source, options)?
    } else {
        PoolingPlan::new(&CpuDevice::new(options.threads)?, &source, options)?
    };
    Ok(source.describe(plan)?.0)
}

/// Loads the model of a folder and starts its thread, for a caller who has described it already.
///
/// # Errors
/// As `load`.
pub fn load_engine(path: &Path, kind: Option<PoolingKind>, options: &EngineOptions) -> Result<PoolingHandle> {
    Ok(load(path, kind, options, &mut |_| {})?.handle)
}

fn load_on<D: EncoderDevice>(
    device: &Arc<D>,
    source: Source,
    options: &EngineOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<LoadedPooling> {
    let plan = PoolingPlan::new(&**device, &source, options)?;
    let memory = MemoryMeter::new(device.clone());
    let total_bytes = plan.weight_bytes;
    let mut on_layer = |done: usize, layers: usize| {
        progress(LoadProgress { stage: "weights", done_bytes: total_bytes / layers * done, total_bytes });
    };
    let mut model = match &source.opened {
        Opened::Encoder(checkpoint) => load_encoder(device, checkpoint, &source, &plan, &mut on_layer)?,
        Opened::Decoder(checkpoint) => load_decoder(device, checkpoint, &source, options, &mut on_layer)?,
    };
    let (description, layers) = source.describe(plan)?;
    if !layers.is_empty() {
        model = Box::new(Projected { model, layers });
    }
    let (device, limits, dims) = (device.name(), description.plan.limits, description.dims);
    let BatchLimits { max_tokens, max_seqs } = limits.batch;
    info!(kind = ?description.config.kind, device, dims, max_seq_len = limits.max_seq_len, max_tokens, max_seqs, "pooling model ready");
    Ok(LoadedPooling { handle: start(model, limits)?, description, memory, device })
}

fn load_encoder<D: EncoderDevice>(
    device: &Arc<D>,
    checkpoint: &EncoderCheckpoint,
    source: &Source,
    plan: &PoolingPlan,
    on_layer: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn SequenceModel>> {
    let encoder = Encoder::load(&**device, checkpoint, plan.limits.max_seq_len, on_layer)?;
    let classifier = Classifier::load(checkpoint)?;
    Ok(Box::new(EncoderModel::new(device.clone(), encoder, classifier, source.config.pooling, plan.limits.batch)?))
}

fn load_decoder<D: EncoderDevice>(
    device: &Arc<D>,
    checkpoint: &Checkpoint,
    source: &Source,
    options: &EngineOptions,
    on_layer: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn SequenceModel>> {
    let limits = decoder_limits(&**device, checkpoint, source, options)?;
    let scores = match source.kind {
        PoolingKind::Embedding => None,
        PoolingKind::Reranker => {
            let (yes, no) = template::answers(&source.tokenizer()?)?;
            Some(Scores::difference(&checkpoint.linear(LinearRole::LmHead, 0)?.parts, yes, no))
        }
    };
    let decoder = Decoder::load(&**device, checkpoint, limits.max_seq_len, on_layer)?;
    Ok(Box::new(DecoderModel::new(device.clone(), decoder, scores, limits)?))
}
