//! A linear layer of parts of several kinds, computed on two devices.

use pagoda_engine::device::{Device, Linear, MatrixLoad, MatrixUse, Tensor};
use pagoda_engine::models::config::Activation;
use pagoda_kernels::ops::DType;

use crate::cuda_codes::Kind;
use crate::cuda_pair::{Case, Inputs, noise};

/// A linear layer, and what is asked of it.
pub struct Layer {
    /// A kind a part.
    pub kinds: Vec<Kind>,
    /// Rows a part.
    pub rows: Vec<usize>,
    /// Columns.
    pub k: usize,
    /// Tokens.
    pub tokens: usize,
    /// A table's rows are read one by one, too.
    pub usage: MatrixUse,
    /// Gate and up are joined by this.
    pub activation: Option<Activation>,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Case for Layer {
    fn run<D: Device>(&self, device: &D, inputs: &Inputs<'_, D>) -> Vec<Tensor<D>> {
        let (n, k, tokens) = (self.rows.iter().sum(), self.k, self.tokens);
        let parts = self.kinds.iter().zip(&self.rows).enumerate().map(|(i, (kind, rows))| kind.part(50 + i as u64, *rows, k)).collect();
        let quantize = self.kinds.iter().find_map(|kind| if let Kind::AtLoad(format) = kind { Some(*format) } else { None });
        let load = MatrixLoad { usage: self.usage, quantize };
        let parts = device.load_parts(parts, load).unwrap();
        let bias = self.bias.then(|| device.load_vector(&noise(60, n)).unwrap());
        let layer = Linear { parts, bias, n, k };
        device.weights_loaded().unwrap();
        let x = inputs.tensor(1, tokens, k);
        let mut sums = device.alloc(tokens, n, device.activation_dtype()).unwrap();
        device.linear(&mut sums, &x, &layer).unwrap();
        let mut logits = device.alloc(tokens, n, DType::F32).unwrap();
        device.linear(&mut logits, &x, &layer).unwrap();
        let mut outputs = vec![sums, logits];
        if let Some(activation) = self.activation {
            let (mut out, mut scratch) = (device.alloc(tokens, n / 2, x.dtype).unwrap(), device.alloc(tokens, n, x.dtype).unwrap());
            device.linear_gated(&mut out, &mut scratch, &x, &layer, activation).unwrap();
            outputs.push(out);
        }
        if self.usage == MatrixUse::Table {
            let ids: Vec<i32> = (0..tokens as i32).map(|i| i * 7 % n as i32).collect();
            let mut rows = device.alloc(tokens, k, device.residual_dtype()).unwrap();
            device.embedding(&mut rows, &layer.parts[0], &inputs.step(&ids), 2.0).unwrap();
            outputs.push(rows);
        }
        outputs
    }
}
