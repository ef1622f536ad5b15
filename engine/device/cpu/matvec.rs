//! One token times some rows of a weight, dequantising in registers: the decode path. Bound by memory, or by decoding for 4-bit formats.
//!
//! Four rows at a time, one vector of 16 running sums each; lane j of a sum takes k = j, j + 16, j + 32, ... in order, as in `matmul.rs`.

use std::marker::PhantomData;

use super::blocks::{self, Blocks, Dot};
use super::simd::{Kernel, Simd, unroll};

/// Bytes that are asked for ahead of their use: some memory latencies' worth.
const AHEAD: usize = 4096;

/// out[i] = sum_k x[k] * w[i, k].
pub struct MatVec<'a, F> {
    /// `out.len()` rows of `x.len()` values.
    pub weight: &'a [u8],
    /// `[k]`.
    pub x: &'a [f32],
    /// One a row.
    pub out: &'a mut [f32],
    /// The format.
    pub blocks: PhantomData<F>,
}

impl<F: Blocks> Kernel for MatVec<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row_bytes = self.weight.len() / self.out.len();
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
        // Rows follow each other: R blocks on, whichever rows those are in, as many bytes as this step reads.
        let mut line = 0;
        while line < R * F::BYTES {
            s.prefetch(rows[0], AHEAD + b * R * F::BYTES + line);
            line += 64;
        }
        unroll!(I < R => {
            let mut dot = Dot { x, acc: acc[I] };
            F::decode(s, &rows[I][b * F::BYTES..][..F::BYTES], &mut dot);
            acc[I] = dot.acc;
        });
    }
    if !x.len().is_multiple_of(F::VALUES) {
        unroll!(I < R => {
            let (block, inputs) = blocks::tail::<F>(rows[I], x.len(), x);
            let mut dot = Dot { x: &inputs, acc: acc[I] };
            F::decode(s, &block[..F::BYTES], &mut dot);
            acc[I] = dot.acc;
        });
    }
    acc
}
