//! The last, small part of a model, computed on the host in f32: scores of a classifier, the difference of two answers.

use crate::device::HostMatrix;
use crate::error::Result;
use crate::models::encoder_config::HeadActivation;
use crate::weights::encoder_checkpoint::{EncoderCheckpoint, EncoderLinear, EncoderNorm, HostNorm};

/// Rows of weights with a bias each: `score[i] = x · rows[i] + bias[i]`.
pub struct Scores {
    rows: Vec<Vec<f32>>,
    bias: Vec<f32>,
}

impl Scores {
    /// The one score `x · (yes - no)`: the log-odds of one answer against the other.
    pub fn difference(head: &[HostMatrix], yes: u32, no: u32) -> Scores {
        let row = |id: u32| {
            let mut left = id as usize;
            let part = head.iter().find(|part| {
                let here = left < part.n();
                left -= if here { 0 } else { part.n() };
                here
            });
            let part = part.expect("an id of the vocabulary");
            let mut out = vec![0.0; part.k()];
            part.dequantize_row(left, &mut out);
            out
        };
        let (yes, no) = (row(yes), row(no));
        Scores { rows: vec![yes.iter().zip(&no).map(|(yes, no)| yes - no).collect()], bias: vec![0.0] }
    }

    /// One a row.
    pub fn of(&self, x: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        self.rows.iter().zip(&self.bias).map(|(row, bias)| (dot(row) + f64::from(*bias)) as f32).collect()
    }
}

/// What follows a classifier's dense layer.
pub struct Classifier {
    activation: HeadActivation,
    norm: Option<HostNorm>,
    eps: f32,
    scores: Scores,
}

impl Classifier {
    /// The head of a checkpoint, None where it has none.
    ///
    /// # Errors
    /// A damaged checkpoint.
    pub fn load(checkpoint: &EncoderCheckpoint) -> Result<Option<Classifier>> {
        let Some(head) = checkpoint.config.head else { return Ok(None) };
        let out = checkpoint.linear(EncoderLinear::HeadOut, 0)?;
        let mut rows = Vec::with_capacity(head.num_labels);
        for part in &out.parts {
            for row in 0..part.n() {
                let mut values = vec![0.0; part.k()];
                part.dequantize_row(row, &mut values);
                rows.push(values);
            }
        }
        let bias = out.bias.unwrap_or_else(|| vec![0.0; rows.len()]);
        let norm = checkpoint.norm(EncoderNorm::Head, 0)?;
        Ok(Some(Classifier { activation: head.activation, norm, eps: checkpoint.config.norm_eps, scores: Scores { rows, bias } }))
    }

    /// Scores of one pooled row behind the dense layer.
    pub fn scores(&self, dense: &[f32]) -> Vec<f32> {
        let mut x: Vec<f32> = match self.activation {
            HeadActivation::Tanh => dense.iter().map(|x| x.tanh()).collect(),
            HeadActivation::Relu => dense.iter().map(|x| x.max(0.0)).collect(),
            HeadActivation::GeluNorm => dense.iter().map(|x| gelu(*x)).collect(),
        };
        if let Some(norm) = &self.norm {
            let len = x.len() as f32;
            let mean = x.iter().sum::<f32>() / len;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / len;
            let inverse = 1.0 / (variance + self.eps).sqrt();
            x.iter_mut().zip(norm.weight.iter().zip(&norm.bias)).for_each(|(x, (w, b))| *x = (*x - mean) * inverse * w + b);
        }
        self.scores.of(&x)
    }
}

/// x / 2 * (1 + erf(x / sqrt 2)), erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let z = x.abs() * std::f64::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let erf = (1.0 - poly * (-z * z).exp()).copysign(x);
    (0.5 * x * (1.0 + erf)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_that_of_the_error_function() {
        for (x, expected) in [(0.0, 0.0), (1.0, 0.841_345), (-1.0, -0.158_655_25), (3.0, 2.995_95), (-3.0, -0.004_049_7)] {
            assert!((gelu(x) - expected).abs() < 1e-5, "{x}: {}", gelu(x));
        }
    }

    #[test]
    fn scores_are_rows_times_inputs_plus_bias() {
        let scores = Scores { rows: vec![vec![1.0, 2.0], vec![0.5, -1.0]], bias: vec![0.25, 0.0] };
        assert_eq!(scores.of(&[3.0, 4.0]), [11.25, -2.5]);
    }
}
