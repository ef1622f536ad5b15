//! `Linear`: y = x W^T + b, with W dense or in 4 bits.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::nf4::Nf4;
use crate::serve::Fault;

/// How linear layers are kept.
#[derive(Clone)]
pub struct LinearForm {
    /// Where.
    pub device: Device,
    /// Type of dense weights, and of what goes in and comes out.
    pub dtype: DType,
    /// In 4 bits, where a row is whole blocks.
    pub four_bit: bool,
}

enum Weight {
    /// `[n, k]`.
    Dense(Tensor),
    /// Stacked along n. Each has its own factors, as the parts have in a checkpoint of bitsandbytes.
    FourBit(Vec<Nf4>),
}

/// A linear layer.
pub struct Linear {
    weight: Weight,
    /// `[n]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes the parts of a weight, `[n, k]` together, and a bias `[n]` from host memory.
    ///
    /// # Errors
    /// No memory.
    pub fn new(parts: Vec<Tensor>, bias: Option<Tensor>, form: &LinearForm) -> std::result::Result<Linear, Fault> {
        let bias = bias.map(|bias| bias.to_device(&form.device)?.to_dtype(form.dtype)).transpose()?;
        let is_coded = form.four_bit && parts.iter().all(|part| part.dim(1).is_ok_and(Nf4::takes));
        let weight = match is_coded {
            true => Weight::FourBit(parts.iter().map(|part| Nf4::new(part, &form.device)).collect::<Result<_>>()?),
            false => Weight::Dense(Tensor::cat(&parts, 0)?.to_device(&form.device)?.to_dtype(form.dtype)?.contiguous()?),
        };
        Ok(Linear { weight, bias })
    }

    /// A dense matrix that is in use elsewhere too.
    pub fn shared(weight: Tensor) -> Linear {
        Linear { weight: Weight::Dense(weight), bias: None }
    }

    /// x: `[t, k]`, out: `[t, n]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let out = match &self.weight {
            Weight::Dense(weight) => x.matmul(&weight.t()?)?,
            Weight::FourBit(parts) => match parts.as_slice() {
                [whole] => whole.forward(x)?,
                parts => Tensor::cat(&parts.iter().map(|part| part.forward(x)).collect::<Result<Vec<_>>>()?, D::Minus1)?,
            },
        };
        match &self.bias {
            Some(bias) => out.broadcast_add(bias),
            None => Ok(out),
        }
    }

    /// Bytes of weight and bias.
    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let weight = match &self.weight {
            Weight::Dense(weight) => of(weight),
            Weight::FourBit(parts) => parts.iter().map(Nf4::bytes).sum(),
        };
        weight + self.bias.as_ref().map_or(0, of)
    }
}
