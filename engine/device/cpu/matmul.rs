//! Several tokens times some rows of a weight: rows are dequantised once into a panel that stays in the caches, then multiplied in
//! register tiles of tokens x rows. Bound by the f32 multiply-adds.
//!
//! Each output has its own vector of 16 running sums over k, as in `matvec.rs`, so both paths give the same bits for a token. Since both
//! operands run along k, nothing is packed or transposed; the price is one horizontal sum an output.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::blocks::{self, Blocks};
use super::norm::padded;
use super::simd::{Kernel, LANES, Simd, lanes, unroll};
use super::threads::SharedMut;

/// Bytes of the inputs that one sweep over a panel reads; panel and inputs together stay in a second-level cache.
const INPUT_BYTES: usize = 192 << 10;

/// Dequantises rows of format `F` into a panel.
pub struct FillPanel<'a, F> {
    /// Rows of `k` values.
    pub weight: &'a [u8],
    /// Values of a row.
    pub k: usize,
    /// Room for the rows, `panel_stride(k)` apart; what lies between a row's end and the next multiple of 16 becomes 0.
    pub panel: &'a mut [f32],
    /// The format.
    pub blocks: PhantomData<F>,
}

impl<F: Blocks> Kernel for FillPanel<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row_bytes = self.k / F::VALUES * F::BYTES + self.k % F::VALUES * (F::BYTES / F::VALUES);
        for (row, out) in self.weight.chunks_exact(row_bytes).zip(self.panel.chunks_exact_mut(panel_stride(self.k))) {
            blocks::store_row::<S, F>(s, row, self.k, out);
        }
    }
}

/// out[first + t * out_cols + i] = sum_k x[t, k] * panel[i, k] (+ bias[i]).
pub struct MatMul<'a, 'b> {
    /// Rows of the panel.
    pub rows: usize,
    /// `[tokens, k]`.
    pub x: &'a [f32],
    /// Columns of `x`.
    pub k: usize,
    /// `[rows]`, or none.
    pub bias: Option<&'a [f32]>,
    /// `[_, out_cols]`; `rows` columns of as many tokens as `x` has are this task's.
    pub out: &'a SharedMut<'b, f32>,
    /// Columns of `out`.
    pub out_cols: usize,
    /// Index of the first of them: its token times `out_cols`, plus its column.
    pub first: usize,
    /// `rows` rows of `panel_stride(k)`.
    pub panel: &'a [f32],
}

/// Floats from one panel row to the next: not a power of two, which would put all rows of a tile into the same cache sets.
pub fn panel_stride(k: usize) -> usize {
    k.next_multiple_of(LANES) + LANES
}

impl Kernel for MatMul<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::WIDE { self.multiply::<S, 4, 6>(s) } else { self.multiply::<S, 2, 3>(s) }
    }
}

impl MatMul<'_, '_> {
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
        let whole = k / LANES;
        let mut w = [&[[0.0; LANES]; 0][..]; R];
        let mut x = [&[[0.0; LANES]; 0][..]; T];
        unroll!(I < R => w[I] = &self.panel[inside(row, I, valid) * stride..].as_chunks().0[..whole]);
        unroll!(I < T => x[I] = &self.x[(token + I) * k..].as_chunks().0[..whole]);
        let mut acc = [[s.splat(0.0); R]; T];
        for i in 0..whole {
            s.outer(&x, &w, i, &mut acc);
        }
        if whole * LANES < k {
            self.last_lanes(s, token, row, valid, &mut acc);
        }
        unroll!(I < T => {
            let mut sums = [0.0; R];
            sum_all(s, &acc[I], &mut sums);
            self.write(token + I, row, &sums[..valid]);
        });
    }

    /// The last k % 16 products, padded with zeros.
    #[inline(always)]
    fn last_lanes<S: Simd, const T: usize, const R: usize>(&self, s: S, token: usize, row: usize, valid: usize, acc: &mut [[S::V; R]; T]) {
        let (k, stride) = (self.k, panel_stride(self.k));
        let whole = k / LANES * LANES;
        let mut inputs = [s.splat(0.0); T];
        unroll!(I < T => inputs[I] = s.load(&padded(&self.x[(token + I) * k + whole..][..k - whole])));
        unroll!(J < R => {
            let weight = s.load(lanes(self.panel, inside(row, J, valid) * stride + whole));
            unroll!(I < T => acc[I][J] = s.fma(weight, inputs[I], acc[I][J]));
        });
    }

    #[inline(always)]
    fn write(&self, token: usize, row: usize, sums: &[f32]) {
        // SAFETY: no other task has these columns of this token.
        let out = unsafe { self.out.slice(self.first + token * self.out_cols + row, sums.len()) };
        match self.bias {
            Some(bias) => out.iter_mut().zip(sums).zip(&bias[row..]).for_each(|((out, sum), bias)| *out = sum + bias),
            None => out.copy_from_slice(sums),
        }
    }
}

/// Panel row `i` of the tile at `row`: a tile at the edge repeats its last valid row, and the copies are dropped.
#[inline(always)]
fn inside(row: usize, i: usize, valid: usize) -> usize {
    row + i.min(valid - 1)
}

#[inline(always)]
fn sum_all<S: Simd, const R: usize>(s: S, acc: &[S::V; R], sums: &mut [f32; R]) {
    if R >= 4 {
        sums[..4].copy_from_slice(&s.sum4([acc[0], acc[1], acc[2], acc[3]]));
    }
    // The others: all of a small tile, or 4 and 5.
    unroll!(I < R => if R < 4 || I & 4 != 0 { sums[I] = s.sum(acc[I]) });
}
