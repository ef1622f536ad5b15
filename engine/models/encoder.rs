//! The encoder: embeddings, layers that look in both directions, pooling. Every family is this code with another `EncoderConfig`.
//!
//! Called by `pooling/`. Knows devices and weights; knows nothing of requests or texts.

use std::mem::swap;

use super::config::Activation;
use super::encoder_config::{EncoderConfig, HeadConfig, Positions};
use super::layer::load_linear;
use super::{relative_bias, rope};
use crate::device::encoder::{EncoderAttention, EncoderDevice, EncoderStep, LayerNorm, Pooling, RelativeBias};
use crate::device::{DType, Device, Linear, MatrixLoad, MatrixUse, RopeTable, Tensor};
use crate::error::{EngineError, Result};
use crate::weights::encoder_checkpoint::{EncoderCheckpoint, EncoderLinear, EncoderNorm, EncoderTable};

/// A loaded encoder.
pub struct Encoder<D: Device> {
    /// Its shape.
    pub config: EncoderConfig,
    tokens: D::Weight,
    positions: Option<D::Weight>,
    token_types: Option<D::Weight>,
    embedding_norm: LayerNorm<D>,
    layers: Vec<EncoderLayer<D>>,
    final_norm: Option<LayerNorm<D>>,
    ropes: Option<Ropes<D>>,
    bias: Option<RelativeBias<D>>,
    /// First matrix of the classification head.
    head: Option<(Linear<D>, HeadConfig)>,
}

struct Ropes<D: Device> {
    global: RopeTable<D>,
    local: RopeTable<D>,
}

struct EncoderLayer<D: Device> {
    /// None in the first layer of a model with norms in front, whose input is normed already.
    attention_norm: Option<LayerNorm<D>>,
    qkv: Linear<D>,
    o: Linear<D>,
    mlp_norm: LayerNorm<D>,
    up: Linear<D>,
    down: Linear<D>,
    attention: EncoderAttention,
}

/// Buffers of an encoder, sized for the largest step.
pub struct EncoderWorkspace<D: Device> {
    /// `[tokens, hidden]` the stream; holds the last hidden states after `forward`.
    pub stream: Tensor<D>,
    /// `[tokens, hidden]` normed rows.
    normed: Tensor<D>,
    /// `[tokens, hidden]` what a layer adds.
    delta: Tensor<D>,
    /// `[tokens, 3 * hidden]`.
    qkv: Tensor<D>,
    /// `[tokens, hidden]`.
    attended: Tensor<D>,
    /// `[tokens, intermediate]`, gated twice as wide.
    up: Tensor<D>,
    /// `[tokens, intermediate]`; None where nothing is gated.
    activated: Option<Tensor<D>>,
    /// `[sequences, hidden]`.
    pooled: Tensor<D>,
    /// `[sequences, hidden]` behind the head's first matrix.
    dense: Tensor<D>,
}

impl<D: EncoderDevice> EncoderWorkspace<D> {
    /// Takes the buffers.
    ///
    /// # Errors
    /// A device that is out of memory.
    pub fn new(device: &D, config: &EncoderConfig, max_tokens: usize, max_seqs: usize) -> Result<EncoderWorkspace<D>> {
        let rows = |rows: usize, cols: usize| device.alloc(rows, cols, device.activation_dtype());
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        Ok(EncoderWorkspace {
            stream: rows(max_tokens, hidden)?,
            normed: rows(max_tokens, hidden)?,
            delta: rows(max_tokens, hidden)?,
            qkv: rows(max_tokens, 3 * hidden)?,
            attended: rows(max_tokens, hidden)?,
            up: rows(max_tokens, if config.gated { 2 * wide } else { wide })?,
            activated: if config.gated { Some(rows(max_tokens, wide)?) } else { None },
            // What is read as it is keeps its precision.
            pooled: device.alloc(max_seqs, hidden, if config.head.is_some() { device.activation_dtype() } else { DType::F32 })?,
            dense: device.alloc(max_seqs, hidden, DType::F32)?,
        })
    }
}

impl<D: EncoderDevice> Encoder<D> {
    /// Loads a checkpoint for sequences of up to `max_seq_len` tokens.
    ///
    /// # Errors
    /// A damaged checkpoint or a device that is out of memory.
    pub fn load(device: &D, checkpoint: &EncoderCheckpoint, max_seq_len: usize, progress: &mut dyn FnMut(usize, usize)) -> Result<Self> {
        let config = checkpoint.config.clone();
        let table = |which| device.load_matrix(checkpoint.table(which)?, MatrixLoad { usage: MatrixUse::Table, quantize: None });
        let mut layers = Vec::with_capacity(config.radii.len());
        for idx in 0..config.radii.len() {
            layers.push(EncoderLayer::load(device, checkpoint, idx)?);
            progress(idx + 1, config.radii.len());
        }
        let (positions, ropes) = match &config.positions {
            Positions::Learned { .. } => (Some(table(EncoderTable::Positions)?), None),
            Positions::Rotary { global, local } => {
                let global = rope::load_table(device, global, max_seq_len)?;
                (None, Some(Ropes { global, local: rope::load_table(device, local, max_seq_len)? }))
            }
        };
        let head = match config.head {
            Some(head) => Some((load_linear(device, checkpoint.linear(EncoderLinear::HeadDense, 0)?)?, head)),
            None => None,
        };
        Ok(Encoder {
            tokens: table(EncoderTable::Tokens)?,
            positions,
            token_types: if config.num_token_types > 0 { Some(table(EncoderTable::TokenTypes)?) } else { None },
            embedding_norm: required(load_norm(device, checkpoint, EncoderNorm::Embedding, 0)?)?,
            layers,
            final_norm: load_norm(device, checkpoint, EncoderNorm::Final, 0)?,
            ropes,
            bias: relative_bias::load(device, checkpoint, max_seq_len)?,
            head,
            config,
        })
    }

    /// Runs whole sequences through the layers; `ws.stream` then holds the last hidden states.
    ///
    /// # Errors
    /// A device fault.
    pub fn forward(&self, device: &D, ws: &mut EncoderWorkspace<D>, step: &EncoderStep<D>) -> Result<()> {
        device.embed(&mut ws.normed, &self.tokens, &step.token_ids, step.num_tokens)?;
        if let Some(positions) = &self.positions {
            device.embed_add(&mut ws.normed, positions, &step.positions)?;
        }
        if let Some(token_types) = &self.token_types {
            device.embed_add(&mut ws.normed, token_types, &step.token_types)?;
        }
        device.layer_norm(&mut ws.stream, &ws.normed, &self.embedding_norm)?;
        if !self.config.pre_norm {
            return self.layers.iter().try_for_each(|layer| self.post_norm_layer(device, ws, step, layer));
        }
        for (idx, layer) in self.layers.iter().enumerate() {
            self.pre_norm_layer(device, ws, step, layer, idx > 0)?;
        }
        if let Some(norm) = &self.final_norm {
            device.add_layer_norm(&mut ws.normed, &mut ws.stream, &ws.delta, norm)?;
            swap(&mut ws.stream, &mut ws.normed);
        }
        Ok(())
    }

    /// Pools the last hidden states and reads them: `[num_seqs, hidden]` f32. A classifier's rows have gone through its dense layer.
    ///
    /// # Errors
    /// A device fault.
    pub fn pooled(&self, device: &D, ws: &mut EncoderWorkspace<D>, step: &EncoderStep<D>, pooling: Pooling) -> Result<Vec<f32>> {
        let Some((dense, head)) = &self.head else {
            device.pool(&mut ws.pooled, &ws.stream, step, pooling)?;
            return device.read_rows(&ws.pooled);
        };
        let pooling = if head.pools_mean { Pooling::Mean } else { Pooling::Cls };
        device.pool(&mut ws.pooled, &ws.stream, step, pooling)?;
        device.linear(&mut ws.dense, &ws.pooled, dense)?;
        device.read_rows(&ws.dense)
    }

    /// stream = norm(stream + attention(stream)); stream = norm(stream + mlp(stream)).
    fn post_norm_layer(&self, device: &D, ws: &mut EncoderWorkspace<D>, step: &EncoderStep<D>, layer: &EncoderLayer<D>) -> Result<()> {
        device.linear(&mut ws.qkv, &ws.stream, &layer.qkv)?;
        self.attend(device, ws, step, layer)?;
        if let Some(norm) = &layer.attention_norm {
            device.add_layer_norm(&mut ws.normed, &mut ws.stream, &ws.delta, norm)?;
            swap(&mut ws.stream, &mut ws.normed);
        }
        self.mlp(device, ws, layer, MlpInput::Stream)?;
        device.add_layer_norm(&mut ws.normed, &mut ws.stream, &ws.delta, &layer.mlp_norm)?;
        swap(&mut ws.stream, &mut ws.normed);
        Ok(())
    }

    /// stream += attention(norm(stream)); stream += mlp(norm(stream)). The second sum is left to the next norm.
    fn pre_norm_layer(
        &self,
        device: &D,
        ws: &mut EncoderWorkspace<D>,
        step: &EncoderStep<D>,
        layer: &EncoderLayer<D>,
        has_delta: bool,
    ) -> Result<()> {
        match &layer.attention_norm {
            Some(norm) if has_delta => device.add_layer_norm(&mut ws.normed, &mut ws.stream, &ws.delta, norm)?,
            Some(norm) => device.layer_norm(&mut ws.normed, &ws.stream, norm)?,
            None => {}
        }
        let input = if layer.attention_norm.is_some() { &ws.normed } else { &ws.stream };
        device.linear(&mut ws.qkv, input, &layer.qkv)?;
        self.attend(device, ws, step, layer)?;
        device.add_layer_norm(&mut ws.normed, &mut ws.stream, &ws.delta, &layer.mlp_norm)?;
        self.mlp(device, ws, layer, MlpInput::Normed)
    }

    /// Rotation, attention and its output matrix, from `ws.qkv` into `ws.delta`.
    fn attend(&self, device: &D, ws: &mut EncoderWorkspace<D>, step: &EncoderStep<D>, layer: &EncoderLayer<D>) -> Result<()> {
        if let Some(ropes) = &self.ropes {
            let rope = if layer.attention.radius.is_some() { &ropes.local } else { &ropes.global };
            device.rotate(&mut ws.qkv, &step.positions, &layer.attention, rope)?;
        }
        device.bidirectional_attention(&mut ws.attended, &ws.qkv, step, &layer.attention, self.bias.as_ref())?;
        device.linear(&mut ws.delta, &ws.attended, &layer.o)
    }

    fn mlp(&self, device: &D, ws: &mut EncoderWorkspace<D>, layer: &EncoderLayer<D>, input: MlpInput) -> Result<()> {
        let input = if input == MlpInput::Normed { &ws.normed } else { &ws.stream };
        let activation: Activation = self.config.activation;
        match &mut ws.activated {
            Some(activated) => {
                device.linear_gated(activated, &mut ws.up, input, &layer.up, activation)?;
                device.linear(&mut ws.delta, activated, &layer.down)
            }
            None => {
                device.linear(&mut ws.up, input, &layer.up)?;
                device.activate(&mut ws.up, activation)?;
                device.linear(&mut ws.delta, &ws.up, &layer.down)
            }
        }
    }
}

/// What the MLP reads.
#[derive(Clone, Copy, PartialEq)]
enum MlpInput {
    Stream,
    Normed,
}

impl<D: EncoderDevice> EncoderLayer<D> {
    fn load(device: &D, checkpoint: &EncoderCheckpoint, idx: usize) -> Result<Self> {
        let c = &checkpoint.config;
        let linear = |which| load_linear(device, checkpoint.linear(which, idx)?);
        Ok(EncoderLayer {
            attention_norm: load_norm(device, checkpoint, EncoderNorm::Attention, idx)?,
            qkv: linear(EncoderLinear::Qkv)?,
            o: linear(EncoderLinear::O)?,
            mlp_norm: required(load_norm(device, checkpoint, EncoderNorm::Mlp, idx)?)?,
            up: linear(EncoderLinear::Up)?,
            down: linear(EncoderLinear::Down)?,
            attention: EncoderAttention {
                num_heads: c.num_heads,
                head_dim: c.head_dim,
                scale: 1.0 / (c.head_dim as f32).sqrt(),
                radius: c.radii[idx],
            },
        })
    }
}

fn required<T>(norm: Option<T>) -> Result<T> {
    norm.ok_or_else(|| EngineError::Unsupported("an encoder without this norm".into()))
}

fn load_norm<D: EncoderDevice>(
    device: &D,
    checkpoint: &EncoderCheckpoint,
    which: EncoderNorm,
    layer: usize,
) -> Result<Option<LayerNorm<D>>> {
    let Some(host) = checkpoint.norm(which, layer)? else { return Ok(None) };
    let eps = checkpoint.config.norm_eps;
    Ok(Some(LayerNorm { weight: device.load_vector(&host.weight)?, bias: device.load_vector(&host.bias)?, eps }))
}
