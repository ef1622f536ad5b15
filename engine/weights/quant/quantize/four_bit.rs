//! bitsandbytes' 4-bit blocks: absmax of each block of the flattened matrix, and the nearest entry of a book for each weight.
//!
//! Codes and absmax equal those of bitsandbytes (MIT) bit for bit: its kernel multiplies with 1 / absmax in f32 and compares with the
//! midpoints of the book, of which the lower entry takes the tie.

use rayon::prelude::*;

use crate::weights::quant::books::{Book, NF4};

/// Weights of a block where nobody says otherwise.
pub const BLOCK: usize = 64;
/// Blocks of a parallel task.
const TASK_BLOCKS: usize = 1024;

/// Codes two a byte, the first in the high nibble, and a factor for each block.
pub struct Blocks {
    /// `values.len().div_ceil(2)` bytes.
    pub codes: Vec<u8>,
    /// One f32 a block.
    pub absmax: Vec<f32>,
}

/// NF4.
pub fn nf4(values: &[f32], block: usize) -> Blocks {
    let edges: [f32; 15] = std::array::from_fn(|i| ((f64::from(NF4[i]) + f64::from(NF4[i + 1])) / 2.0) as f32);
    blocks(values, block, |absmax| 1.0 / absmax, move |x, factor| edges.iter().map(|edge| u8::from(x * factor > *edge)).sum())
}

/// Any book: the entry nearest to the exact quotient, the first of several.
pub fn nearest_of(book: &Book, values: &[f32], block: usize) -> Blocks {
    blocks(values, block, |absmax| absmax, |x, absmax| nearest(book, if absmax > 0.0 { x / absmax } else { 0.0 }))
}

/// The index of the entry nearest to `x`, the first of several.
pub fn nearest(entries: &[f32], x: f32) -> u8 {
    let better = |best: (usize, f32), (i, entry): (usize, &f32)| {
        let distance = (x - entry).abs();
        if distance < best.1 { (i, distance) } else { best }
    };
    entries.iter().enumerate().fold((0, f32::INFINITY), better).0 as u8
}

/// `code` gets each weight and what `factor` makes of its block's absmax, or 0 for a block of zeros.
fn blocks(values: &[f32], block: usize, factor: impl Fn(f32) -> f32 + Sync, code: impl Fn(f32, f32) -> u8 + Sync) -> Blocks {
    assert!(block.is_multiple_of(2), "a block of {block} weights is whole bytes");
    let mut codes = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0.0f32; values.len().div_ceil(block)];
    let tasks = codes.par_chunks_mut(TASK_BLOCKS * block / 2).zip(absmax.par_chunks_mut(TASK_BLOCKS));
    tasks.zip(values.par_chunks(TASK_BLOCKS * block)).for_each(|((codes, absmax), values)| {
        for ((codes, absmax), values) in codes.chunks_mut(block / 2).zip(absmax).zip(values.chunks(block)) {
            *absmax = values.iter().fold(0.0, |max, x| max.max(x.abs()));
            let factor = if *absmax > 0.0 { factor(*absmax) } else { 0.0 };
            for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
                let of = |i: usize| pair.get(i).map_or(0, |x| code(*x, factor));
                *byte = of(0) << 4 | of(1);
            }
        }
    });
    Blocks { codes, absmax }
}

/// bitsandbytes' map of 256 values for double quantisation, ascending: means of neighbours on a line from 0.1 to 1, of which there are more
/// the larger their power of ten, with both signs, and 0 and 1.
pub fn dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for i in 0..7 {
        let (last, power) = (1usize << i, 10f64.powi(i - 6) as f32);
        let step = (1.0 - 0.1f32) / last as f32;
        // As torch.linspace: from either end to the middle, one rounding each.
        let on_line = |j: usize| if j < last.div_ceil(2) { step.mul_add(j as f32, 0.1) } else { (-step).mul_add((last - j) as f32, 1.0) };
        for j in 0..last {
            let mean = (on_line(j) + on_line(j + 1)) / 2.0 * power;
            values.extend([mean, -mean]);
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("2 * 127 + 2 values")
}

/// Double quantisation: absmax in a byte each.
pub struct Nested {
    /// Indices into the map.
    pub codes: Vec<u8>,
    /// One f32 a block of them.
    pub absmax: Vec<f32>,
    /// The mean that was taken away.
    pub offset: f32,
}

/// Quantises absmax with a map of 256 values.
pub fn nested(absmax: &[f32], map: &[f32; 256], block: usize) -> Nested {
    let offset = (absmax.iter().map(|x| f64::from(*x)).sum::<f64>() / absmax.len().max(1) as f64) as f32;
    let mut nested = Nested { codes: Vec::with_capacity(absmax.len()), absmax: Vec::new(), offset };
    for chunk in absmax.chunks(block) {
        let max = chunk.iter().fold(0.0f32, |max, x| max.max((x - offset).abs()));
        nested.absmax.push(max);
        let scaled = |x: &f32| if max > 0.0 { ((x - offset) / max).clamp(-1.0, 1.0) } else { 0.0 };
        nested.codes.extend(chunk.iter().map(|x| nearest(map, scaled(x))));
    }
    nested
}
