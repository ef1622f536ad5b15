//! `impl EncoderDevice for CpuDevice`: checks shapes, takes slices out of tensors and hands them to the op's own file.
#![allow(unsafe_code)]

use super::activation::Activate;
use super::encoder_attention::BiasRows;
use super::layer_norm::{AddLayerNormRow, LayerNormRow};
use super::threads::SharedMut;
use super::{CpuDevice, CpuWeight};
use crate::device::encoder::{EncoderAttention, EncoderDevice, EncoderStep, LayerNorm, Pooling, RelativeBias};
use crate::device::{RopeTable, Tensor};
use crate::error::Result;
use crate::models::config::Activation;

type CpuTensor = Tensor<CpuDevice>;

/// Row of a table by id, checked.
fn row_of(table: &CpuWeight, id: i32) -> usize {
    let row = usize::try_from(id).expect("an id is not negative");
    assert!(row < table.host.n(), "row {row} of a table of {}", table.host.n());
    row
}

impl EncoderDevice for CpuDevice {
    fn embed(&self, out: &mut CpuTensor, table: &CpuWeight, ids: &Vec<i32>, num_tokens: usize) -> Result<()> {
        let cols = out.cols;
        assert_eq!(cols, table.host.k(), "columns of a table");
        self.for_rows(num_tokens, 8 * cols, out.values_mut(num_tokens), cols, |row, out| {
            table.host.dequantize_row(row_of(table, ids[row]), out);
        });
        Ok(())
    }

    fn embed_add(&self, out: &mut CpuTensor, table: &CpuWeight, ids: &Vec<i32>) -> Result<()> {
        let (rows, cols) = (out.rows, out.cols);
        assert_eq!(cols, table.host.k(), "columns of a table");
        self.for_rows(rows, 12 * cols, out.values_mut(rows), cols, |row, out| {
            let mut added = vec![0.0; cols];
            table.host.dequantize_row(row_of(table, ids[row]), &mut added);
            out.iter_mut().zip(&added).for_each(|(out, x)| *out += x);
        });
        Ok(())
    }

    fn layer_norm(&self, out: &mut CpuTensor, x: &CpuTensor, norm: &LayerNorm<Self>) -> Result<()> {
        let cols = x.cols;
        assert_eq!((out.cols, norm.weight.values.len(), norm.bias.values.len()), (cols, cols, cols), "columns of a norm");
        let (values, weight, bias, eps) = (x.values(), norm.weight.values.as_slice(), norm.bias.values.as_slice(), norm.eps);
        self.for_rows(x.rows, 8 * cols, out.values_mut(x.rows), cols, |row, out| {
            self.dispatch.run(LayerNormRow { x: &values[row * cols..][..cols], weight, bias, eps, out });
        });
        Ok(())
    }

    fn add_layer_norm(&self, out: &mut CpuTensor, residual: &mut CpuTensor, x: &CpuTensor, norm: &LayerNorm<Self>) -> Result<()> {
        let cols = x.cols;
        assert_eq!((out.cols, residual.cols, norm.weight.values.len()), (cols, cols, cols), "columns of a norm");
        assert_eq!(residual.rows, x.rows, "rows of the residual");
        let (values, weight, bias, eps) = (x.values(), norm.weight.values.as_slice(), norm.bias.values.as_slice(), norm.eps);
        let residual = SharedMut::new(residual.values_mut(x.rows));
        self.for_rows(x.rows, 16 * cols, out.values_mut(x.rows), cols, |row, out| {
            // SAFETY: every row is of one task.
            let residual = unsafe { residual.slice(row * cols, cols) };
            self.dispatch.run(AddLayerNormRow { residual, x: &values[row * cols..][..cols], weight, bias, eps, out });
        });
        Ok(())
    }

    fn activate(&self, x: &mut CpuTensor, activation: Activation) -> Result<()> {
        let (rows, cols) = (x.rows, x.cols);
        self.for_rows(rows, 16 * cols, x.values_mut(rows), cols, |_, x| self.dispatch.run(Activate { x, activation }));
        Ok(())
    }

    fn rotate(&self, qkv: &mut CpuTensor, positions: &Vec<i32>, attention: &EncoderAttention, rope: &RopeTable<Self>) -> Result<()> {
        let (rows, cols) = (qkv.rows, qkv.cols);
        assert_eq!(cols, 3 * attention.num_heads * attention.head_dim, "columns of q, k, v");
        self.for_rows(rows, 8 * cols, qkv.values_mut(rows), cols, |row, qkv| {
            let position = usize::try_from(positions[row]).expect("a position is not negative");
            self.rotate_heads(&mut qkv[..cols / 3 * 2], attention.head_dim, position, rope);
        });
        Ok(())
    }

    fn bidirectional_attention(
        &self,
        out: &mut CpuTensor,
        qkv: &CpuTensor,
        step: &EncoderStep<Self>,
        params: &EncoderAttention,
        bias: Option<&RelativeBias<Self>>,
    ) -> Result<()> {
        let cols = params.num_heads * params.head_dim;
        assert_eq!((qkv.rows, qkv.cols, out.cols), (step.num_tokens, 3 * cols, cols), "shape of attention");
        let bias = bias.map(|bias| {
            assert_eq!(bias.values.values.len(), params.num_heads * (2 * bias.reach - 1), "values of a bias");
            BiasRows { values: bias.values.values.as_slice(), reach: bias.reach }
        });
        self.bidirectional_slices(out.values_mut(step.num_tokens), qkv.values(), &step.cu_seqlens[..=step.num_seqs], params, bias);
        Ok(())
    }

    fn pool(&self, out: &mut CpuTensor, x: &CpuTensor, step: &EncoderStep<Self>, pooling: Pooling) -> Result<()> {
        assert_eq!((out.cols, x.rows), (x.cols, step.num_tokens), "shape of pooling");
        let (cols, values) = (x.cols, x.values());
        for (pair, out) in step.cu_seqlens[..=step.num_seqs].windows(2).zip(out.values_mut(step.num_seqs).chunks_exact_mut(cols)) {
            pool_rows(out, &values[pair[0] as usize * cols..pair[1] as usize * cols], pooling);
        }
        Ok(())
    }

    fn read_rows(&self, x: &CpuTensor) -> Result<Vec<f32>> {
        Ok(x.values().to_vec())
    }
}

/// One sequence: x `[len, cols]`, len at least 1.
fn pool_rows(out: &mut [f32], x: &[f32], pooling: Pooling) {
    let cols = out.len();
    let len = x.len() / cols;
    assert!(len > 0, "a sequence without tokens has no vector");
    match pooling {
        Pooling::Cls => out.copy_from_slice(&x[..cols]),
        Pooling::Last => out.copy_from_slice(&x[(len - 1) * cols..]),
        Pooling::Max => {
            out.copy_from_slice(&x[..cols]);
            x.chunks_exact(cols).for_each(|row| out.iter_mut().zip(row).for_each(|(out, x)| *out = out.max(*x)));
        }
        Pooling::Mean | Pooling::MeanSqrtLen | Pooling::WeightedMean => {
            out.fill(0.0);
            let weight = |row: usize| if pooling == Pooling::WeightedMean { (row + 1) as f32 } else { 1.0 };
            for (row, x) in x.chunks_exact(cols).enumerate() {
                let weight = weight(row);
                out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
            }
            let divisor = match pooling {
                Pooling::MeanSqrtLen => (len as f32).sqrt(),
                Pooling::WeightedMean => (len * (len + 1) / 2) as f32,
                _ => len as f32,
            };
            out.iter_mut().for_each(|out| *out /= divisor);
        }
    }
}
