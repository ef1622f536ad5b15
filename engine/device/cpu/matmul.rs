//! Several tokens times some rows of a weight: rows are dequantised once into a panel that stays in the caches, then multiplied in
//! register tiles of tokens x rows. Bound by the f32 multiply-adds.
//!
//! Each output has its own vector of 16 running sums over k, as in `matvec.rs`, so both paths give the same bits for a token. Since both
//! operands run along k, nothing is packed or transposed; the price is one horizontal sum an output.
#![allow(unsafe_code)]

use super::blocks::{self, Blocks};
use super::simd::{Kernel, LANES, Simd, lanes};
use super::threads::SharedMut;
use crate::weights::format::WeightFormat;

/// Bytes of the inputs that one sweep over a panel reads; panel and inputs together stay in a second-level cache.
const INPUT_BYTES: usize = 192 << 10;

/// out[t, column + i] = sum_k x[t, k] * w[i, k] (+ bias[i]).
pub struct MatMul<'a, 'b> {
    /// Format of `weight`.
    pub format: WeightFormat,
    /// `rows` rows of `k` values.
    pub weight: &'a [u8],
    /// Rows of the weight.
    pub rows: usize,
    /// `[tokens, k]`.
    pub x: &'a [f32],
    /// Columns of `x`.
    pub k: usize,
    /// `[rows]`, or none.
    pub bias: Option<&'a [f32]>,
    /// `[tokens, out_cols]`; columns `column .. column + rows` are this task's.
    pub out: &'a SharedMut<'b, f32>,
    /// Columns of `out`.
    pub out_cols: usize,
    /// First column.
    pub column: usize,
    /// Room for `rows` rows of `panel_stride(k)`.
    pub panel: &'a mut [f32],
}

/// Floats from one panel row to the next: not a power of two, which would put all rows of a tile into the same cache sets.
pub fn panel_stride(k: usize) -> usize {
    k.next_multiple_of(LANES) + LANES
}

impl Kernel for MatMul<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.format {
            WeightFormat::F32 => self.fill::<S, blocks::F32>(s),
            WeightFormat::F16 => self.fill::<S, blocks::F16>(s),
            WeightFormat::BF16 => self.fill::<S, blocks::BF16>(s),
            WeightFormat::Q4_0 => self.fill::<S, blocks::Q4_0>(s),
            WeightFormat::Q4_1 => self.fill::<S, blocks::Q4_1>(s),
            WeightFormat::Q5_0 => self.fill::<S, blocks::Q5_0>(s),
            WeightFormat::Q5_1 => self.fill::<S, blocks::Q5_1>(s),
            WeightFormat::Q8_0 => self.fill::<S, blocks::Q8_0>(s),
            WeightFormat::Q4K => self.fill::<S, blocks::Q4K>(s),
            WeightFormat::Q5K => self.fill::<S, blocks::Q5K>(s),
            WeightFormat::Q6K => self.fill::<S, blocks::Q6K>(s),
        }
        if S::WIDE { self.multiply::<S, 4, 6>(s) } else { self.multiply::<S, 2, 3>(s) }
    }
}

impl MatMul<'_, '_> {
    #[inline(always)]
    fn fill<S: Simd, F: Blocks>(&mut self, s: S) {
        let (row_bytes, stride) = (self.format.row_bytes(self.k), panel_stride(self.k));
        for (row, out) in self.weight.chunks_exact(row_bytes).zip(self.panel.chunks_exact_mut(stride)) {
            blocks::store_row::<S, F>(s, row, self.k, out);
        }
    }

    /// Sweeps tiles of T tokens and R rows: a tile's rows stay in the first-level cache while the tokens of a block pass by.
    #[inline(always)]
    fn multiply<S: Simd, const T: usize, const R: usize>(&self, s: S) {
        let tokens = self.x.len() / self.k;
        let block = (INPUT_BYTES / (self.k * 4)).clamp(T, 256) / T * T;
        for first in (0..tokens).step_by(block) {
            let last = (first + block).min(tokens);
            for row in (0..self.rows).step_by(R) {
                let mut token = first;
                while token + T <= last {
                    self.tile::<S, T, R>(s, token, row);
                    token += T;
                }
                while token < last {
                    self.tile::<S, 1, R>(s, token, row);
                    token += 1;
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const T: usize, const R: usize>(&self, s: S, token: usize, row: usize) {
        let (k, stride) = (self.k, panel_stride(self.k));
        let valid = R.min(self.rows - row);
        // A tile at the edge repeats the last row and drops the copies.
        let w: [&[f32]; R] = std::array::from_fn(|r| &self.panel[(row + r.min(valid - 1)) * stride..][..stride]);
        let x: [&[f32]; T] = std::array::from_fn(|t| &self.x[(token + t) * k..][..k]);
        let mut acc = [[s.splat(0.0); R]; T];
        let whole = k / LANES * LANES;
        let mut i = 0;
        while i < whole {
            let inputs: [S::V; T] = load_all(s, &x, i);
            step(s, &inputs, &w, i, &mut acc);
            i += LANES;
        }
        if whole < k {
            let mut inputs = [s.splat(0.0); T];
            for t in 0..T {
                let mut padded = [0.0; LANES];
                padded[..k - whole].copy_from_slice(&x[t][whole..]);
                inputs[t] = s.load(&padded);
            }
            step(s, &inputs, &w, whole, &mut acc);
        }
        for t in 0..T {
            let sums = sum_all(s, &acc[t]);
            // SAFETY: no other task has these columns.
            let out = unsafe { self.out.slice((token + t) * self.out_cols + self.column + row, valid) };
            match self.bias {
                Some(bias) => out.iter_mut().zip(sums).zip(&bias[row..row + valid]).for_each(|((out, sum), bias)| *out = sum + bias),
                None => out.copy_from_slice(&sums[..valid]),
            }
        }
    }
}

#[inline(always)]
fn load_all<S: Simd, const T: usize>(s: S, x: &[&[f32]; T], i: usize) -> [S::V; T] {
    let mut out = [s.splat(0.0); T];
    for t in 0..T {
        out[t] = s.load(lanes(x[t], i));
    }
    out
}

#[inline(always)]
fn step<S: Simd, const T: usize, const R: usize>(s: S, inputs: &[S::V; T], w: &[&[f32]; R], i: usize, acc: &mut [[S::V; R]; T]) {
    for r in 0..R {
        let weight = s.load(lanes(w[r], i));
        for t in 0..T {
            acc[t][r] = s.fma(weight, inputs[t], acc[t][r]);
        }
    }
}

#[inline(always)]
fn sum_all<S: Simd, const R: usize>(s: S, acc: &[S::V; R]) -> [f32; R] {
    let mut sums = [0.0; R];
    let fours = R / 4 * 4;
    let mut r = 0;
    while r < fours {
        sums[r..r + 4].copy_from_slice(&s.sum4([acc[r], acc[r + 1], acc[r + 2], acc[r + 3]]));
        r += 4;
    }
    while r < R {
        sums[r] = s.sum(acc[r]);
        r += 1;
    }
    sums
}
