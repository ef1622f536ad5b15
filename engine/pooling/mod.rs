//! Models whose answer is a vector or a score instead of text: encoders and decoders with pooled hidden states.
//!
//! `loader` opens a folder and starts a thread of its own (`engine`); `PoolingHandle` is the way into it. Sequences of all requests share
//! batches by number of tokens (`queue`). `text` and `template` make sequences of texts, on the caller's thread.

pub mod config;
mod decoder_model;
mod dense;
mod encoder_model;
pub mod engine;
mod head;
pub mod loader;
mod plan;
mod queue;
mod source;
pub mod template;
pub mod text;

pub use config::{PoolingConfig, PoolingKind};
pub use engine::{PoolingHandle, PoolingStats};
pub use loader::{LoadedPooling, describe, load, load_engine};
pub use plan::PoolingPlan;
pub use source::{PoolingDescription, Scoring};
pub use text::{Encoded, PoolingText};

use crate::error::Result;

/// Tokens of one text, or of a query with its document, special tokens included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token; empty: all 0.
    pub token_types: Vec<u32>,
}

/// Bounds of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens; no less than the longest sequence has.
    pub max_tokens: usize,
    /// Sequences.
    pub max_seqs: usize,
}

/// A model on a device, ready to run batches.
pub(crate) trait SequenceModel: Send {
    /// One vector a sequence: a pooled hidden state, or scores. Sequences are within the limits of the batch and not empty.
    fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>>;
    /// Gives memory to other models; nothing runs before `wake`.
    fn sleep(&mut self) -> Result<()> {
        Ok(())
    }
    /// Takes the memory back.
    fn wake(&mut self) -> Result<()> {
        Ok(())
    }
}
