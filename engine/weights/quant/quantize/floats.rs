//! Small floats, rounded to nearest, ties to even, saturating: e4m3 and e2m1, and matrices of them.

use rayon::prelude::*;

use crate::weights::quant::books::e4m3;

/// Largest e4m3 value.
pub const E4M3_MAX: f32 = 448.0;
/// Largest e2m1 value.
pub const E2M1_MAX: f32 = 6.0;

/// The nearest e4m3fn byte.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let size = x.abs();
    let code = if size.is_nan() {
        0x7f
    } else if size >= E4M3_MAX {
        0x7e
    } else if size < 1.0 / 64.0 {
        // Below 2^-6 the steps are 2^-9.
        (size * 512.0).round_ties_even() as u8
    } else {
        let bits = size.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)) as u8
    };
    sign | code
}

/// The nearest e2m1 code; the sign in bit 3.
pub fn to_e2m1(x: f32) -> u8 {
    // The midpoints of 0, 0.5, 1, 1.5, 2, 3, 4, 6; a tie goes to the even code.
    const EDGES: [(f32, bool); 7] = [(0.25, false), (0.75, true), (1.25, false), (1.75, true), (2.5, false), (3.5, true), (5.0, false)];
    let size = x.abs();
    let code: u8 = EDGES.iter().map(|(edge, up)| u8::from(size > *edge || (*up && size == *edge))).sum();
    (x.to_bits() >> 28 & 8) as u8 | code
}

/// e4m3 bytes and a scale a row: w ~ q * scale.
pub fn fp8_rows(values: &[f32], k: usize, store: impl Fn(f32) -> f32 + Sync) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0u8; values.len()];
    let mut scales = vec![0.0f32; values.len() / k];
    codes.par_chunks_exact_mut(k).zip(&mut scales).zip(values.par_chunks_exact(k)).for_each(|((codes, scale), values)| {
        *scale = store(fp8_scale(values.iter().fold(0.0, |max, x| max.max(x.abs()))));
        codes.iter_mut().zip(values).for_each(|(code, value)| *code = to_e4m3(value / *scale));
    });
    (codes, scales)
}

/// The scale that takes `absmax` to the largest e4m3 value.
pub fn fp8_scale(absmax: f32) -> f32 {
    (absmax / E4M3_MAX).max(1e-12)
}

/// NVFP4 of a matrix.
pub struct Nvfp4 {
    /// Two a byte, the first in the low nibble.
    pub codes: Vec<u8>,
    /// e4m3, one for 16.
    pub scales: Vec<u8>,
}

/// The divisor of the scales of values up to `absmax`, which is finite: the largest of them becomes 448. Below 2^-117 or so the divisor is as
/// large as it can be, and what is left of the values is zeros.
pub fn nvfp4_global(absmax: f32) -> f32 {
    (E4M3_MAX * E2M1_MAX / if absmax > 0.0 { absmax } else { 1.0 }).min(f32::MAX)
}

/// The power of two at or below `nvfp4_global`: scales over it keep the few bits of e4m3, and lose none of them but at the lower end of its
/// range, where they are 2^-15 of the largest.
pub fn nvfp4_binary_global(absmax: f32) -> f32 {
    f32::from_bits(nvfp4_global(absmax).to_bits() & 0x7f80_0000)
}

/// Activations of one token in NVFP4: x ~ code * scale * factor.
pub struct Fp4Row {
    /// One a byte.
    pub codes: Vec<u8>,
    /// e4m3, one for 16.
    pub scales: Vec<u8>,
    /// Of all scales.
    pub factor: f32,
}

/// A token's values, which are finite and in whole groups of 16, as a GPU's products of NVFP4 take them (`pagoda_fp4.h`).
pub fn fp4_row(values: &[f32]) -> Fp4Row {
    const MIN_FACTOR: f32 = 1e-30;
    let absmax = |values: &[f32]| values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let factor = (absmax(values) / (E4M3_MAX * E2M1_MAX)).max(MIN_FACTOR);
    let scales: Vec<u8> = values.chunks_exact(16).map(|group| to_e4m3(absmax(group) / E2M1_MAX / factor)).collect();
    let codes = values.chunks_exact(16).zip(&scales).flat_map(|(group, scale)| {
        let step = e4m3(*scale) * factor;
        group.iter().map(move |x| if step > 0.0 { to_e2m1(x / step) } else { 0 })
    });
    Fp4Row { codes: codes.collect(), scales, factor }
}

/// e2m1 codes in groups of 16 with scales that are e4m3 over `global`.
pub fn nvfp4(values: &[f32], global: f32) -> Nvfp4 {
    let mut out = Nvfp4 { codes: vec![0; values.len() / 2], scales: vec![0; values.len() / 16] };
    out.codes.par_chunks_exact_mut(8).zip(&mut out.scales).zip(values.par_chunks_exact(16)).for_each(|((codes, scale), values)| {
        let max = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        *scale = to_e4m3(global * (max / E2M1_MAX));
        let step = e4m3(*scale) / global;
        let code = |x: f32| if step == 0.0 { 0 } else { to_e2m1(x / step) };
        codes.iter_mut().zip(values.as_chunks::<2>().0).for_each(|(byte, [a, b])| *byte = code(*a) | code(*b) << 4);
    });
    out
}
