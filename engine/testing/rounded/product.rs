//! Plain products of the rounding device: f32 sums over dequantised weights.

use rayon::prelude::*;

use super::RoundedDevice;
use super::packed::PackedValues;
use super::rounding::{Point, Rounding};
use crate::device::Linear;

/// A matrix `[n, k]`, dequantised.
pub struct RoundedWeight {
    /// Row-major.
    pub values: Vec<f32>,
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Where other readers than products of many tokens get other values.
    pub packed: Option<PackedValues>,
}

/// Above this many tokens the bias is added to what the product has stored.
const MAX_SKINNY_TOKENS: usize = 16;
/// Rows of a matrix that one task multiplies.
const TASK_ROWS: usize = 32;

/// a · b.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a_rest, b_rest) = (a.chunks_exact(LANES).remainder(), b.chunks_exact(LANES).remainder());
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `[tokens, n]` of x: `[tokens, k]`.
pub fn product(rounding: Rounding, x: &[f32], linear: &Linear<RoundedDevice>) -> Vec<f32> {
    let tokens = x.len() / linear.k;
    let mut out = vec![0.0; tokens * linear.n];
    let mut column = 0;
    for part in &linear.parts {
        let columns: Vec<Vec<f32>> = part
            .for_tokens(tokens)
            .par_chunks(TASK_ROWS * part.k)
            .map(|rows| x.chunks_exact(part.k).flat_map(|x| rows.chunks_exact(part.k).map(|w| dot(x, w))).collect())
            .collect();
        for (task, values) in columns.iter().enumerate() {
            let width = values.len() / tokens.max(1);
            for (token, values) in values.chunks_exact(width.max(1)).enumerate() {
                out[token * linear.n + column + task * TASK_ROWS..][..width].copy_from_slice(values);
            }
        }
        column += part.n;
    }
    if let Some(bias) = &linear.bias {
        if tokens > MAX_SKINNY_TOKENS {
            rounding.apply(Point::BeforeBias, &mut out);
        }
        out.chunks_exact_mut(linear.n).for_each(|row| row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias));
    }
    out
}
