//! Layer norms, alone and fused with the residual sum. Mean and variance are sums of 16 lanes in a fixed order, taken in two passes.

use super::norm::padded;
use super::simd::{Kernel, LANES, Simd, lanes, lanes_mut};

/// out = (x - mean) / sqrt(variance + eps) * weight + bias, one row.
pub struct LayerNormRow<'a> {
    /// `[cols]`.
    pub x: &'a [f32],
    /// `[cols]`.
    pub weight: &'a [f32],
    /// `[cols]`.
    pub bias: &'a [f32],
    /// Inside the root.
    pub eps: f32,
    /// `[cols]`.
    pub out: &'a mut [f32],
}

impl Kernel for LayerNormRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LayerNormRow { x, weight, bias, eps, out } = self;
        let len = x.len() as f32;
        let mean = sum_of(s, x, |v| v) / len;
        let shift = s.splat(mean);
        let squares = sum_of(s, x, |v| {
            let d = s.sub(v, shift);
            s.mul(d, d)
        });
        // The lanes that fill up the last vector are zeros: each counted as a square of the mean.
        let fill = (x.len().next_multiple_of(LANES) - x.len()) as f32;
        let inverse = 1.0 / ((squares - fill * mean * mean).max(0.0) / len + eps).sqrt();
        let scale = s.splat(inverse);
        let whole = x.len() / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let v = s.mul(s.sub(s.load(lanes(x, i)), shift), scale);
            s.store(s.fma(v, s.load(lanes(weight, i)), s.load(lanes(bias, i))), lanes_mut(out, i));
        }
        for i in whole..x.len() {
            out[i] = ((x[i] - mean) * inverse).mul_add(weight[i], bias[i]);
        }
    }
}

/// residual += x; out = norm(residual), one row.
pub struct AddLayerNormRow<'a> {
    /// `[cols]`, updated.
    pub residual: &'a mut [f32],
    /// `[cols]`.
    pub x: &'a [f32],
    /// `[cols]`.
    pub weight: &'a [f32],
    /// `[cols]`.
    pub bias: &'a [f32],
    /// Inside the root.
    pub eps: f32,
    /// `[cols]`.
    pub out: &'a mut [f32],
}

impl Kernel for AddLayerNormRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AddLayerNormRow { residual, x, weight, bias, eps, out } = self;
        residual.iter_mut().zip(x).for_each(|(residual, x)| *residual += x);
        LayerNormRow { x: residual, weight, bias, eps, out }.run(s);
    }
}

/// The sum of f over all vectors of x, the last one filled up with zeros.
#[inline(always)]
fn sum_of<S: Simd>(s: S, x: &[f32], f: impl Fn(S::V) -> S::V) -> f32 {
    let whole = x.len() / LANES * LANES;
    let mut acc = s.splat(0.0);
    for i in (0..whole).step_by(LANES) {
        acc = s.add(acc, f(s.load(lanes(x, i))));
    }
    if whole < x.len() {
        acc = s.add(acc, f(s.load(&padded(&x[whole..]))));
    }
    s.sum(acc)
}
