//! One token times some rows of a weight, dequantising in registers: the decode path. Bound by memory, or by decoding for 4-bit formats.
//!
//! Four rows at a time, one vector of 16 running sums each; lane j of a sum takes k = j, j + 16, j + 32, ... in order, as in `matmul.rs`.

use super::blocks::{self, Blocks, Dot};
use super::simd::{Kernel, Simd};
use crate::weights::format::WeightFormat;

/// out[i] = sum_k x[k] * w[i, k].
pub struct MatVec<'a> {
    /// Format of `weight`.
    pub format: WeightFormat,
    /// `out.len()` rows of `k` values.
    pub weight: &'a [u8],
    /// `[k]`.
    pub x: &'a [f32],
    /// One a row.
    pub out: &'a mut [f32],
}

impl Kernel for MatVec<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.format {
            WeightFormat::F32 => self.rows::<S, blocks::F32>(s),
            WeightFormat::F16 => self.rows::<S, blocks::F16>(s),
            WeightFormat::BF16 => self.rows::<S, blocks::BF16>(s),
            WeightFormat::Q4_0 => self.rows::<S, blocks::Q4_0>(s),
            WeightFormat::Q4_1 => self.rows::<S, blocks::Q4_1>(s),
            WeightFormat::Q5_0 => self.rows::<S, blocks::Q5_0>(s),
            WeightFormat::Q5_1 => self.rows::<S, blocks::Q5_1>(s),
            WeightFormat::Q8_0 => self.rows::<S, blocks::Q8_0>(s),
            WeightFormat::Q4K => self.rows::<S, blocks::Q4K>(s),
            WeightFormat::Q5K => self.rows::<S, blocks::Q5K>(s),
            WeightFormat::Q6K => self.rows::<S, blocks::Q6K>(s),
        }
    }
}

impl MatVec<'_> {
    #[inline(always)]
    fn rows<S: Simd, F: Blocks>(self, s: S) {
        let row_bytes = self.format.row_bytes(self.x.len());
        let row = |i: usize| &self.weight[i * row_bytes..][..row_bytes];
        let whole = self.out.len() / 4 * 4;
        for i in (0..whole).step_by(4) {
            let acc = dot_rows::<S, F, 4>(s, [row(i), row(i + 1), row(i + 2), row(i + 3)], self.x);
            self.out[i..i + 4].copy_from_slice(&s.sum4(acc));
        }
        for i in whole..self.out.len() {
            let [acc] = dot_rows::<S, F, 1>(s, [row(i)], self.x);
            self.out[i] = s.sum(acc);
        }
    }
}

#[inline(always)]
fn dot_rows<S: Simd, F: Blocks, const R: usize>(s: S, rows: [&[u8]; R], x: &[f32]) -> [S::V; R] {
    let mut acc = [s.splat(0.0); R];
    for (b, x) in x.chunks_exact(F::VALUES).enumerate() {
        for r in 0..R {
            let mut dot = Dot { x, acc: acc[r] };
            F::decode(s, &rows[r][b * F::BYTES..][..F::BYTES], &mut dot);
            acc[r] = dot.acc;
        }
    }
    if x.len() % F::VALUES != 0 {
        for r in 0..R {
            let (block, inputs) = blocks::tail::<F>(rows[r], x.len(), x);
            let mut dot = Dot { x: &inputs, acc: acc[r] };
            F::decode(s, &block[..F::BYTES], &mut dot);
            acc[r] = dot.acc;
        }
    }
    acc
}
