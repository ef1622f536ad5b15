//! An opened model that pools: its checkpoint and its files of sentence-transformers, before any weight is read.

use std::path::Path;

use super::PoolingText;
use super::config::{PoolingConfig, PoolingKind, architecture, detect};
use super::dense::Dense;
use super::plan::PoolingPlan;
use crate::device::encoder::Pooling;
use crate::error::{EngineError, Result};
use crate::loader::EngineOptions;
use crate::models::encoder_families::is_encoder;
use crate::text::Tokenizer;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::encoder_checkpoint::EncoderCheckpoint;
use crate::weights::json::{Fields, checkpoint_error, read_object};

/// How a reranker reads a query and a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// As a pair of texts; the score is a logit.
    Pair,
    /// As a question in the model's frame; the score is the log-odds of yes against no.
    Question,
}

/// What is known of a pooling model before its weights are loaded.
pub struct PoolingDescription {
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
    /// Where the memory goes.
    pub plan: PoolingPlan,
}

/// An opened folder, of either kind.
pub(super) enum Opened {
    Encoder(Box<EncoderCheckpoint>),
    Decoder(Box<Checkpoint>),
}

/// An opened folder with its files of sentence-transformers.
pub(super) struct Source {
    pub kind: PoolingKind,
    pub opened: Opened,
    pub config: PoolingConfig,
    pub dense: Vec<Dense>,
}

impl Source {
    /// Opens a folder.
    pub fn open(path: &Path, kind: Option<PoolingKind>, options: &EngineOptions) -> Result<Source> {
        options.validate()?;
        let known = detect(path)?;
        let kind = kind.or(known).ok_or_else(|| checkpoint_error(path, "is no model of embeddings or for reranking"))?;
        let opened = open(path, kind, options)?;
        let (fallback, mut width) = match &opened {
            Opened::Encoder(checkpoint) => (Pooling::Mean, checkpoint.config.hidden_size),
            Opened::Decoder(checkpoint) => (Pooling::Last, checkpoint.config.hidden_size),
        };
        let config = PoolingConfig::read(path, kind, fallback)?;
        let mut dense = Vec::with_capacity(config.dense.len());
        for folder in config.dense.iter().filter(|_| kind == PoolingKind::Embedding) {
            dense.push(Dense::load(folder, width)?);
            width = dense[dense.len() - 1].out_features();
        }
        Ok(Source { kind, opened, config, dense })
    }

    /// Numbers of a vector.
    pub fn dims(&self) -> usize {
        let hidden = match &self.opened {
            Opened::Encoder(checkpoint) => checkpoint.config.hidden_size,
            Opened::Decoder(checkpoint) => checkpoint.config.hidden_size,
        };
        self.dense.last().map_or(hidden, Dense::out_features)
    }

    /// Scores of a sequence.
    pub fn num_labels(&self) -> usize {
        match &self.opened {
            Opened::Encoder(checkpoint) => checkpoint.config.head.map_or(0, |head| head.num_labels),
            Opened::Decoder(_) => usize::from(self.kind == PoolingKind::Reranker),
        }
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.opened {
            Opened::Encoder(checkpoint) => Tokenizer::from_source(&checkpoint.tokenizer, &checkpoint.text),
            Opened::Decoder(checkpoint) => Tokenizer::from_source(&checkpoint.tokenizer, &checkpoint.text),
        }
    }

    /// What is known of it under this plan, and its layers behind pooling.
    pub fn describe(self, plan: PoolingPlan) -> Result<(PoolingDescription, Vec<Dense>)> {
        let (tokenizer, dims, num_labels) = (self.tokenizer()?, self.dims(), self.num_labels());
        let scoring = if matches!(self.opened, Opened::Encoder(_)) { Scoring::Pair } else { Scoring::Question };
        let text = PoolingText::new(tokenizer, plan.limits.max_seq_len);
        Ok((PoolingDescription { text, config: self.config, dims, num_labels, scoring, plan }, self.dense))
    }
}

fn open(path: &Path, kind: PoolingKind, options: &EngineOptions) -> Result<Opened> {
    let config = path.join("config.json");
    let name = if path.is_dir() { architecture(&Fields::new(&config, read_object(&config)?))?.unwrap_or_default() } else { String::new() };
    if !is_encoder(&name) {
        let mut checkpoint = Checkpoint::open(path)?;
        if options.quantization.is_some() || options.head_format.is_some() || options.embedding_format.is_some() {
            checkpoint.quantize_at_load(options.quantization, options.head_format, options.embedding_format)?;
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
