//! RMS norms, alone and fused with the residual sum.

use super::simd::{Kernel, LANES, Simd, lanes, lanes_mut};

/// out = x / rms(x) * weight, one row.
pub struct RmsNorm<'a> {
    /// `[cols]`.
    pub x: &'a [f32],
    /// `[cols]`.
    pub weight: &'a [f32],
    /// Inside the root.
    pub eps: f32,
    /// `[cols]`.
    pub out: &'a mut [f32],
    /// Whether `out` is replaced or added to.
    pub store: NormStore,
}

/// What a norm does with its output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NormStore {
    /// out = norm.
    Set,
    /// out += norm.
    Add,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inverse = inverse_rms(s, self.x, self.eps);
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            let normed = x * inverse * weight;
            *out = if self.store == NormStore::Add { *out + normed } else { normed };
        }
    }
}

/// residual += x; out = residual / rms(residual) * weight, one row.
pub struct AddRmsNorm<'a> {
    /// `[cols]`, updated.
    pub residual: &'a mut [f32],
    /// `[cols]`.
    pub x: &'a [f32],
    /// `[cols]`.
    pub weight: &'a [f32],
    /// Inside the root.
    pub eps: f32,
    /// `[cols]`.
    pub out: &'a mut [f32],
}

impl Kernel for AddRmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.residual.iter_mut().zip(self.x).for_each(|(residual, x)| *residual += x);
        RmsNorm { x: self.residual, weight: self.weight, eps: self.eps, out: self.out, store: NormStore::Set }.run(s);
    }
}

/// x = x / rms(x) * weight, one head in place.
#[inline(always)]
pub fn norm_in_place<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    let inverse = inverse_rms(s, x, eps);
    x.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * inverse * weight);
}

/// 1 / sqrt(mean(x^2) + eps).
#[inline(always)]
pub fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut acc = s.splat(0.0);
    let whole = x.len() / LANES * LANES;
    let mut i = 0;
    while i < whole {
        let v = s.load(lanes(x, i));
        acc = s.fma(v, v, acc);
        i += LANES;
    }
    if whole < x.len() {
        let v = s.load(&padded(&x[whole..]));
        acc = s.fma(v, v, acc);
    }
    1.0 / (s.sum(acc) / x.len() as f32 + eps).sqrt()
}

/// Up to 16 values, followed by zeros.
#[inline(always)]
pub fn padded(x: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..x.len()].copy_from_slice(x);
    out
}

/// x = f(x) over whole vectors and a padded last one.
#[inline(always)]
pub fn map_in_place<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S::V) -> S::V) {
    // `f` is called at one place alone: called at two, it is not inlined, and then runs without the wide instructions.
    for piece in x.chunks_mut(LANES) {
        let v = f(s.load(&piece_of(piece)));
        put(s, v, piece);
    }
}

/// As `padded`, at once where all 16 are there.
#[inline(always)]
pub fn piece_of(x: &[f32]) -> [f32; LANES] {
    if x.len() == LANES { *lanes(x, 0) } else { padded(x) }
}

/// x = the first values of v.
#[inline(always)]
pub fn put<S: Simd>(s: S, v: S::V, x: &mut [f32]) {
    if x.len() == LANES {
        return s.store(v, lanes_mut(x, 0));
    }
    let mut values = [0.0; LANES];
    s.store(v, &mut values);
    x.copy_from_slice(&values[..x.len()]);
}
