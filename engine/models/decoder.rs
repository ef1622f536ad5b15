//! The decoder: embedding, layers, final norm, head. Every family is this code with another `ModelConfig`.
//!
//! Called by `runner/`. Knows devices and weights; knows nothing of requests, schedules or sampling.

use super::config::ModelConfig;
use super::layer::{Layer, Rotations, load_linear};
use super::rope;
use crate::device::{Device, KvScales, Linear, RowGather, StepTensors};
use crate::error::Result;
use crate::runner::workspace::{Stream, StreamRows, Workspace};
use crate::weights::checkpoint::{Checkpoint, LinearRole, VectorRole};

/// A loaded model.
pub struct Decoder<D: Device> {
    /// Its shape.
    pub config: ModelConfig,
    /// None when the head's matrix serves as the embedding.
    embedding: Option<D::Weight>,
    layers: Vec<Layer<D>>,
    final_norm: D::Vector,
    lm_head: Linear<D>,
    /// Of a cache of e4m3, where the checkpoint has them; one entry a layer.
    pub kv_scales: Vec<Option<KvScales>>,
    rotations: Rotations<D>,
}

impl<D: Device> Decoder<D> {
    /// Loads a checkpoint; `progress` is called after each layer with (layers done, layers).
    ///
    /// # Errors
    /// A damaged checkpoint or a device that is out of memory.
    pub fn load(device: &D, checkpoint: &Checkpoint, max_positions: usize, progress: &mut dyn FnMut(usize, usize)) -> Result<Decoder<D>> {
        let config = checkpoint.config.clone();
        let mut layers = Vec::with_capacity(config.layers.len());
        for idx in 0..config.layers.len() {
            layers.push(Layer::load(device, checkpoint, idx)?);
            progress(idx + 1, config.layers.len());
        }
        let embedding = if config.tie_word_embeddings {
            None
        } else {
            Some(load_linear(device, checkpoint.linear(LinearRole::Embedding, 0)?)?.parts.swap_remove(0))
        };
        let rotations = Rotations {
            global: rope::load_table(device, &config.rope, max_positions)?,
            local: config.rope_local.as_ref().map(|r| rope::load_table(device, r, max_positions)).transpose()?,
        };
        let final_norm = device.load_vector(&checkpoint.vector(VectorRole::FinalNorm, 0)?)?;
        let lm_head = load_linear(device, checkpoint.linear(LinearRole::LmHead, 0)?)?;
        device.weights_loaded()?;
        let kv_scales = (0..config.layers.len()).map(|idx| checkpoint.kv_scales(idx)).collect::<Result<_>>()?;
        Ok(Decoder { config, embedding, layers, final_norm, lm_head, kv_scales, rotations })
    }

    /// Runs all tokens of a step through the layers; the stream of `ws` that `step.gather` names then holds the last hidden states for
    /// `logits`. `kv` has one entry a layer.
    ///
    /// # Errors
    /// A device fault.
    pub fn forward(&self, device: &D, ws: &mut Workspace<D>, kv: &mut [D::KvLayer], step: &StepTensors<D>) -> Result<()> {
        let table = self.embedding.as_ref().unwrap_or(&self.lm_head.parts[0]);
        device.embedding(&mut ws.all.residual, table, step, self.config.embedding_scale)?;
        for (idx, (layer, kv)) in self.layers.iter().zip(kv).enumerate() {
            layer.project(device, ws, idx == 0)?;
            if step.gather == RowGather::LastLayer && idx + 1 == self.layers.len() {
                return self.end_with_logit_rows(layer, device, ws, kv, step);
            }
            layer.attend(device, ws, kv, step, &self.rotations)?;
            layer.finish(device, ws, StreamRows::All)?;
        }
        Ok(())
    }

    /// The last layer from q, k and v on. Every token's keys and values are stored, but only rows that get logits go on after attention.
    fn end_with_logit_rows(
        &self,
        layer: &Layer<D>,
        device: &D,
        ws: &mut Workspace<D>,
        kv: &mut D::KvLayer,
        step: &StepTensors<D>,
    ) -> Result<()> {
        if step.num_logit_rows == 0 {
            return layer.store(device, ws, kv, step, &self.rotations);
        }
        layer.attend(device, ws, kv, step, &self.rotations)?;
        device.gather_rows(&mut ws.gathered.attention, &ws.all.attention, step)?;
        device.gather_rows(&mut ws.gathered.residual, &ws.all.residual, step)?;
        layer.finish(device, ws, StreamRows::Gathered)
    }

    /// Logits of this group's rows, into `ws.logits`: `[num_logit_rows, vocab]` f32.
    ///
    /// # Errors
    /// A device fault.
    pub fn logits(&self, device: &D, ws: &mut Workspace<D>, step: &StepTensors<D>) -> Result<()> {
        self.last_hidden(device, ws, step)?;
        device.linear(&mut ws.logits, &ws.normed, &self.lm_head)?;
        match self.config.final_soft_cap {
            Some(cap) => device.soft_cap(&mut ws.logits, cap),
            None => Ok(()),
        }
    }

    /// Normed last hidden states of this group's rows, which the head reads, into `ws.normed`: `[num_logit_rows, hidden]`.
    ///
    /// # Errors
    /// A device fault.
    pub fn last_hidden(&self, device: &D, ws: &mut Workspace<D>, step: &StepTensors<D>) -> Result<()> {
        let Workspace { all, gathered, normed, .. } = ws;
        if step.gather == RowGather::Head {
            device.gather_rows(&mut gathered.residual, &all.residual, step)?;
            device.gather_rows(&mut gathered.delta, &all.delta, step)?;
        }
        let Stream { residual, delta, .. } = if step.gather == RowGather::Never { all } else { gathered };
        let eps = self.config.rms_norm_eps;
        if self.config.post_norms {
            device.rms_norm(normed, residual, &self.final_norm, eps)
        } else {
            device.add_rms_norm(normed, residual, delta, &self.final_norm, eps)
        }
    }
}
