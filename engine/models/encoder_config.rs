//! The resolved shape of an encoder, made by `encoder_families.rs` from a Hugging Face config.json.

use super::config::{Activation, RopeConfig};

/// How an encoder knows where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A table of `rows` learned vectors; the first token takes row `offset` (RoBERTa: 1 + pad token id).
    Learned {
        /// Rows of the table.
        rows: usize,
        /// Row of the first token.
        offset: usize,
    },
    /// Queries and keys are rotated; layers with a radius by `local`.
    Rotary {
        /// Of layers that see everything.
        global: RopeConfig,
        /// Of layers that see their neighbourhood.
        local: RopeConfig,
    },
}

/// What a classification head does between the pooled row and its scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadActivation {
    /// tanh (BERT, RoBERTa, MPNet).
    Tanh,
    /// max(x, 0) (DistilBERT).
    Relu,
    /// GELU, then a layer norm (ModernBERT).
    GeluNorm,
}

/// A classification head: dense, activation, perhaps a norm, scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadConfig {
    /// Scores of a sequence.
    pub num_labels: usize,
    /// Between dense and scores.
    pub activation: HeadActivation,
    /// Pools the mean of the rows instead of taking the first.
    pub pools_mean: bool,
    /// The dense layer has a bias.
    pub dense_bias: bool,
}

/// An encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Row of the table of families.
    pub family: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Heads.
    pub num_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Longest sequence, special tokens included.
    pub max_seq_len: usize,
    /// Where tokens stand.
    pub positions: Positions,
    /// Rows of the table of what is added to scores by distance; None: nothing is.
    pub relative_buckets: Option<usize>,
    /// Segments; 0: the model has none.
    pub num_token_types: usize,
    /// Norms stand before attention and MLP (ModernBERT) instead of behind their sums (BERT).
    pub pre_norm: bool,
    /// The MLP multiplies its activated half with the other half.
    pub gated: bool,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Attention layers have biases.
    pub attention_bias: bool,
    /// MLP layers have biases.
    pub mlp_bias: bool,
    /// Norms have biases.
    pub norm_bias: bool,
    /// Of each layer: how far its queries see to both sides; None: everything.
    pub radii: Vec<Option<usize>>,
    /// The classification head, where the checkpoint is a classifier.
    pub head: Option<HeadConfig>,
}
