//! Every activation buffer of a step, taken once at start and sized for the largest step.

use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::models::config::{Activation, ModelConfig};

/// What a layer's attention leaves behind and the rest of the layer goes on from.
pub struct Stream<D: Device> {
    /// Residual stream `[rows, hidden]`.
    pub residual: Tensor<D>,
    /// Output of attention or MLP before it is added `[rows, hidden]`.
    pub delta: Tensor<D>,
    /// Attention output `[rows, num_heads * head_dim]`.
    pub attention: Tensor<D>,
}

/// Which stream of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRows {
    /// That of all tokens of the step.
    All,
    /// That of rows that get logits.
    Gathered,
}

/// Buffers of the decoder. Row counts follow the step; the memory does not.
pub struct Workspace<D: Device> {
    /// All tokens of the step.
    pub all: Stream<D>,
    /// Rows that get logits, of one group: see `RowGather`.
    pub gathered: Stream<D>,
    /// Normed stream, input of products `[rows, hidden]`.
    pub normed: Tensor<D>,
    /// Fused q, k, v `[tokens, (num_heads + 2 num_kv_heads) * head_dim]`.
    pub qkv: Tensor<D>,
    /// gate and up `[rows, 2 * intermediate]`.
    pub gate_up: Tensor<D>,
    /// act(gate) * up `[rows, intermediate]`.
    pub activated: Tensor<D>,
    /// Logits `[logit rows, vocab]`, f32.
    pub logits: Tensor<D>,
    /// The MLP's activation.
    pub activation: Activation,
}

impl<D: Device> Stream<D> {
    fn new(device: &D, config: &ModelConfig, max_rows: usize) -> Result<Stream<D>> {
        let dtype = device.activation_dtype();
        Ok(Stream {
            residual: device.alloc(max_rows, config.hidden_size, device.residual_dtype())?,
            delta: device.alloc(max_rows, config.hidden_size, dtype)?,
            attention: device.alloc(max_rows, config.num_heads * config.head_dim, dtype)?,
        })
    }
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
            all: Stream::new(device, config, max_tokens)?,
            gathered: Stream::new(device, config, max_logit_rows)?,
            normed: activations(config.hidden_size)?,
            qkv: activations((config.num_heads + 2 * config.num_kv_heads) * config.head_dim)?,
            gate_up: activations(2 * config.intermediate_size)?,
            activated: activations(config.intermediate_size)?,
            logits: device.alloc(max_logit_rows, config.vocab_size, DType::F32)?,
            activation: config.activation,
        })
    }

    /// Sets what a replayed step leaves unset: rows of the last hidden states and, where there are any, of the logits.
    pub fn set_rows(&mut self, num_tokens: usize, num_logit_rows: usize) {
        for tensor in [&mut self.all.residual, &mut self.all.delta] {
            tensor.set_rows(num_tokens);
        }
        self.logits.set_rows(num_logit_rows);
    }
}

/// Bytes that `Workspace::new` takes with activations of `dtype` and a residual stream of `residual`.
pub fn workspace_bytes(config: &ModelConfig, max_tokens: usize, max_logit_rows: usize, dtype: DType, residual: DType) -> usize {
    let of_stream = config.hidden_size * (residual.size() + dtype.size()) + config.num_heads * config.head_dim * dtype.size();
    let heads = config.num_heads + 2 * config.num_kv_heads;
    let of_layer = (config.hidden_size + heads * config.head_dim + 3 * config.intermediate_size) * dtype.size();
    max_tokens * (of_stream + of_layer) + max_logit_rows * (of_stream + config.vocab_size * DType::F32.size())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::CpuDevice;
    use crate::testing::{ARCHS, write_tiny};
    use crate::weights::Checkpoint;

    #[test]
    fn bytes_are_those_of_the_buffers() {
        let folder = tempfile::tempdir().unwrap();
        let device = CpuDevice::new(Some(1)).unwrap();
        for arch in ARCHS {
            let config = Checkpoint::open(&write_tiny(folder.path(), arch, 1)).unwrap().config;
            let Workspace { all, gathered, normed, qkv, gate_up, activated, logits, activation: _ } =
                Workspace::new(&device, &config, 24, 5).unwrap();
            let streams = [all, gathered].into_iter().flat_map(|stream| [stream.residual, stream.delta, stream.attention]);
            let tensors = streams.chain([normed, qkv, gate_up, activated, logits]);
            let bytes: usize = tensors.map(|tensor| tensor.max_rows * tensor.cols * tensor.dtype.size()).sum();
            assert_eq!(workspace_bytes(&config, 24, 5, DType::F32, DType::F32), bytes, "{arch}");
        }
    }
}
