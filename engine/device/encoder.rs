//! The operations an encoder needs beside those of a decoder: layer norms, learned positions, attention in both directions, pooling.
//!
//! Called by `models/encoder.rs` and `pooling/`. The conventions of `Device` hold: outputs first, rows are the tokens of the step, sums in
//! f32, shapes asserted. There is no cache: a step holds whole sequences.

use super::{Device, RopeTable, Tensor};
use crate::error::Result;
use crate::models::config::Activation;

/// One step of whole sequences, packed one after another: those of sequence `s` are rows `cu_seqlens[s] .. cu_seqlens[s + 1]`.
pub struct EncoderStep<D: Device> {
    /// Tokens of the step.
    pub num_tokens: usize,
    /// Sequences of the step.
    pub num_seqs: usize,
    /// Tokens of the longest sequence.
    pub max_seq_len: usize,
    /// `[num_tokens]` token ids.
    pub token_ids: D::Ints,
    /// `[num_tokens]` positions, as rows of the table of positions or of the rotation.
    pub positions: D::Ints,
    /// `[num_tokens]` segment of each token (BERT's token types).
    pub token_types: D::Ints,
    /// `[num_seqs + 1]` first row of each sequence.
    pub cu_seqlens: D::Ints,
}

impl<D: Device> EncoderStep<D> {
    /// Room for the largest step.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn alloc(device: &D, max_tokens: usize, max_seqs: usize) -> Result<EncoderStep<D>> {
        Ok(EncoderStep {
            num_tokens: 0,
            num_seqs: 0,
            max_seq_len: 0,
            token_ids: device.alloc_ints(max_tokens)?,
            positions: device.alloc_ints(max_tokens)?,
            token_types: device.alloc_ints(max_tokens)?,
            cu_seqlens: device.alloc_ints(max_seqs + 1)?,
        })
    }
}

/// Layer norm with its shift: `(x - mean) / sqrt(variance + eps) * weight + bias`.
pub struct LayerNorm<D: Device> {
    /// `[cols]`.
    pub weight: D::Vector,
    /// `[cols]`, zeros where the checkpoint has none.
    pub bias: D::Vector,
    /// Inside the root.
    pub eps: f32,
}

/// One encoder layer's attention; every head has keys and values of its own.
#[derive(Clone, Copy, Debug)]
pub struct EncoderAttention {
    /// Heads.
    pub num_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// A query at position p sees keys at positions p - radius ..= p + radius. None: all of its sequence.
    pub radius: Option<usize>,
}

/// What is added to the scaled score of a query and a key by how far they are apart (MPNet).
pub struct RelativeBias<D: Device> {
    /// `[num_heads, 2 * reach - 1]`; that of a key `d` positions behind its query is at `reach - 1 + d`.
    pub values: D::Vector,
    /// Tokens of the longest sequence.
    pub reach: usize,
}

/// How the rows of a sequence become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first row.
    Cls,
    /// The last row.
    Last,
    /// Their mean.
    Mean,
    /// Their sum divided by the square root of their number.
    MeanSqrtLen,
    /// The largest value of each column.
    Max,
    /// The mean weighted by position, counted from 1.
    WeightedMean,
}

/// A device that runs encoders.
pub trait EncoderDevice: Device {
    /// out[t, :] = table[ids[t], :]; t < num_tokens. Sets out.rows.
    fn embed(&self, out: &mut Tensor<Self>, table: &Self::Weight, ids: &Self::Ints, num_tokens: usize) -> Result<()>;
    /// out[t, :] += table[ids[t], :]; t < out.rows.
    fn embed_add(&self, out: &mut Tensor<Self>, table: &Self::Weight, ids: &Self::Ints) -> Result<()>;
    /// out[t, :] = norm(x[t, :]). Sets out.rows.
    fn layer_norm(&self, out: &mut Tensor<Self>, x: &Tensor<Self>, norm: &LayerNorm<Self>) -> Result<()>;
    /// residual += x; out = norm(residual). Sets out.rows. What `residual` holds afterwards is that sum.
    fn add_layer_norm(&self, out: &mut Tensor<Self>, residual: &mut Tensor<Self>, x: &Tensor<Self>, norm: &LayerNorm<Self>) -> Result<()>;
    /// x = act(x), in place.
    fn activate(&self, x: &mut Tensor<Self>, activation: Activation) -> Result<()>;
    /// Rotates the query and key heads of rows `[3 * num_heads * head_dim]` (q, k, v) in place, each by its position.
    fn rotate(&self, qkv: &mut Tensor<Self>, positions: &Self::Ints, attention: &EncoderAttention, rope: &RopeTable<Self>) -> Result<()>;
    /// Attention of every row over its own sequence, in both directions, with `bias` on the scores. qkv: `[num_tokens, 3 * num_heads * head_dim]`; out:
    /// `[num_tokens, num_heads * head_dim]`. Sets out.rows.
    fn bidirectional_attention(
        &self,
        out: &mut Tensor<Self>,
        qkv: &Tensor<Self>,
        step: &EncoderStep<Self>,
        params: &EncoderAttention,
        bias: Option<&RelativeBias<Self>>,
    ) -> Result<()>;
    /// One row a sequence: `[num_seqs, cols]`. Sets out.rows.
    fn pool(&self, out: &mut Tensor<Self>, x: &Tensor<Self>, step: &EncoderStep<Self>, pooling: Pooling) -> Result<()>;
    /// The rows in use as f32, on the host: waits for everything queued.
    fn read_rows(&self, x: &Tensor<Self>) -> Result<Vec<f32>>;
}
