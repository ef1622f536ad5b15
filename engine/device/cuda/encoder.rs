//! `impl EncoderDevice for CudaDevice`: checks shapes, takes addresses out of tensors and hands them to the launchers.

use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::encoder as ops;
use pagoda_kernels::ops::step as rows;

use super::ops::kernel_activation;
use super::{CudaDevice, CudaInts, CudaWeight, Stored};
use crate::device::encoder::{EncoderAttention, EncoderDevice, EncoderStep, LayerNorm, Pooling, RelativeBias};
use crate::device::{DType, RopeStyle, RopeTable, Tensor};
use crate::error::Result;
use crate::models::config::Activation;

type CudaTensor = Tensor<CudaDevice>;

/// Tables of an encoder are read as they are stored: in bf16.
fn dense(table: &CudaWeight) -> DeviceBytes {
    match table.stored {
        Stored::Dense(bytes) => bytes,
        Stored::Bytes(_) | Stored::Tiles(_) | Stored::Blocks(_) => unreachable!("the checkpoint of an encoder holds floats"),
    }
}

impl CudaDevice {
    fn norm_rows(&self, out: &mut CudaTensor, residual: Option<&CudaTensor>, x: &CudaTensor, norm: &LayerNorm<Self>) -> Result<()> {
        assert_eq!((out.cols, norm.weight.len, norm.bias.len), (x.cols, x.cols, x.cols), "columns of a norm");
        out.set_rows(x.rows);
        let params = ops::LayerNorm {
            out: out.bf16(),
            residual: residual.map(CudaTensor::bf16),
            x: x.bf16(),
            weight: norm.weight.bytes,
            bias: norm.bias.bytes,
            num_tokens: x.rows,
            hidden: x.cols,
            eps: norm.eps,
        };
        self.launch(|stream| ops::layer_norm(&params, stream))
    }
}

impl EncoderDevice for CudaDevice {
    fn embed(&self, out: &mut CudaTensor, table: &CudaWeight, ids: &CudaInts, num_tokens: usize) -> Result<()> {
        assert_eq!(out.cols, table.k, "columns of a table");
        out.set_rows(num_tokens);
        let params = rows::GatherRows {
            out: out.bf16(),
            out_dtype: DType::BF16,
            table: dense(table),
            table_dtype: DType::BF16,
            index: ids.bytes(),
            num_rows: num_tokens,
            num_table_rows: table.n,
            cols: out.cols,
            scale: 1.0,
        };
        self.launch(|stream| rows::gather_rows(&params, stream))
    }

    fn embed_add(&self, out: &mut CudaTensor, table: &CudaWeight, ids: &CudaInts) -> Result<()> {
        assert_eq!(out.cols, table.k, "columns of a table");
        let params = ops::AddRows {
            out: out.bf16(),
            table: dense(table),
            index: ids.bytes(),
            num_rows: out.rows,
            num_table_rows: table.n,
            cols: out.cols,
        };
        self.launch(|stream| ops::add_rows(&params, stream))
    }

    fn layer_norm(&self, out: &mut CudaTensor, x: &CudaTensor, norm: &LayerNorm<Self>) -> Result<()> {
        self.norm_rows(out, None, x, norm)
    }

    fn add_layer_norm(&self, out: &mut CudaTensor, residual: &mut CudaTensor, x: &CudaTensor, norm: &LayerNorm<Self>) -> Result<()> {
        assert_eq!((residual.rows, residual.cols), (x.rows, x.cols), "shape of the residual");
        self.norm_rows(out, Some(residual), x, norm)
    }

    fn activate(&self, x: &mut CudaTensor, activation: Activation) -> Result<()> {
        let (bytes, count) = (x.bf16(), x.rows * x.cols);
        self.launch(|stream| ops::activate(bytes, count, kernel_activation(activation), stream))
    }

    fn rotate(&self, qkv: &mut CudaTensor, positions: &CudaInts, attention: &EncoderAttention, rope: &RopeTable<Self>) -> Result<()> {
        assert_eq!((rope.rotary_dim, rope.style), (attention.head_dim, RopeStyle::HalfSplit), "whole heads rotate");
        let params = ops::Rotate {
            qkv: qkv.bf16(),
            positions: positions.bytes(),
            cos: rope.cos.bytes,
            sin: rope.sin.bytes,
            num_tokens: qkv.rows,
            num_heads: attention.num_heads,
            head_dim: attention.head_dim,
        };
        self.launch(|stream| ops::rotate(&params, stream))
    }

    fn bidirectional_attention(
        &self,
        out: &mut CudaTensor,
        qkv: &CudaTensor,
        step: &EncoderStep<Self>,
        params: &EncoderAttention,
        bias: Option<&RelativeBias<Self>>,
    ) -> Result<()> {
        let cols = params.num_heads * params.head_dim;
        assert_eq!((qkv.rows, qkv.cols, out.cols), (step.num_tokens, 3 * cols, cols), "shape of attention");
        out.set_rows(step.num_tokens);
        let params = ops::EncoderAttention {
            out: out.bf16(),
            qkv: qkv.bf16(),
            cu_seqlens: step.cu_seqlens.bytes(),
            num_tokens: step.num_tokens,
            num_seqs: step.num_seqs,
            max_seq_len: step.max_seq_len,
            num_heads: params.num_heads,
            head_dim: params.head_dim,
            radius: params.radius,
            scale: params.scale,
            bias: bias.map(|bias| (bias.values.bytes, bias.reach)),
        };
        self.launch(|stream| ops::encoder_attention(&params, stream))
    }

    fn pool(&self, out: &mut CudaTensor, x: &CudaTensor, step: &EncoderStep<Self>, pooling: Pooling) -> Result<()> {
        assert_eq!((out.cols, x.rows), (x.cols, step.num_tokens), "shape of pooling");
        out.set_rows(step.num_seqs);
        let params = ops::PoolRows {
            out: out.bytes(),
            out_dtype: out.dtype,
            x: x.bf16(),
            cu_seqlens: step.cu_seqlens.bytes(),
            num_tokens: x.rows,
            num_seqs: step.num_seqs,
            cols: x.cols,
            by: match pooling {
                Pooling::Cls => ops::PoolRowsBy::Cls,
                Pooling::Last => ops::PoolRowsBy::Last,
                Pooling::Mean => ops::PoolRowsBy::Mean,
                Pooling::MeanSqrtLen => ops::PoolRowsBy::MeanSqrtLen,
                Pooling::Max => ops::PoolRowsBy::Max,
                Pooling::WeightedMean => ops::PoolRowsBy::WeightedMean,
            },
        };
        self.launch(|stream| ops::pool_rows(&params, stream))
    }

    fn read_rows(&self, x: &CudaTensor) -> Result<Vec<f32>> {
        self.read(x)
    }
}
