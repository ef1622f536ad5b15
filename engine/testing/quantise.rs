//! Simple quantisers (no search for better scales) into GGUF blocks, for test files only.
//!
//! Q4_0, Q5_1 and Q8_0 give the bits of gguf-py's `quants.py` (MIT); the K formats are our own, rounded to nearest.

use half::f16;

use crate::weights::format::WeightFormat;

/// Blocks of `values`, whose length is a multiple of the block.
pub fn quantise(format: WeightFormat, values: &[f32]) -> Vec<u8> {
    let block = values.chunks_exact(format.block().0);
    match format {
        WeightFormat::Q4_0 => block.flat_map(q4_0).collect(),
        WeightFormat::Q5_1 => block.flat_map(q5_1).collect(),
        WeightFormat::Q8_0 => block.flat_map(q8_0).collect(),
        WeightFormat::Q4K => block.flat_map(|values| q45_k(values, 15)).collect(),
        WeightFormat::Q5K => block.flat_map(|values| q45_k(values, 31)).collect(),
        WeightFormat::Q6K => block.flat_map(q6_k).collect(),
        other => panic!("no quantiser for {other:?}"),
    }
}

fn half_bytes(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

fn through_half(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first value of largest magnitude.
fn extreme(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, |best: f32, value| if value.abs() > best.abs() { value } else { best })
}

fn q4_0(values: &[f32]) -> Vec<u8> {
    let d = extreme(values) / -8.0;
    let scale = inverse(d);
    let code: Vec<u8> = values.iter().map(|value| ((value * scale + 8.5).trunc() as u8).min(15)).collect();
    let mut out = half_bytes(d).to_vec();
    out.extend((0..16).map(|i| code[i] | code[i + 16] << 4));
    out
}

fn q5_1(values: &[f32]) -> Vec<u8> {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let d = (max - min) / 31.0;
    let scale = inverse(d);
    let code: Vec<u8> = values.iter().map(|value| (((value - min) * scale + 0.5).trunc() as u8).min(31)).collect();
    let high = code.iter().enumerate().fold(0u32, |bits, (i, code)| bits | u32::from(code >> 4) << i);
    let mut out = [half_bytes(d), half_bytes(min)].concat();
    out.extend(high.to_le_bytes());
    out.extend((0..16).map(|i| code[i] & 15 | code[i + 16] << 4));
    out
}

fn q8_0(values: &[f32]) -> Vec<u8> {
    let d = extreme(values).abs() / 127.0;
    let scale = inverse(d);
    let mut out = half_bytes(d).to_vec();
    out.extend(values.iter().map(|value| (value * scale).round() as i8 as u8));
    out
}

/// Q4_K (`top` 15) and Q5_K (`top` 31): eight groups of 32, value = d * scale * code - dmin * min.
fn q45_k(values: &[f32], top: u8) -> Vec<u8> {
    let mut scales = [0.0f32; 8];
    let mut mins = [0.0f32; 8];
    for (group, values) in values.chunks_exact(32).enumerate() {
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        mins[group] = (-values.iter().copied().fold(f32::INFINITY, f32::min)).max(0.0);
        scales[group] = ((max + mins[group]) / f32::from(top)).max(1e-8);
    }
    let step = |list: &[f32; 8]| (list.iter().copied().fold(0.0, f32::max) / 63.0).max(1e-7);
    let (d, dmin) = (step(&scales), step(&mins));
    let (d_read, dmin_read) = (through_half(d), through_half(dmin));
    let scale = scales.map(|scale| (scale / d_read).round_ties_even().clamp(1.0, 63.0) as u8);
    let min = mins.map(|min| (min / dmin_read).round_ties_even().clamp(0.0, 63.0) as u8);
    let code = |i: usize| {
        let group = i / 32;
        let shifted = values[i] + dmin_read * f32::from(min[group]);
        (shifted / (d_read * f32::from(scale[group]))).round_ties_even().clamp(0.0, f32::from(top)) as u8
    };
    let code: Vec<u8> = (0..256).map(code).collect();
    let mut out = [half_bytes(d), half_bytes(dmin)].concat();
    out.extend((0..4).map(|i| scale[i] | scale[i + 4] >> 4 << 6));
    out.extend((0..4).map(|i| min[i] | min[i + 4] >> 4 << 6));
    out.extend((4..8).map(|i| scale[i] & 15 | (min[i] & 15) << 4));
    if top == 31 {
        out.extend((0..32).map(|i| (0..8).fold(0, |bits, group| bits | (code[32 * group + i] >> 4) << group)));
    }
    for pair in code.chunks_exact(64) {
        out.extend((0..32).map(|i| pair[i] & 15 | (pair[i + 32] & 15) << 4));
    }
    out
}

/// Q6_K: sixteen groups of 16, value = d * scale * (code - 32).
fn q6_k(values: &[f32]) -> Vec<u8> {
    let scales: Vec<f32> = values.chunks_exact(16).map(|group| -extreme(group) / 32.0).collect();
    let d = (extreme(&scales).abs() / 127.0).max(1e-7);
    let d_read = through_half(d);
    let nonzero = |scale: i8| if scale == 0 { 1 } else { scale };
    let scale: Vec<i8> = scales.iter().map(|scale| nonzero((scale / d_read).round_ties_even().clamp(-128.0, 127.0) as i8)).collect();
    let code = |i: usize| {
        let step = d_read * f32::from(scale[i / 16]);
        ((values[i] / step).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8
    };
    let code: Vec<u8> = (0..256).map(code).collect();
    let mut out = Vec::with_capacity(210);
    for half in code.chunks_exact(128) {
        out.extend((0..64).map(|i| half[i] & 15 | (half[i + 64] & 15) << 4));
    }
    for half in code.chunks_exact(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |bits, quarter| bits | half[32 * quarter + i] >> 4 << (2 * quarter))));
    }
    out.extend(scale.iter().map(|scale| *scale as u8));
    out.extend(half_bytes(d));
    out
}
