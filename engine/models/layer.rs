//! One decoder layer in three parts, over the ops of a device: the last layer may go on with fewer rows after its attention.

use super::config::{LayerConfig, ModelConfig};
use crate::device::{AttentionParams, Device, Linear, MoeWeights, RopeKvParams, RopeTable, StepTensors};
use crate::error::Result;
use crate::runner::workspace::{Stream, StreamRows, Workspace};
use crate::weights::checkpoint::{Checkpoint, HostLinear, LinearRole, VectorRole};

/// Weights of one layer.
pub struct Layer<D: Device> {
    input_norm: D::Vector,
    qkv: Linear<D>,
    q_norm: Option<D::Vector>,
    k_norm: Option<D::Vector>,
    o: Linear<D>,
    post_attention_norm: Option<D::Vector>,
    mlp_norm: D::Vector,
    mlp: Mlp<D>,
    post_mlp_norm: Option<D::Vector>,
    attention: AttentionParams,
    local_rope: bool,
    eps: f32,
}

/// The two kinds of MLP.
enum Mlp<D: Device> {
    Dense { gate_up: Linear<D>, down: Linear<D> },
    Moe(Box<MoeWeights<D>>),
}

/// The rotations a layer may choose from.
pub struct Rotations<D: Device> {
    /// Of most layers.
    pub global: RopeTable<D>,
    /// Of layers with `local_rope`.
    pub local: Option<RopeTable<D>>,
}

impl<D: Device> Layer<D> {
    /// Loads layer `idx` of a checkpoint.
    ///
    /// # Errors
    /// A damaged checkpoint or a device that is out of memory.
    pub fn load(device: &D, checkpoint: &Checkpoint, idx: usize) -> Result<Layer<D>> {
        let config = &checkpoint.config;
        let layer = &config.layers[idx];
        let vector = |role| device.load_vector(&checkpoint.vector(role, idx)?);
        let optional = |wanted: bool, role| if wanted { vector(role).map(Some) } else { Ok(None) };
        Ok(Layer {
            input_norm: vector(VectorRole::InputNorm)?,
            qkv: load_linear(device, checkpoint.linear(LinearRole::Qkv, idx)?)?,
            q_norm: optional(config.qk_norm, VectorRole::QNorm)?,
            k_norm: optional(config.qk_norm, VectorRole::KNorm)?,
            o: load_linear(device, checkpoint.linear(LinearRole::O, idx)?)?,
            post_attention_norm: optional(config.post_norms, VectorRole::PostAttentionNorm)?,
            mlp_norm: vector(VectorRole::MlpNorm)?,
            mlp: load_mlp(device, checkpoint, layer, idx)?,
            post_mlp_norm: optional(config.post_norms, VectorRole::PostMlpNorm)?,
            attention: attention_params(config, layer),
            local_rope: layer.local_rope,
            eps: config.rms_norm_eps,
        })
    }

    /// First part of the layer: q, k and v of all tokens, into `ws.qkv`. On entry `ws.all.residual` holds the stream, without the output of
    /// the MLP before in families without post norms: that is in `ws.all.delta`, unless this is the first layer.
    ///
    /// # Errors
    /// A device fault, here and below.
    pub fn project(&self, device: &D, ws: &mut Workspace<D>, first: bool) -> Result<()> {
        self.enter(device, ws, first)?;
        device.linear(&mut ws.qkv, &ws.normed, &self.qkv)
    }

    /// Second part: attention of all tokens, whose keys and values go to `kv`, into `ws.all.attention`.
    pub fn attend(
        &self,
        device: &D,
        ws: &mut Workspace<D>,
        kv: &mut D::KvLayer,
        step: &StepTensors<D>,
        rotations: &Rotations<D>,
    ) -> Result<()> {
        let rope = self.rope_params(rotations);
        device.rope_attention(&mut ws.all.attention, &mut ws.qkv, kv, step, &rope, &self.attention)
    }

    /// Instead of `attend`, where nothing follows: keys and values go to `kv`.
    pub fn store(
        &self,
        device: &D,
        ws: &mut Workspace<D>,
        kv: &mut D::KvLayer,
        step: &StepTensors<D>,
        rotations: &Rotations<D>,
    ) -> Result<()> {
        device.rope_kv_store(&mut ws.qkv, kv, step, &self.rope_params(rotations))
    }

    /// Third part: output projection and MLP of a stream, at least one row. On exit its `delta` holds the MLP's output, not yet added for
    /// families without post norms.
    pub fn finish(&self, device: &D, ws: &mut Workspace<D>, rows: StreamRows) -> Result<()> {
        let Workspace { all, gathered, normed, gate_up, activated, activation, .. } = ws;
        let Stream { residual, delta, attention } = match rows {
            StreamRows::All => all,
            StreamRows::Gathered => gathered,
        };
        device.linear(delta, attention, &self.o)?;
        match &self.post_attention_norm {
            Some(norm) => {
                device.norm_add(residual, delta, norm, self.eps)?;
                device.rms_norm(normed, residual, &self.mlp_norm, self.eps)?;
            }
            None => device.add_rms_norm(normed, residual, delta, &self.mlp_norm, self.eps)?,
        }
        match &self.mlp {
            Mlp::Dense { gate_up: weights, down } => {
                device.linear_gated(activated, gate_up, normed, weights, *activation)?;
                device.linear(delta, activated, down)?;
            }
            Mlp::Moe(weights) => device.moe(delta, normed, weights)?,
        }
        match &self.post_mlp_norm {
            Some(norm) => device.norm_add(residual, delta, norm, self.eps),
            None => Ok(()),
        }
    }

    /// Adds what the layer before left in `delta`, and norms the stream.
    fn enter(&self, device: &D, ws: &mut Workspace<D>, first: bool) -> Result<()> {
        if first || self.post_mlp_norm.is_some() {
            device.rms_norm(&mut ws.normed, &ws.all.residual, &self.input_norm, self.eps)
        } else {
            device.add_rms_norm(&mut ws.normed, &mut ws.all.residual, &ws.all.delta, &self.input_norm, self.eps)
        }
    }

    fn rope_params<'a>(&'a self, rotations: &'a Rotations<D>) -> RopeKvParams<'a, D> {
        let local = rotations.local.as_ref().filter(|_| self.local_rope);
        RopeKvParams {
            num_heads: self.attention.num_heads,
            num_kv_heads: self.attention.num_kv_heads,
            head_dim: self.attention.head_dim,
            q_norm: self.q_norm.as_ref(),
            k_norm: self.k_norm.as_ref(),
            eps: self.eps,
            rope: local.unwrap_or(&rotations.global),
        }
    }
}

fn attention_params(config: &ModelConfig, layer: &LayerConfig) -> AttentionParams {
    AttentionParams {
        num_heads: config.num_heads,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale,
        window: layer.window,
        soft_cap: config.attention_soft_cap,
    }
}

fn load_mlp<D: Device>(device: &D, checkpoint: &Checkpoint, layer: &LayerConfig, idx: usize) -> Result<Mlp<D>> {
    let linear = |role| load_linear(device, checkpoint.linear(role, idx)?);
    let Some(moe) = checkpoint.config.moe.filter(|_| layer.moe) else {
        return Ok(Mlp::Dense { gate_up: linear(LinearRole::GateUp)?, down: linear(LinearRole::Down)? });
    };
    Ok(Mlp::Moe(Box::new(MoeWeights {
        router: linear(LinearRole::Router)?,
        gate_up: (0..moe.num_experts).map(|e| linear(LinearRole::ExpertGateUp(e))).collect::<Result<_>>()?,
        down: (0..moe.num_experts).map(|e| linear(LinearRole::ExpertDown(e))).collect::<Result<_>>()?,
        top_k: moe.top_k,
        renormalise: moe.renormalise,
        activation: checkpoint.config.activation,
    })))
}

/// Takes the stacked parts of a linear layer to the device.
///
/// # Errors
/// A device that is out of memory.
pub fn load_linear<D: Device>(device: &D, host: HostLinear) -> Result<Linear<D>> {
    let n = host.parts.iter().map(|p| p.n()).sum();
    let k = host.parts.first().map_or(0, |p| p.k());
    let bias = host.bias.map(|b| device.load_vector(&b)).transpose()?;
    Ok(Linear { parts: device.load_parts(host.parts, host.load)?, bias, n, k })
}
