//! Every op of encoders on the CUDA device against the CPU device, on the same bf16 inputs. Needs a GPU and a build with nvcc; says so and
//! passes where one is missing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

#[allow(dead_code, reason = "each test binary uses its part")]
mod cuda_pair;

use cuda_pair::{EncoderCase, Inputs, Pair, noise};
use pagoda_engine::device::encoder::{EncoderAttention, EncoderDevice, EncoderStep, LayerNorm, Pooling, RelativeBias};
use pagoda_engine::device::{RopeStyle, RopeTable, Tensor};
use pagoda_engine::models::config::Activation;

/// A step of sequences of these lengths.
fn step<D: EncoderDevice>(device: &D, lens: &[usize]) -> EncoderStep<D> {
    let num_tokens = lens.iter().sum();
    let mut step = EncoderStep::alloc(device, num_tokens, lens.len()).unwrap();
    let mut cu_seqlens = vec![0];
    for len in lens {
        cu_seqlens.push(cu_seqlens.last().unwrap() + *len as i32);
    }
    let positions: Vec<i32> = lens.iter().flat_map(|len| 0..*len as i32).collect();
    device.write_ints(&mut step.cu_seqlens, &cu_seqlens).unwrap();
    device.write_ints(&mut step.positions, &positions).unwrap();
    (step.num_tokens, step.num_seqs, step.max_seq_len) = (num_tokens, lens.len(), lens.iter().copied().max().unwrap_or(0));
    step
}

/// Norms, sums of table rows and activations on `[rows, cols]`.
struct Rowwise {
    rows: usize,
    cols: usize,
    activation: Activation,
}

impl EncoderCase for Rowwise {
    fn run<D: EncoderDevice>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (rows, cols) = (self.rows, self.cols);
        let norm = LayerNorm {
            weight: device.load_vector(&noise(7, cols).iter().map(|v| 1.0 + 0.2 * v).collect::<Vec<f32>>()).unwrap(),
            bias: device.load_vector(&noise(8, cols)).unwrap(),
            eps: 1e-5,
        };
        let x = inputs.tensor(1, rows, cols);
        let new = || device.alloc(rows, cols, device.activation_dtype()).unwrap();
        let (mut plain, mut added, mut residual) = (new(), new(), inputs.tensor(2, rows, cols));
        device.layer_norm(&mut plain, &x, &norm).unwrap();
        device.add_layer_norm(&mut added, &mut residual, &x, &norm).unwrap();
        let table = inputs.weight(3, 9, cols);
        let mut ids = device.alloc_ints(rows).unwrap();
        device.write_ints(&mut ids, &(0..rows as i32).map(|row| row * 5 % 9).collect::<Vec<i32>>()).unwrap();
        let mut embedded = new();
        device.embed(&mut embedded, &table, &ids, rows).unwrap();
        device.embed_add(&mut embedded, &table, &ids).unwrap();
        let mut activated = inputs.tensor(4, rows, cols);
        device.activate(&mut activated, self.activation).unwrap();
        vec![plain, added, residual, embedded, activated]
    }
}

#[test]
fn norms_tables_and_activations_agree() {
    let Some(pair) = Pair::new() else { return };
    for (rows, cols) in [(1, 8), (3, 48), (2, 264), (5, 384), (65, 768), (2, 1024), (1, 4096)] {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            pair.check_encoder(&format!("rowwise {rows} x {cols} {activation:?}"), &Rowwise { rows, cols, activation });
        }
    }
}

/// Rotation and attention over sequences of these lengths, and every pooling of the outcome.
struct Attend {
    lens: Vec<usize>,
    num_heads: usize,
    head_dim: usize,
    radius: Option<usize>,
    /// Adds to scores by distance.
    is_biased: bool,
}

impl EncoderCase for Attend {
    fn run<D: EncoderDevice>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (step, cols) = (step(device, &self.lens), self.num_heads * self.head_dim);
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let params = EncoderAttention { num_heads: self.num_heads, head_dim: self.head_dim, scale, radius: self.radius };
        let longest = step.max_seq_len;
        let angles: Vec<f32> = (0..longest * self.head_dim / 2).map(|i| (i % 977) as f32 * 0.37).collect();
        let rope = RopeTable {
            cos: device.load_vector(&angles.iter().map(|angle| angle.cos()).collect::<Vec<f32>>()).unwrap(),
            sin: device.load_vector(&angles.iter().map(|angle| angle.sin()).collect::<Vec<f32>>()).unwrap(),
            rotary_dim: self.head_dim,
            style: RopeStyle::HalfSplit,
        };
        let mut qkv = inputs.tensor(1, step.num_tokens, 3 * cols);
        device.rotate(&mut qkv, &step.positions, &params, &rope).unwrap();
        let mut out = device.alloc(step.num_tokens, cols, device.activation_dtype()).unwrap();
        // One longer than needed: where a distance is found must not depend on the step.
        let reach = longest + 1;
        let values = || device.load_vector(&noise(9, self.num_heads * (2 * reach - 1))).unwrap();
        let bias = self.is_biased.then(|| RelativeBias { values: values(), reach });
        device.bidirectional_attention(&mut out, &qkv, &step, &params, bias.as_ref()).unwrap();
        let mut outputs = vec![qkv];
        let poolings = [Pooling::Cls, Pooling::Last, Pooling::Mean, Pooling::MeanSqrtLen, Pooling::Max, Pooling::WeightedMean];
        for (idx, pooling) in poolings.into_iter().enumerate() {
            let dtype = if idx % 2 == 0 { pagoda_engine::device::DType::F32 } else { device.activation_dtype() };
            let mut pooled = device.alloc(step.num_seqs, cols, dtype).unwrap();
            device.pool(&mut pooled, &out, &step, pooling).unwrap();
            outputs.push(pooled);
        }
        outputs.push(out);
        outputs
    }
}

#[test]
fn rotation_attention_and_pooling_agree() {
    let Some(pair) = Pair::new() else { return };
    for (num_heads, head_dim) in [(3, 16), (12, 32), (2, 64), (1, 96), (2, 128)] {
        for radius in [None, Some(8), Some(64)] {
            for lens in [vec![1], vec![63, 64, 65], vec![31, 1, 32, 33, 127, 128, 129], vec![700, 3]] {
                let name = format!("attention {lens:?}, {num_heads} heads of {head_dim}, radius {radius:?}");
                pair.check_encoder(&name, &Attend { lens, num_heads, head_dim, radius, is_biased: radius == Some(64) || num_heads == 12 });
            }
        }
    }
}
