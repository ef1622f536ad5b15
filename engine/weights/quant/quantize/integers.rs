//! Groups of integers along k, rounded to nearest: q, scales and zero points as AWQ and GPTQ checkpoints hold them.

use half::f16;
use rayon::prelude::*;

/// How integers are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integers {
    /// 4 or 8.
    pub bits: u32,
    /// Columns of a group.
    pub group: usize,
    /// The zero point is the middle of the range.
    pub symmetric: bool,
    /// Smallest zero point: 1 where a format stores it minus 1.
    pub min_zero: u8,
}

/// w ~ (q - z) * s.
pub struct Grouped {
    /// `[n][k]`.
    pub q: Vec<u8>,
    /// `[n][groups]`, of the type they are stored in.
    pub scales: Vec<f32>,
    /// `[n][groups]`.
    pub zeros: Vec<u8>,
}

/// Smallest scale.
const MIN_SCALE: f32 = 1e-5;

impl Integers {
    /// Largest code.
    fn top(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    fn middle(&self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }

    /// Scale, before it is stored, and what the zero point is if it is known.
    fn scale(&self, values: &[f32]) -> (f32, f32) {
        let high = values.iter().fold(0.0f32, |a, b| a.max(*b));
        let low = values.iter().fold(0.0f32, |a, b| a.min(*b));
        let scale = if self.symmetric { (high / (self.middle() - 1.0)).max(-low / self.middle()) } else { (high - low) / self.top() };
        (scale.max(MIN_SCALE), low)
    }

    /// Quantises `[n][k]` with scales that `store` rounds as the file will.
    pub fn quantize(&self, values: &[f32], k: usize, store: impl Fn(f32) -> f32 + Sync) -> Grouped {
        let (n, groups) = (values.len() / k, k.div_ceil(self.group));
        let mut out = Grouped { q: vec![0; n * k], scales: vec![0.0; n * groups], zeros: vec![0; n * groups] };
        let rows = out.q.par_chunks_exact_mut(k).zip(out.scales.par_chunks_exact_mut(groups)).zip(out.zeros.par_chunks_exact_mut(groups));
        rows.zip(values.par_chunks_exact(k)).for_each(|(((q, scales), zeros), values)| {
            let groups = q.chunks_mut(self.group).zip(values.chunks(self.group)).zip(scales.iter_mut().zip(zeros));
            for ((q, values), (scale, zero)) in groups {
                let (unrounded, low) = self.scale(values);
                *scale = store(unrounded);
                let zero_point = match self.symmetric {
                    true => self.middle(),
                    false => (-low / *scale).round_ties_even().clamp(f32::from(self.min_zero), self.top()),
                };
                *zero = zero_point as u8;
                for (q, value) in q.iter_mut().zip(values) {
                    *q = ((value / *scale).round_ties_even() + zero_point).clamp(0.0, self.top()) as u8;
                }
            }
        });
        out
    }
}

/// Bytes with 128 added and a scale a row, symmetric: w ~ (q - 128) * scale.
pub fn int8_rows(values: &[f32], k: usize) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0u8; values.len()];
    let mut scales = vec![0.0f32; values.len() / k];
    codes.par_chunks_exact_mut(k).zip(&mut scales).zip(values.par_chunks_exact(k)).for_each(|((codes, scale), values)| {
        *scale = (values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0).max(f32::MIN_POSITIVE);
        codes.iter_mut().zip(values).for_each(|(code, value)| *code = ((value / *scale).round_ties_even() + 128.0) as u8);
    });
    (codes, scales)
}

/// A scale as f16 stores it.
pub fn through_f16(scale: f32) -> f32 {
    f16::from_f32(scale).to_f32()
}
