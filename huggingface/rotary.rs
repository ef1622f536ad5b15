//! Rotary position embedding: tables of cos and sin, and their way into queries and keys.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Elements of a head that are turned, the first ones.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Neighbours are pairs (GPT-J), instead of element i and i + dims / 2 (GPT-NeoX).
    pub interleaved: bool,
    /// Positions are divided by it, or frequencies bent.
    pub scaling: Scaling,
}

/// Longer contexts than were trained.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    Off,
    /// All frequencies divided.
    Linear(f64),
    /// Llama 3: low frequencies divided, high ones kept, between them in between.
    Llama3 { factor: f64, low: f64, high: f64, original_len: f64 },
}

/// cos and sin of every position.
pub struct Tables {
    dims: usize,
    interleaved: bool,
    cos: Tensor,
    sin: Tensor,
}

impl Tables {
    /// For positions below `max_len`.
    pub fn new(rotary: &Rotary, max_len: usize, device: &Device) -> Result<Tables> {
        let frequencies: Vec<f64> =
            (0..rotary.dims / 2).map(|i| rotary.scaling.bend(rotary.theta.powf(-2.0 * i as f64 / rotary.dims as f64))).collect();
        let table = |of: fn(f64) -> f64| {
            let values = (0..max_len).flat_map(|position| {
                // As the reference computes them: the angle in f32.
                frequencies.iter().map(move |frequency| of(f64::from(position as f32 * *frequency as f32)) as f32)
            });
            Tensor::from_vec(values.collect::<Vec<f32>>(), (max_len, frequencies.len()), device)
        };
        Ok(Tables { dims: rotary.dims, interleaved: rotary.interleaved, cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// x: `[heads, tokens, head_dim]`, the first token at position `start`.
    pub fn apply(&self, x: &Tensor, start: usize) -> Result<Tensor> {
        let (_, num_tokens, head_dim) = x.dims3()?;
        let of = |table: &Tensor| table.narrow(0, start, num_tokens)?.to_dtype(x.dtype())?.contiguous();
        let (cos, sin) = (of(&self.cos)?, of(&self.sin)?);
        let part = x.narrow(D::Minus1, 0, self.dims)?.unsqueeze(0)?.contiguous()?;
        let turned = if self.interleaved { rope_i(&part, &cos, &sin)? } else { rope(&part, &cos, &sin)? }.squeeze(0)?;
        if self.dims == head_dim {
            return Ok(turned);
        }
        Tensor::cat(&[&turned, &x.narrow(D::Minus1, self.dims, head_dim - self.dims)?], D::Minus1)
    }
}

impl Scaling {
    fn bend(&self, frequency: f64) -> f64 {
        match *self {
            Scaling::Off => frequency,
            Scaling::Linear(factor) => frequency / factor,
            Scaling::Llama3 { factor, low, high, original_len } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original_len / high {
                    return frequency;
                }
                if wavelength > original_len / low {
                    return frequency / factor;
                }
                let smooth = (original_len / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
