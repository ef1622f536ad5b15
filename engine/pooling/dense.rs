//! Dense modules of sentence-transformers: layers between the pooled row and the vector, computed on the host in f32 on every device.

use std::path::Path;

use rayon::prelude::*;

use super::{Sequence, SequenceModel};
use crate::error::Result;
use crate::models::limits::MAX_WIDTH;
use crate::weights::json::{Fields, read_object};
use crate::weights::safetensors;

/// Partial sums of a dot product.
const LANES: usize = 16;

/// What follows a layer's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Identity,
    Tanh,
    Relu,
    Sigmoid,
}

impl After {
    fn of(self, x: f32) -> f32 {
        match self {
            After::Identity => x,
            After::Tanh => x.tanh(),
            After::Relu => x.max(0.0),
            After::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }
}

/// One module: out = act(weight · x + bias).
pub struct Dense {
    /// `[out][in]`.
    rows: Vec<Vec<f32>>,
    bias: Vec<f32>,
    after: After,
}

impl Dense {
    /// Reads a module's folder; its input has `in_features` numbers.
    ///
    /// # Errors
    /// A file is missing or damaged, or asks for something else than such a layer.
    pub fn load(folder: &Path, in_features: usize) -> Result<Dense> {
        let path = folder.join("config.json");
        let fields = Fields::new(&path, read_object(&path)?);
        let (k, n) = (fields.size("in_features", MAX_WIDTH)?, fields.size("out_features", MAX_WIDTH)?);
        if k != in_features {
            return Err(fields.error("in_features", format_args!("is {k}, expected {in_features}, which the module before it makes")));
        }
        for key in ["module_input_name", "module_output_name"] {
            if let Some(name) = fields.opt_text(key)?.filter(|name| *name != "sentence_embedding") {
                return Err(fields.error(key, format_args!("is `{name}`, expected sentence_embedding")));
            }
        }
        if fields.opt_flag("use_residual")? == Some(true) {
            return Err(fields.error("use_residual", "is true, which is not supported"));
        }
        let name = fields.opt_text("activation_function")?.unwrap_or("Tanh");
        let after = match name.rsplit('.').next() {
            Some("Identity") => After::Identity,
            Some("Tanh") => After::Tanh,
            Some("ReLU") => After::Relu,
            Some("Sigmoid") => After::Sigmoid,
            _ => return Err(fields.error("activation_function", format_args!("is `{name}`, expected Identity, Tanh, ReLU or Sigmoid"))),
        };
        let store = safetensors::open_folder(folder)?;
        let weight = store.values("linear.weight", &[n, k])?;
        let bias = if fields.opt_flag("bias")?.unwrap_or(true) { store.vector("linear.bias", n)? } else { vec![0.0; n] };
        Ok(Dense { rows: weight.chunks_exact(k).map(<[f32]>::to_vec).collect(), bias, after })
    }

    /// Numbers that it makes.
    pub fn out_features(&self) -> usize {
        self.bias.len()
    }

    fn of(&self, x: &[f32]) -> Vec<f32> {
        self.rows.iter().zip(&self.bias).map(|(row, bias)| self.after.of(dot(row, x) + bias)).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// A model whose rows go through such layers.
pub(super) struct Projected {
    pub model: Box<dyn SequenceModel>,
    pub layers: Vec<Dense>,
}

impl SequenceModel for Projected {
    fn run(&mut self, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
        let rows = self.model.run(sequences)?;
        let layers = &self.layers;
        Ok(rows.into_par_iter().map(|row| layers.iter().fold(row, |row, layer| layer.of(&row))).collect())
    }

    fn sleep(&mut self) -> Result<()> {
        self.model.sleep()
    }

    fn wake(&mut self) -> Result<()> {
        self.model.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_rows_times_input_plus_bias_then_its_activation() {
        let rows = vec![(0..35).map(|i| i as f32).collect::<Vec<f32>>(), vec![-1.0; 35]];
        let x: Vec<f32> = (0..35).map(|i| if i % 2 == 0 { 1.0 } else { 0.5 }).collect();
        let of = |after| Dense { rows: rows.clone(), bias: vec![0.5, 1.0], after }.of(&x);
        // Even numbers up to 34 sum to 306, odd ones to 289; 18 ones and 17 halves to 26.5.
        assert_eq!(of(After::Identity), [306.0 + 144.5 + 0.5, 1.0 - 26.5]);
        assert_eq!(of(After::Relu), [451.0, 0.0]);
        assert_eq!(of(After::Tanh), [1.0, -1.0]);
        assert!(of(After::Sigmoid)[1] < 1e-10);
    }

    #[test]
    fn what_is_no_such_layer_is_named() {
        for (config, expected) in [
            (r#"{"in_features":4,"out_features":2}"#, "in_features"),
            (r#"{"in_features":3,"out_features":2,"use_residual":true}"#, "use_residual"),
            (r#"{"in_features":3,"out_features":2,"module_input_name":"token_embeddings"}"#, "module_input_name"),
            (r#"{"in_features":3,"out_features":2,"activation_function":"torch.nn.modules.activation.Mish"}"#, "Mish"),
            (r#"{"in_features":3,"out_features":2}"#, "model.safetensors"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("config.json"), config).expect("written");
            let message = Dense::load(folder.path(), 3).err().expect(expected).to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
