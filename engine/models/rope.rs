//! Rotary tables: cos and sin of every position, made once at load.
//!
//! Frequencies follow Hugging Face's `modeling_rope_utils` (Apache-2.0; formulas, not code): angles are f32 products of an f32 inverse
//! frequency and the position, as there, so that long contexts agree to the last bits.

use std::f32::consts::PI;

use super::config::{RopeConfig, RopeScaling};
use crate::device::{Device, RopeTable};
use crate::error::Result;

/// Uploads the table of `config` for positions `0 .. max_positions`.
///
/// # Errors
/// What the device answers to the upload.
pub fn load_table<D: Device>(device: &D, config: &RopeConfig, max_positions: usize) -> Result<RopeTable<D>> {
    let (cos, sin) = table(config, max_positions);
    Ok(RopeTable { cos: device.load_vector(&cos)?, sin: device.load_vector(&sin)?, rotary_dim: config.rotary_dim, style: config.style })
}

/// cos and sin, each `[max_positions, rotary_dim / 2]`.
pub fn table(config: &RopeConfig, max_positions: usize) -> (Vec<f32>, Vec<f32>) {
    let (inv_freq, factor) = inverse_frequencies(config, max_positions);
    let mut cos = Vec::with_capacity(max_positions * inv_freq.len());
    let mut sin = Vec::with_capacity(max_positions * inv_freq.len());
    for position in 0..max_positions {
        for &freq in &inv_freq {
            let angle = f64::from(freq * position as f32);
            cos.push((angle.cos() as f32) * factor);
            sin.push((angle.sin() as f32) * factor);
        }
    }
    (cos, sin)
}

/// Inverse frequency per pair and the factor on cos and sin.
fn inverse_frequencies(config: &RopeConfig, max_positions: usize) -> (Vec<f32>, f32) {
    let dim = config.rotary_dim;
    let base: Vec<f32> = (0..dim / 2).map(|i| 1.0 / config.theta.powf((2 * i) as f32 / dim as f32)).collect();
    match &config.scaling {
        RopeScaling::None => (base, 1.0),
        RopeScaling::Linear { factor } => (base.iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = *original_max_position_embeddings as f32;
            (base.iter().map(|&f| llama3(f, *factor, *low_freq_factor, *high_freq_factor, original)).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor, truncate } => {
            let original = *original_max_position_embeddings as f32;
            let range = yarn_range(config, original, *beta_fast, *beta_slow, *truncate);
            let default = if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            (yarn(&base, *factor, range), attention_factor.unwrap_or(default))
        }
        RopeScaling::PerDim { short, long, original_max_position_embeddings, attention_factor } => {
            let divisors = if max_positions > *original_max_position_embeddings { long } else { short };
            (base.iter().zip(divisors).map(|(f, d)| f / d).collect(), *attention_factor)
        }
    }
}

fn llama3(freq: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * PI / freq;
    if wavelength < original / high {
        freq
    } else if wavelength > original / low {
        freq / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * freq / factor + smooth * freq
    }
}

/// First and last pair of the interpolation ramp.
fn yarn_range(config: &RopeConfig, original: f32, beta_fast: f32, beta_slow: f32, truncate: bool) -> (f32, f32) {
    let dim = config.rotary_dim as f32;
    let pair_of = |rotations: f32| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * config.theta.ln());
    let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low.max(0.0), high.min(dim - 1.0))
}

fn yarn(base: &[f32], factor: f32, (low, high): (f32, f32)) -> Vec<f32> {
    let high = if low == high { high + 0.001 } else { high };
    let blend = |(i, &freq): (usize, &f32)| {
        let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
        freq / factor * ramp + freq * (1.0 - ramp)
    };
    base.iter().enumerate().map(blend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::RopeStyle;

    fn config(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 10000.0, rotary_dim: 8, scaling, style: RopeStyle::HalfSplit }
    }

    #[test]
    fn plain_table_is_cos_and_sin_of_position_times_frequency() {
        let (cos, sin) = table(&config(RopeScaling::None), 3);
        assert_eq!(cos.len(), 12);
        for (i, freq) in [1.0f64, 0.1, 0.01, 0.001].iter().enumerate() {
            assert!((f64::from(cos[8 + i]) - (2.0 * freq).cos()).abs() < 1e-6);
            assert!((f64::from(sin[8 + i]) - (2.0 * freq).sin()).abs() < 1e-6);
        }
    }

    #[test]
    fn linear_scaling_divides_the_angle() {
        let (plain, _) = table(&config(RopeScaling::None), 2);
        let (scaled, _) = table(&config(RopeScaling::Linear { factor: 4.0 }), 5);
        for i in 0..4 {
            assert!((plain[4 + i] - scaled[16 + i]).abs() < 1e-6);
        }
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 64 };
        let (freqs, _) = inverse_frequencies(&config(scaling), 16);
        assert_eq!(freqs[0], 1.0);
        assert!((freqs[3] - 0.001 / 8.0).abs() < 1e-9);
    }

    #[test]
    fn yarn_blends_between_its_ends_and_scales_the_amplitude() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 128,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        };
        let (freqs, factor) = inverse_frequencies(&config(scaling), 16);
        assert!((factor - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
        assert!((freqs[0] - 1.0).abs() < 1e-6, "fastest pair is kept");
        assert!((freqs[3] - 0.001 / 4.0).abs() < 1e-8, "slowest pair is interpolated");
    }

    #[test]
    fn per_dim_takes_long_divisors_only_beyond_the_original_length() {
        let scaling =
            RopeScaling::PerDim { short: vec![1.0; 4], long: vec![2.0; 4], original_max_position_embeddings: 16, attention_factor: 1.5 };
        assert_eq!(inverse_frequencies(&config(scaling.clone()), 16).0[0], 1.0);
        assert_eq!(
            inverse_frequencies(&config(scaling), 17),
            (inverse_frequencies(&config(RopeScaling::Linear { factor: 2.0 }), 1).0, 1.5)
        );
    }
}
