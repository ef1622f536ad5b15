//! exp and what is made of it, on vectors. Relative error of `exp` < 3e-7 over the range of f32.
//!
//! The polynomial is the minimax polynomial of degree 5 on [-ln 2 / 2, ln 2 / 2] of the Cephes library (public domain).

use super::simd::Simd;

/// e^v; exactly 0 below -88, and at most e^88.
#[inline(always)]
pub fn exp<S: Simd>(s: S, v: S::V) -> S::V {
    // The bounds come first, so that a NaN goes through.
    let v = s.min(s.splat(88.0), s.max(s.splat(-88.0), v));
    let n = s.round(s.mul(v, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), v);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    s.mul(p, s.pow2(n))
}

/// tanh v, to 2e-7 absolute.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, v: S::V) -> S::V {
    // 1 - 2 / (e^2v + 1)
    let e = exp(s, s.add(v, v));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))))
}

/// cap * tanh(v / cap).
#[inline(always)]
pub fn soft_cap<S: Simd>(s: S, v: S::V, cap: f32) -> S::V {
    s.mul(s.splat(cap), tanh(s, s.div(v, s.splat(cap))))
}

/// v / (1 + e^-v).
#[inline(always)]
pub fn silu<S: Simd>(s: S, v: S::V) -> S::V {
    s.div(v, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), v))))
}

/// v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v^3))).
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, v: S::V) -> S::V {
    let cube = s.mul(s.mul(v, v), s.mul(v, s.splat(0.044_715)));
    let t = tanh(s, s.mul(s.add(v, cube), s.splat(0.797_884_6)));
    s.mul(s.mul(v, s.splat(0.5)), s.add(t, s.splat(1.0)))
}

/// v / 2 * (1 + erf(v / sqrt 2)), erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub fn gelu<S: Simd>(s: S, v: S::V) -> S::V {
    let x = s.mul(v, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let magnitude = s.max(x, s.sub(s.splat(0.0), x));
    let t = s.div(s.splat(1.0), s.fma(magnitude, s.splat(0.327_591_1), s.splat(1.0)));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    // erfc(|x|) = p t e^-x^2; gelu(v) = max(v, 0) - |v| / 2 * erfc(|x|), which keeps its relative precision for negative v.
    let erfc = s.mul(s.mul(p, t), exp(s, s.sub(s.splat(0.0), s.mul(x, x))));
    let half = s.mul(s.max(v, s.sub(s.splat(0.0), v)), s.splat(0.5));
    s.sub(s.max(v, s.splat(0.0)), s.mul(half, erfc))
}
