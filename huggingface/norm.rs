//! Norms over the last dimension.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops;

use crate::serve::Fault;
use crate::store::Store;

/// What a family's norms compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// (x - mean) / deviation * w + b; b where the checkpoint has it.
    Layer,
    /// (x - mean) / deviation.
    Bare,
    /// x / root mean square * w.
    Rms,
    /// x / root mean square * (1 + w).
    RmsPlusOne,
}

/// One norm: f32 inside, whatever goes in and comes out.
pub struct Norm {
    kind: NormKind,
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    /// The norm whose tensors begin with `stem`, of `width` numbers.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn load(
        store: &Store,
        stem: &str,
        width: usize,
        kind: NormKind,
        (eps, device): (f32, &Device),
    ) -> std::result::Result<Norm, Fault> {
        let weight = match kind {
            NormKind::Bare => Tensor::ones(width, DType::F32, device)?,
            _ => store.tensor(&format!("{stem}.weight"), &[width])?.to_dtype(DType::F32)?.to_device(device)?,
        };
        let weight = if kind == NormKind::RmsPlusOne { (weight + 1.0)? } else { weight };
        let name = format!("{stem}.bias");
        let bias = match store.has(&name) {
            true if kind == NormKind::Layer => store.tensor(&name, &[width])?.to_dtype(DType::F32)?.to_device(device)?,
            _ => Tensor::zeros(width, DType::F32, device)?,
        };
        Ok(Norm { kind, weight, bias, eps })
    }

    /// out[.., i] = norm(x[.., :])[i]; x: `[.., width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let out = match self.kind {
            NormKind::Layer | NormKind::Bare => ops::layer_norm(&wide, &self.weight, &self.bias, self.eps)?,
            NormKind::Rms | NormKind::RmsPlusOne => ops::rms_norm(&wide, &self.weight, self.eps)?,
        };
        out.to_dtype(x.dtype())
    }

    /// Numbers of a row.
    pub fn width(&self) -> usize {
        self.weight.elem_count()
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> usize {
        2 * 4 * self.width()
    }
}
