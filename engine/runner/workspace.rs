//! Every activation buffer of a step, taken once at start and sized for the largest step.

use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::models::config::{Activation, ModelConfig};

/// Buffers of the decoder. Row counts follow the step; the memory does not.
pub struct Workspace<D: Device> {
    /// Residual stream `[tokens, hidden]`.
    pub residual: Tensor<D>,
    /// Normed stream, input of products `[tokens, hidden]`.
    pub normed: Tensor<D>,
    /// Output of attention or MLP before it is added `[tokens, hidden]`.
    pub delta: Tensor<D>,
    /// Fused q, k, v `[tokens, (num_heads + 2 num_kv_heads) * head_dim]`.
    pub qkv: Tensor<D>,
    /// Attention output `[tokens, num_heads * head_dim]`.
    pub attention: Tensor<D>,
    /// gate and up `[tokens, 2 * intermediate]`.
    pub gate_up: Tensor<D>,
    /// act(gate) * up `[tokens, intermediate]`.
    pub activated: Tensor<D>,
    /// Rows of the residual stream that get logits `[logit rows, hidden]`.
    pub gathered: Tensor<D>,
    /// The same rows of `delta`.
    pub gathered_delta: Tensor<D>,
    /// Logits `[logit rows, vocab]`, f32.
    pub logits: Tensor<D>,
    /// The MLP's activation.
    pub activation: Activation,
}

impl<D: Device> Workspace<D> {
    /// Takes the buffers.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn new(device: &D, config: &ModelConfig, max_tokens: usize, max_logit_rows: usize) -> Result<Workspace<D>> {
        let dtype = device.activation_dtype();
        let activations = |cols: usize| device.alloc(max_tokens, cols, dtype);
        Ok(Workspace {
            residual: device.alloc(max_tokens, config.hidden_size, device.residual_dtype())?,
            normed: activations(config.hidden_size)?,
            delta: activations(config.hidden_size)?,
            qkv: activations((config.num_heads + 2 * config.num_kv_heads) * config.head_dim)?,
            attention: activations(config.num_heads * config.head_dim)?,
            gate_up: activations(2 * config.intermediate_size)?,
            activated: activations(config.intermediate_size)?,
            gathered: device.alloc(max_logit_rows, config.hidden_size, device.residual_dtype())?,
            gathered_delta: device.alloc(max_logit_rows, config.hidden_size, dtype)?,
            logits: device.alloc(max_logit_rows, config.vocab_size, DType::F32)?,
            activation: config.activation,
        })
    }

    /// Sets what a replayed step leaves unset: rows of the last hidden states and, where there are any, of the logits.
    pub fn set_rows(&mut self, num_tokens: usize, num_logit_rows: usize) {
        for tensor in [&mut self.residual, &mut self.delta] {
            tensor.set_rows(num_tokens);
        }
        self.logits.set_rows(num_logit_rows);
    }
}

/// Bytes that `Workspace::new` takes with activations of `dtype` and a residual stream of `residual`.
pub fn workspace_bytes(config: &ModelConfig, max_tokens: usize, max_logit_rows: usize, dtype: DType, residual: DType) -> usize {
    let heads = 2 * config.num_heads + 2 * config.num_kv_heads;
    let per_token = 2 * config.hidden_size + heads * config.head_dim + 3 * config.intermediate_size;
    let of_stream = config.hidden_size * residual.size();
    max_tokens * (per_token * dtype.size() + of_stream)
        + max_logit_rows * (config.hidden_size * dtype.size() + of_stream + config.vocab_size * 4)
}
