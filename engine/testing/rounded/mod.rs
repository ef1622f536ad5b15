//! A second, plain implementation of `trait Device` that rounds to bf16 where a set of points says so: what the CUDA device should
//! compute, without its kernels. With no points it is an f32 oracle that shares no code with the CPU device.
//!
//! Products are rounded where they are read, so that q, k, v, gate and up, and what is added to the residual stream can be told apart; so
//! are norms, since a router may read them unrounded.
//! Written for clarity; whole tiny models take milliseconds a token.

mod attention;
mod moe;
mod packed;
mod product;
mod rounding;

use std::borrow::Cow;
use std::convert::Infallible;

use parking_lot::Mutex;

pub use moe::Route;
pub use rounding::{Point, Rounding};

use self::attention::RoundedKv;
use self::product::RoundedWeight;
use crate::device::{
    AttentionParams, DType, Device, HostMatrix, HostWeight, KvShape, Linear, MatrixLoad, MoeWeights, RopeKvParams, StepTensors, Tensor,
};
use crate::error::{EngineError, Result};
use crate::memory_plan::StepSize;
use crate::models::config::Activation;
use crate::sampling::{SampleOutput, SampleRow, TokenLogprobs, sample_row, token_logprobs};
use crate::weights::dequant::dequantize_row;
use crate::weights::size::WeightSize;

type Rows = Tensor<RoundedDevice>;

/// A matrix of values, and the point at which a reader of all of them rounds.
pub struct RoundedBuffer {
    values: Vec<f32>,
    pending: Option<Point>,
}

impl Rows {
    fn values(&self) -> &[f32] {
        &self.buffer.values[..self.rows * self.cols]
    }

    fn values_mut(&mut self, rows: usize) -> &mut [f32] {
        self.set_rows(rows);
        self.buffer.pending = None;
        &mut self.buffer.values[..rows * self.cols]
    }

    /// The values as an operand.
    fn operand(&self, rounding: Rounding) -> Cow<'_, [f32]> {
        let mut values = Cow::Borrowed(self.values());
        if let Some(point) = self.buffer.pending.filter(|point| rounding.has(*point)) {
            rounding.apply(point, values.to_mut());
        }
        values
    }
}

/// The device.
pub struct RoundedDevice {
    rounding: Rounding,
    routes: Mutex<Vec<Route>>,
}

/// 1 / sqrt(mean(x^2) + eps).
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let sum: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    (1.0 / (sum / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

impl RoundedDevice {
    /// A device that rounds at these points.
    pub fn new(rounding: Rounding) -> RoundedDevice {
        RoundedDevice { rounding, routes: Mutex::default() }
    }

    /// The router decisions since the last call: in order of layers, then tokens.
    pub fn take_routes(&self) -> Vec<Route> {
        std::mem::take(&mut self.routes.lock())
    }

    fn norm_rows(&self, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        for (out, x) in out.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len())) {
            let scale = inverse_rms(x, eps);
            out.iter_mut().zip(x).zip(weight).for_each(|((out, x), w)| *out = x * scale * w);
        }
    }

    /// residual += delta, each rounded.
    fn add(&self, residual: &mut [f32], delta: &[f32]) {
        residual.iter_mut().zip(delta).for_each(|(residual, delta)| *residual += delta);
        self.rounding.apply(Point::Residual, residual);
    }

    fn delta(&self, x: &Rows) -> Vec<f32> {
        let mut values = x.values().to_vec();
        self.rounding.apply(Point::Delta, &mut values);
        values
    }
}

impl Device for RoundedDevice {
    type Buffer = RoundedBuffer;
    type Ints = Vec<i32>;
    type Weight = RoundedWeight;
    type Vector = Vec<f32>;
    type KvLayer = RoundedKv;
    type Pending = Vec<SampleOutput>;
    type Recording = Infallible;

    fn name(&self) -> String {
        format!("{:?}", self.rounding)
    }

    fn activation_dtype(&self) -> DType {
        DType::F32
    }

    fn default_kv_dtype(&self) -> DType {
        DType::F32
    }

    fn free_memory(&self) -> Result<usize> {
        Ok(1 << 30)
    }

    fn weight_bytes(&self, weights: &WeightSize) -> usize {
        4 * weights.values
    }

    fn kv_share(&self) -> f32 {
        0.25
    }

    fn step_size(&self) -> StepSize {
        StepSize { max_num_seqs: 64, max_num_batched_tokens: 512, max_logit_rows: 64 }
    }

    fn alloc(&self, max_rows: usize, cols: usize, dtype: DType) -> Result<Rows> {
        Ok(Tensor { buffer: RoundedBuffer { values: vec![0.0; max_rows * cols], pending: None }, rows: 0, max_rows, cols, dtype })
    }

    fn alloc_ints(&self, len: usize) -> Result<Vec<i32>> {
        Ok(vec![0; len])
    }

    fn alloc_kv(&self, shape: KvShape) -> Result<RoundedKv> {
        let len = shape.num_blocks * shape.block_size * shape.num_kv_heads * shape.head_dim;
        Ok(RoundedKv { k: vec![0.0; len], v: vec![0.0; len], shape })
    }

    fn load_weight(&self, weight: HostWeight) -> Result<RoundedWeight> {
        let (n, k) = (weight.n, weight.k);
        let mut values = vec![0.0; n * k];
        for (row, out) in weight.bytes.as_slice().chunks_exact(weight.row_bytes()).zip(values.chunks_exact_mut(k)) {
            dequantize_row(weight.format, row, out);
        }
        self.rounding.apply(Point::Weights, &mut values);
        Ok(RoundedWeight { values, n, k, packed: None })
    }

    fn load_matrix(&self, matrix: HostMatrix, load: MatrixLoad) -> Result<RoundedWeight> {
        match packed::apart(matrix.converted(load)?) {
            HostMatrix::Coded(matrix) if self.rounding.has(Point::Weights) && packed::is_packed(&matrix, load.usage) => {
                Ok(packed::packed(&matrix))
            }
            HostMatrix::Rows(weight) if self.rounding.has(Point::Weights) && packed::stays_blocks(&weight, load.usage) => {
                Ok(packed::unrounded_blocks(&weight))
            }
            HostMatrix::Coded(matrix) if !self.rounding.has(Point::Weights) => self.load_weight(matrix.to_f32()),
            other => self.load_weight(other.into_rows()),
        }
    }

    fn load_vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn weight_shape(&self, weight: &RoundedWeight) -> (usize, usize) {
        (weight.n, weight.k)
    }

    fn write_ints(&self, dst: &mut Vec<i32>, src: &[i32]) -> Result<()> {
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn resolve_tokens(&self, step: &mut StepTensors<Self>, last_tokens: &Vec<i32>) -> Result<()> {
        for (token, source) in step.token_ids.iter_mut().zip(&step.token_source).take(step.num_tokens) {
            if *source >= 0 {
                *token = last_tokens[*source as usize];
            }
        }
        Ok(())
    }

    fn embedding(&self, out: &mut Rows, table: &RoundedWeight, step: &StepTensors<Self>, scale: f32) -> Result<()> {
        let cols = out.cols;
        for (out, id) in out.values_mut(step.num_tokens).chunks_exact_mut(cols).zip(&step.token_ids) {
            let row = &table.table()[*id as usize * cols..][..cols];
            out.iter_mut().zip(row).for_each(|(out, x)| *out = x * scale);
            self.rounding.apply(Point::Embedding, out);
        }
        Ok(())
    }

    fn rms_norm(&self, out: &mut Rows, x: &Rows, weight: &Vec<f32>, eps: f32) -> Result<()> {
        self.norm_rows(out.values_mut(x.rows), x.values(), weight, eps);
        out.buffer.pending = Some(Point::Norm);
        Ok(())
    }

    fn add_rms_norm(&self, out: &mut Rows, residual: &mut Rows, x: &Rows, weight: &Vec<f32>, eps: f32) -> Result<()> {
        self.add(residual.values_mut(x.rows), &self.delta(x));
        self.rms_norm(out, residual, weight, eps)
    }

    fn norm_add(&self, residual: &mut Rows, x: &Rows, weight: &Vec<f32>, eps: f32) -> Result<()> {
        let delta = self.delta(x);
        let mut normed = vec![0.0; delta.len()];
        self.norm_rows(&mut normed, &delta, weight, eps);
        self.add(residual.values_mut(x.rows), &normed);
        Ok(())
    }

    fn linear(&self, out: &mut Rows, x: &Rows, linear: &Linear<Self>) -> Result<()> {
        assert_eq!((out.cols, x.cols), (linear.n, linear.k), "columns of a product");
        out.values_mut(x.rows).copy_from_slice(&product::product(self.rounding, &x.operand(self.rounding), linear));
        Ok(())
    }

    fn rope_kv_store(&self, qkv: &mut Rows, kv: &mut RoundedKv, step: &StepTensors<Self>, params: &RopeKvParams<'_, Self>) -> Result<()> {
        attention::rope_kv(self.rounding, qkv.values_mut(step.num_tokens), kv, step, params);
        Ok(())
    }

    fn attention(&self, out: &mut Rows, qkv: &Rows, kv: &RoundedKv, step: &StepTensors<Self>, params: &AttentionParams) -> Result<()> {
        attention::attend(self.rounding, out.values_mut(step.num_tokens), qkv.values(), kv, step, params);
        Ok(())
    }

    fn gated_activation(&self, out: &mut Rows, gate_up: &Rows, activation: Activation) -> Result<()> {
        let cols = out.cols;
        for (out, row) in out.values_mut(gate_up.rows).chunks_exact_mut(cols).zip(gate_up.values().chunks_exact(2 * cols)) {
            moe::gated(self.rounding, out, row, activation);
        }
        Ok(())
    }

    fn moe(&self, out: &mut Rows, x: &Rows, weights: &MoeWeights<Self>) -> Result<()> {
        let operand = x.operand(self.rounding);
        let router = if self.rounding.has(Point::Router) { &operand } else { x.values() };
        moe::mixture(self.rounding, out.values_mut(x.rows), (&operand, router), weights, &mut self.routes.lock());
        Ok(())
    }

    fn gather_rows(&self, out: &mut Rows, x: &Rows, step: &StepTensors<Self>) -> Result<()> {
        let cols = out.cols;
        for (out, row) in out.values_mut(step.num_logit_rows).chunks_exact_mut(cols).zip(&step.logit_rows[step.first_logit_row..]) {
            out.copy_from_slice(&x.values()[*row as usize * cols..][..cols]);
        }
        out.buffer.pending = x.buffer.pending;
        Ok(())
    }

    fn soft_cap(&self, x: &mut Rows, cap: f32) -> Result<()> {
        x.values_mut(x.rows).iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        Ok(())
    }

    fn copy_blocks(&self, kv: &mut RoundedKv, pairs: &[(u32, u32)]) -> Result<()> {
        let block = kv.shape.block_size * kv.shape.num_kv_heads * kv.shape.head_dim;
        for &(src, dst) in pairs {
            let (src, dst) = (src as usize * block, dst as usize * block);
            kv.k.copy_within(src..src + block, dst);
            kv.v.copy_within(src..src + block, dst);
        }
        Ok(())
    }

    fn sample(&self, logits: &mut Rows, rows: &[SampleRow<'_>], last_tokens: &mut Vec<i32>) -> Result<Vec<SampleOutput>> {
        let cols = logits.cols;
        let sample = |row: &SampleRow<'_>| {
            let mut values = logits.values()[row.logits_row * cols..][..cols].to_vec();
            let output = sample_row(&mut values, row);
            last_tokens[row.slot] = output.token as i32;
            output
        };
        Ok(rows.iter().map(sample).collect())
    }

    fn record(&self, _run: &mut dyn FnMut() -> Result<()>) -> Result<Infallible> {
        Err(EngineError::Unsupported("recorded steps".into()))
    }

    fn replay(&self, recording: &Infallible) -> Result<()> {
        match *recording {}
    }

    fn sampled(&self, pending: Vec<SampleOutput>) -> Result<Vec<SampleOutput>> {
        Ok(pending)
    }

    fn is_sampled(&self, _pending: &Vec<SampleOutput>) -> bool {
        true
    }

    fn row_logprobs(&self, logits: &Rows, rows: &[(usize, u32)], top: usize) -> Result<Vec<TokenLogprobs>> {
        Ok(rows.iter().map(|&(row, token)| token_logprobs(&logits.values()[row * logits.cols..][..logits.cols], token, top)).collect())
    }
}
