//! The ~25 operations a decoder needs, as one trait. Models are written once over it.
//!
//! Called by `models/` and `runner/`. It knows tensors and step metadata, and nothing of requests, files or text.
//! Conventions: outputs first; every matrix is row-major `[rows, cols]`; `rows` is the number of tokens of the step unless
//! said otherwise; products and norms accumulate in f32. Shapes are asserted: a mismatch is our mistake, not the caller's input.

pub mod cpu;
pub mod cuda;
pub mod encoder;
pub mod form;
pub mod step;
pub mod tensor;

use std::sync::Arc;

pub use form::{CodeForm, CodedForm, MatrixForm, MatrixLoad, MatrixUse, StoredForm, ZeroForm};
pub use step::{RowGather, StepInts, StepRoom, StepTensors};
pub use tensor::{DType, HostMatrix, HostWeight, Ints, Tensor};

use crate::error::EngineError;
use crate::memory_plan::StepSize;
use crate::models::config::{Activation, ModelConfig};
use crate::sampling::{SampleOutput, SampleRow, SamplingParams, TokenHistory};
use crate::weights::size::WeightSize;

/// A linear layer: `out[t, n] = sum_k x[t, k] * w[n, k] + bias[n]`.
///
/// `parts` are stacked along `n` (q, k, v; gate, up), each in its own format, so that weights mapped from a file need no copy.
pub struct Linear<D: Device> {
    /// The stacked matrices, each `[n_i, k]`.
    pub parts: Vec<D::Weight>,
    /// `[sum n_i]` f32, or none.
    pub bias: Option<D::Vector>,
    /// Output columns, the sum of the parts' rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
}

/// Weights of one mixture-of-experts layer.
pub struct MoeWeights<D: Device> {
    /// Router, `[num_experts, hidden]`.
    pub router: Linear<D>,
    /// One gate+up `Linear` (`[2 * moe_intermediate, hidden]`, gate first) per expert.
    pub gate_up: Vec<Linear<D>>,
    /// One down `Linear` (`[hidden, moe_intermediate]`) per expert.
    pub down: Vec<Linear<D>>,
    /// Experts chosen per token.
    pub top_k: usize,
    /// Whether the chosen probabilities are divided by their sum.
    pub renormalise: bool,
    /// Activation between gate and up.
    pub activation: Activation,
}

/// Cosine and sine of every position, made once at load (see `models/rope.rs`).
pub struct RopeTable<D: Device> {
    /// `[max_positions, rotary_dim / 2]` f32.
    pub cos: D::Vector,
    /// `[max_positions, rotary_dim / 2]` f32.
    pub sin: D::Vector,
    /// Dimensions of a head that rotate; the rest pass through. Even, at most head_dim.
    pub rotary_dim: usize,
    /// Which dimensions form a pair.
    pub style: RopeStyle,
}

/// Which dimensions of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` with `i + rotary_dim / 2` (Hugging Face checkpoints, GGUF of Qwen2).
    HalfSplit,
    /// `2i` with `2i + 1` (GGUF of the llama architecture stores q and k rows in this order).
    Interleaved,
}

/// What `rope_kv_store` does to one layer's fused q, k, v rows.
pub struct RopeKvParams<'a, D: Device> {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// RMS norm of each query head before rope (Qwen3, Gemma 3), `[head_dim]`.
    pub q_norm: Option<&'a D::Vector>,
    /// RMS norm of each key head before rope, `[head_dim]`.
    pub k_norm: Option<&'a D::Vector>,
    /// Epsilon of those norms.
    pub eps: f32,
    /// The rotation of this layer.
    pub rope: &'a RopeTable<D>,
}

/// One layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; `num_heads` is a multiple.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Sliding window: a query at position p sees keys at positions > p - window. None: all up to p.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` before the mask (Gemma 2).
    pub soft_cap: Option<f32>,
}

/// Shape of one layer's paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks of the pool.
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: DType,
}

/// What keys and values are divided by before a cache of e4m3 rounds them, one for each of the layer's kv heads.
#[derive(Clone, Debug, PartialEq)]
pub struct KvScales {
    /// Of keys.
    pub k: Vec<f32>,
    /// Of values.
    pub v: Vec<f32>,
}

impl KvScales {
    /// No change.
    pub fn ones(num_kv_heads: usize) -> KvScales {
        KvScales { k: vec![1.0; num_kv_heads], v: vec![1.0; num_kv_heads] }
    }
}

impl KvShape {
    /// Bytes of k and v of one block of one layer.
    pub fn block_bytes(&self) -> usize {
        2 * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.size()
    }
}

/// A device. Chosen at start; the decoder, the runner and the sampler are generic over it.
///
/// `Tensor`s are taken from the workspace at start; no op of a step allocates device memory.
pub trait Device: Send + Sync + Sized + 'static {
    /// Backing memory of activations.
    type Buffer: Send + Sync;
    /// Backing memory of step metadata.
    type Ints: Send + Sync;
    /// A matrix of weights `[n, k]` in any format of `weights/format.rs`.
    type Weight: Send + Sync;
    /// A vector of f32 weights (norms, biases, rope tables).
    type Vector: Send + Sync;
    /// One layer's paged keys and values.
    type KvLayer: Send + Sync;
    /// Results of `sample` that may still be on their way.
    type Pending: Send;
    /// Ops of a step, to be queued again as a whole.
    type Recording: Send;

    /// Name for logs: "cpu avx512", "cuda H100".
    fn name(&self) -> String;
    /// Element type of activations on this device.
    fn activation_dtype(&self) -> DType;
    /// Element type of the residual stream: sums of many layers may be kept more exactly than what products read.
    fn residual_dtype(&self) -> DType {
        self.activation_dtype()
    }
    /// Element type of the KV cache when the configuration says "auto".
    fn default_kv_dtype(&self) -> DType;
    /// Bytes that could be taken right now.
    fn free_memory(&self) -> Result<usize, EngineError>;

    /// Bytes that a checkpoint's weights take on this device.
    fn weight_bytes(&self, weights: &WeightSize) -> usize;
    /// Bytes of dense copies of what is packed of them, if they are kept.
    fn dense_copy_bytes(&self, _weights: &WeightSize) -> usize {
        0
    }
    /// Share of the free memory that the KV pool takes when nobody says how much.
    fn kv_share(&self) -> f32;
    /// How large a step may be when nobody says.
    fn step_size(&self) -> StepSize;
    /// Bytes that this device takes for a model beside weights, workspace and KV pool, at the latest in its first step.
    ///
    /// # Errors
    /// A model that this device has no kernels for.
    fn scratch_bytes(&self, _config: &ModelConfig, _step: StepSize, _weights: &WeightSize) -> Result<usize, EngineError> {
        Ok(0)
    }
    /// Bytes of the device's own memory that are taken, by whomever; None where weights are not copied to memory of its own.
    fn memory_in_use(&self) -> Option<usize> {
        None
    }
    /// Gives memory to other models: weights and vectors are kept on the host, whatever else was there is lost, and addresses stay. Nothing is
    /// called before `wake` but this again; after an error all is as it was.
    fn sleep(&self, _kv: &mut [Self::KvLayer]) -> Result<(), EngineError> {
        Ok(())
    }
    /// Takes the memory of `sleep` back; the KV pool holds zeros. After an error it may be tried again.
    fn wake(&self) -> Result<(), EngineError> {
        Ok(())
    }
    /// Waits until everything queued is done. For tools; a step never waits so.
    fn wait(&self) -> Result<(), EngineError> {
        Ok(())
    }

    // ---- memory, at start only ----------------------------------------------------------------------------------------
    /// A zeroed activation matrix with room for `max_rows` rows.
    fn alloc(&self, max_rows: usize, cols: usize, dtype: DType) -> Result<Tensor<Self>, EngineError>;
    /// Room for `len` i32.
    fn alloc_ints(&self, len: usize) -> Result<Self::Ints, EngineError>;
    /// A layer's KV pool. Scales of e4m3 are 1.
    fn alloc_kv(&self, shape: KvShape) -> Result<Self::KvLayer, EngineError>;
    /// Sets the scales of a pool of e4m3 before anything is stored; does nothing to others.
    fn set_kv_scales(&self, _kv: &mut Self::KvLayer, _scales: &KvScales) -> Result<(), EngineError> {
        Ok(())
    }
    /// Takes a weight matrix from the host. The CPU keeps the mapping; a GPU uploads and repacks.
    fn load_weight(&self, weight: HostWeight) -> Result<Self::Weight, EngineError>;
    /// Takes a matrix of either form. A device without kernels for codes makes bf16 of them.
    fn load_matrix(&self, matrix: HostMatrix, load: MatrixLoad) -> Result<Self::Weight, EngineError> {
        self.load_weight(matrix.converted(load)?.into_rows())
    }
    /// Takes the parts of a linear layer. A device may stack neighbours: then it answers with fewer matrices.
    fn load_parts(&self, parts: Vec<HostMatrix>, load: MatrixLoad) -> Result<Vec<Self::Weight>, EngineError> {
        parts.into_iter().map(|part| self.load_matrix(part, load)).collect()
    }
    /// Whether matrices loaded from now on keep a dense copy beside their codes, on a device that packs them.
    fn keep_dense_copies(&self, _kept: bool) {}
    /// All weights are there: gives back what only loading needed.
    fn weights_loaded(&self) -> Result<(), EngineError> {
        Ok(())
    }
    /// Takes a vector from the host.
    fn load_vector(&self, values: &[f32]) -> Result<Self::Vector, EngineError>;
    /// Rows `n` and columns `k` of a weight.
    fn weight_shape(&self, weight: &Self::Weight) -> (usize, usize);

    // ---- step metadata --------------------------------------------------------------------------------------------------
    /// Step tensors for the largest step.
    fn alloc_step(&self, room: &StepRoom) -> Result<StepTensors<Self>, EngineError> {
        StepTensors::alloc(room, |len| self.alloc_ints(len))
    }
    /// Sets every array of `step` to its namesake of `ints`, for the ops queued from now on.
    fn write_step(&self, step: &mut StepTensors<Self>, ints: &StepInts) -> Result<(), EngineError> {
        step.for_each(ints, |dst, src| self.write_ints(dst, src))
    }
    /// dst[..src.len()] = src.
    fn write_ints(&self, dst: &mut Self::Ints, src: &[i32]) -> Result<(), EngineError>;
    /// token_ids[i] = last_tokens[token_source[i]] where token_source[i] >= 0; i < num_tokens.
    fn resolve_tokens(&self, step: &mut StepTensors<Self>, last_tokens: &Self::Ints) -> Result<(), EngineError>;

    // ---- the decoder's ops ------------------------------------------------------------------------------------------------
    /// out[t, :] = table[token_ids[t], :] * scale. Sets out.rows = num_tokens.
    fn embedding(&self, out: &mut Tensor<Self>, table: &Self::Weight, step: &StepTensors<Self>, scale: f32) -> Result<(), EngineError>;
    /// out[t, :] = x[t, :] / rms(x[t, :]) * w; rms over cols with eps inside the root. Sets out.rows = x.rows.
    /// A `1 + w` of Gemma is folded into `w` at load.
    fn rms_norm(&self, out: &mut Tensor<Self>, x: &Tensor<Self>, weight: &Self::Vector, eps: f32) -> Result<(), EngineError>;
    /// residual += x; out = rms_norm(residual) * w. Sets out.rows.
    fn add_rms_norm(
        &self,
        out: &mut Tensor<Self>,
        residual: &mut Tensor<Self>,
        x: &Tensor<Self>,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<(), EngineError>;
    /// residual += rms_norm(x) * w (the post norms of Gemma 2 and 3).
    fn norm_add(&self, residual: &mut Tensor<Self>, x: &Tensor<Self>, weight: &Self::Vector, eps: f32) -> Result<(), EngineError>;
    /// out = x · wᵀ + bias over the stacked parts. Sets out.rows = x.rows; out.cols == linear.n.
    fn linear(&self, out: &mut Tensor<Self>, x: &Tensor<Self>, linear: &Linear<Self>) -> Result<(), EngineError>;
    /// out[t, i] = act(gate[t, i]) * up[t, i] where gate and up are the halves of x · wᵀ + bias. `scratch` has gate_up.n columns and room
    /// for x.rows; what it holds afterwards is not said. Sets out.rows = x.rows.
    fn linear_gated(
        &self,
        out: &mut Tensor<Self>,
        scratch: &mut Tensor<Self>,
        x: &Tensor<Self>,
        gate_up: &Linear<Self>,
        activation: Activation,
    ) -> Result<(), EngineError> {
        self.linear(scratch, x, gate_up)?;
        self.gated_activation(out, scratch, activation)
    }
    /// Splits qkv rows `[(num_heads + 2 * num_kv_heads) * head_dim]` into q, k, v; norms and rotates q and k in place;
    /// writes k and v to their slots of `kv`.
    fn rope_kv_store(
        &self,
        qkv: &mut Tensor<Self>,
        kv: &mut Self::KvLayer,
        step: &StepTensors<Self>,
        params: &RopeKvParams<'_, Self>,
    ) -> Result<(), EngineError>;
    /// Causal attention of every query row over its sequence's paged context (varlen: prefill, chunks and decode alike).
    /// q is the first `num_heads * head_dim` columns of qkv; out: `[num_tokens, num_heads * head_dim]`. Sets out.rows.
    fn attention(
        &self,
        out: &mut Tensor<Self>,
        qkv: &Tensor<Self>,
        kv: &Self::KvLayer,
        step: &StepTensors<Self>,
        params: &AttentionParams,
    ) -> Result<(), EngineError>;
    /// Whether `attention` makes use of `StepTensors::prefix_groups`; else nobody looks for them.
    fn shares_prefixes(&self) -> bool {
        false
    }
    /// `rope_kv_store`, then `attention`. Afterwards qkv holds rotated or plain rows, as the device likes.
    fn rope_attention(
        &self,
        out: &mut Tensor<Self>,
        qkv: &mut Tensor<Self>,
        kv: &mut Self::KvLayer,
        step: &StepTensors<Self>,
        rope: &RopeKvParams<'_, Self>,
        attention: &AttentionParams,
    ) -> Result<(), EngineError> {
        self.rope_kv_store(qkv, kv, step, rope)?;
        self.attention(out, qkv, kv, step, attention)
    }
    /// out[t, i] = act(gate_up[t, i]) * gate_up[t, n + i]; out.cols = n, gate_up.cols = 2n. Sets out.rows.
    fn gated_activation(&self, out: &mut Tensor<Self>, gate_up: &Tensor<Self>, activation: Activation) -> Result<(), EngineError>;
    /// Mixture of experts: softmax router, top-k experts, weighted sum. out: `[x.rows, hidden]`. Sets out.rows = x.rows.
    fn moe(&self, out: &mut Tensor<Self>, x: &Tensor<Self>, weights: &MoeWeights<Self>) -> Result<(), EngineError>;
    /// out[i, :] = x[logit_rows[first_logit_row + i], :]; i < num_logit_rows. Sets out.rows = num_logit_rows.
    fn gather_rows(&self, out: &mut Tensor<Self>, x: &Tensor<Self>, step: &StepTensors<Self>) -> Result<(), EngineError>;
    /// x = cap * tanh(x / cap), in place (final logits of Gemma 2).
    fn soft_cap(&self, x: &mut Tensor<Self>, cap: f32) -> Result<(), EngineError>;

    // ---- recorded steps -----------------------------------------------------------------------------------------------------
    /// Whether `record` records: then a step's shape may be rounded up, so that few recordings serve all steps.
    fn can_record(&self) -> bool {
        false
    }
    /// Records the ops that `run` queues, without running them. `run` has run before with the same shapes.
    fn record(&self, run: &mut dyn FnMut() -> Result<(), EngineError>) -> Result<Self::Recording, EngineError>;
    /// Queues recorded ops again: on the same tensors, with what these and the step's arrays hold then. Sets no `rows`.
    fn replay(&self, recording: &Self::Recording) -> Result<(), EngineError>;

    // ---- cache and sampling -------------------------------------------------------------------------------------------------
    /// Copies whole blocks (copy-on-write): for each (src, dst), block dst = block src.
    fn copy_blocks(&self, kv: &mut Self::KvLayer, pairs: &[(u32, u32)]) -> Result<(), EngineError>;
    /// Room for sampling in `max_slots` slots from rows of `vocab` logits. Once, at start, before the ops below.
    fn prepare_sampling(&self, _max_slots: usize, _vocab: usize) -> Result<(), EngineError> {
        Ok(())
    }
    /// The slots of `rows` begin new lives, with these parameters and histories; before they are sampled, and never during a recording.
    /// `logits_row`, `output_index` and `allowed` are not read.
    fn admit(&self, _rows: &[SampleRow<'_>]) -> Result<(), EngineError> {
        Ok(())
    }
    /// Queues the sampling of each row of `rows` from the logits row it names (f32, `[num_logit_rows, vocab]`). The tokens are in
    /// `last_tokens[row.slot]` for every op queued after this one; `sampled` brings them to the host.
    fn sample(&self, logits: &mut Tensor<Self>, rows: &[SampleRow<'_>], last_tokens: &mut Self::Ints)
    -> Result<Self::Pending, EngineError>;
    /// Waits for a `sample`: token and logprobs in the order of its rows.
    fn sampled(&self, pending: Self::Pending) -> Result<Vec<SampleOutput>, EngineError>;
    /// Whether `sampled` would return without waiting.
    fn is_sampled(&self, pending: &Self::Pending) -> bool;
    /// Whether `sample` reads `SampleRow::history` for such a row, so that every token before it must have come to the host.
    fn needs_history(&self, params: &SamplingParams) -> bool {
        TokenHistory::is_kept_for(params)
    }
    /// Log-softmax of the logits rows at chosen tokens, for prompt logprobs: for each (row, token), the token's logprob and
    /// rank, and the `top` best (id, logprob) in descending order.
    fn row_logprobs(
        &self,
        logits: &Tensor<Self>,
        rows: &[(usize, u32)],
        top: usize,
    ) -> Result<Vec<crate::sampling::TokenLogprobs>, EngineError>;
}

/// Shared handle on a device.
pub type DeviceRef<D> = Arc<D>;
