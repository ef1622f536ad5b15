//! Products with codes: sixteen codes become values in registers, then `(value - zero) * scale`, each step rounded as in
//! `CodedMatrix::dequantize_row`. Nothing larger than a panel is ever dequantised.
//!
//! Sums run as in `matvec.rs` and `matmul.rs`: lane j takes k = j, j + 16, ... in order, so both paths give the same bits for a token.

use std::marker::PhantomData;

use super::matmul::panel_stride;
use super::simd::{Kernel, Simd, lanes, lanes_mut, unroll};
use crate::weights::quant::coded::Nibble;
use crate::weights::quant::{Code, CodedMatrix, Zeros};

/// Codes of a step.
const STEP: usize = 16;
/// Bytes that are asked for ahead of their use, as in `matvec.rs`.
const AHEAD: usize = 4096;

/// A kind of code in registers.
pub trait Decoder {
    /// Bytes of sixteen codes.
    const BYTES: usize;
    /// Whether there are zero points.
    const ZEROS: bool;
    /// The values of sixteen codes; `book` holds the values of 4-bit codes.
    fn decode<S: Simd>(s: S, book: S::V, codes: &[u8]) -> S::V;
}

/// 4 bits, the low nibble first.
pub struct LowFour<const ZEROS: bool>;
impl<const ZEROS: bool> Decoder for LowFour<ZEROS> {
    const BYTES: usize = 8;
    const ZEROS: bool = ZEROS;
    #[inline(always)]
    fn decode<S: Simd>(s: S, book: S::V, codes: &[u8]) -> S::V {
        s.lookup_low_first(book, codes.try_into().expect("eight bytes"))
    }
}

/// 4 bits, the high nibble first.
pub struct HighFour<const ZEROS: bool>;
impl<const ZEROS: bool> Decoder for HighFour<ZEROS> {
    const BYTES: usize = 8;
    const ZEROS: bool = ZEROS;
    #[inline(always)]
    fn decode<S: Simd>(s: S, book: S::V, codes: &[u8]) -> S::V {
        s.lookup_high_first(book, codes.try_into().expect("eight bytes"))
    }
}

/// Unsigned bytes.
pub struct Bytes;
impl Decoder for Bytes {
    const BYTES: usize = 16;
    const ZEROS: bool = true;
    #[inline(always)]
    fn decode<S: Simd>(s: S, _: S::V, codes: &[u8]) -> S::V {
        s.u8_f32(s.bytes(lanes(codes, 0)))
    }
}

/// e4m3 floats.
pub struct E4M3;
impl Decoder for E4M3 {
    const BYTES: usize = 16;
    const ZEROS: bool = false;
    #[inline(always)]
    fn decode<S: Simd>(s: S, _: S::V, codes: &[u8]) -> S::V {
        s.e4m3_f32(lanes(codes, 0))
    }
}

/// Something to be done with a kind of code that is known at run time only.
pub trait ForCode {
    /// Does it.
    fn run<C: Decoder>(self);
}

/// Runs `work` with the decoder of `matrix`.
pub fn for_code<W: ForCode>(matrix: &CodedMatrix, work: W) {
    let zeros = !matches!(matrix.zeros, Zeros::None);
    match (matrix.code, zeros) {
        (Code::Four { first: Nibble::Low, .. }, false) => work.run::<LowFour<false>>(),
        (Code::Four { first: Nibble::Low, .. }, true) => work.run::<LowFour<true>>(),
        (Code::Four { first: Nibble::High, .. }, false) => work.run::<HighFour<false>>(),
        (Code::Four { first: Nibble::High, .. }, true) => work.run::<HighFour<true>>(),
        (Code::U8, _) => work.run::<Bytes>(),
        (Code::E4M3, _) => work.run::<E4M3>(),
    }
}

/// Whether the kernels here take a matrix: whole steps in every group, and zero points only where the code has them.
pub fn is_supported(matrix: &CodedMatrix) -> bool {
    let cols = matrix.scales.cols;
    let steps = matrix.k.is_multiple_of(STEP) && (cols >= matrix.k || cols.is_multiple_of(STEP));
    steps && (matrix.code != Code::E4M3 || matches!(matrix.zeros, Zeros::None))
}

/// Floats of scratch that the scales and zero points of `rows` rows take.
pub fn factors_len(matrix: &CodedMatrix, rows: usize) -> usize {
    2 * rows * matrix.scales.per_row
}

#[inline(always)]
fn book_of<S: Simd>(s: S, matrix: &CodedMatrix) -> S::V {
    match &matrix.code {
        Code::Four { book, .. } => s.load(book),
        _ => s.splat(0.0),
    }
}

/// Scales, then zero points, of rows `first .. first + factors.len() / (2 per_row)`.
fn read_factors<C: Decoder>(matrix: &CodedMatrix, first: usize, factors: &mut [f32]) {
    let per_row = matrix.scales.per_row;
    for (i, factors) in factors.chunks_exact_mut(2 * per_row).enumerate() {
        let (scales, zeros) = factors.split_at_mut(per_row);
        matrix.scales.read_row(first + i, scales);
        if C::ZEROS {
            matrix.read_zeros(first + i, zeros);
        }
    }
}

/// The sixteen weights at byte `at` of a row.
#[inline(always)]
fn weights<S: Simd, C: Decoder>(s: S, book: S::V, codes: &[u8], at: usize, scale: S::V, zero: S::V) -> S::V {
    let value = C::decode(s, book, &codes[at..at + C::BYTES]);
    s.mul(if C::ZEROS { s.sub(value, zero) } else { value }, scale)
}

/// out[i] = sum_k x[k] * w[first + i, k]: the decode path.
pub struct CodedMatVec<'a, C> {
    /// The weight.
    pub matrix: &'a CodedMatrix,
    /// First row.
    pub first: usize,
    /// `[k]`, in the order of the codes.
    pub x: &'a [f32],
    /// One a row.
    pub out: &'a mut [f32],
    /// Room for `factors_len(matrix, 4)`.
    pub factors: &'a mut [f32],
    /// The code.
    pub code: PhantomData<C>,
}

impl<C: Decoder> Kernel for CodedMatVec<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.out.len() / 4 * 4;
        let len = factors_len(self.matrix, 1);
        for i in (0..whole).step_by(4) {
            read_factors::<C>(self.matrix, self.first + i, &mut self.factors[..4 * len]);
            let acc = dot_rows::<S, C, 4>(s, self.matrix, self.first + i, self.x, self.factors);
            self.out[i..i + 4].copy_from_slice(&s.sum4(acc));
        }
        for i in whole..self.out.len() {
            read_factors::<C>(self.matrix, self.first + i, &mut self.factors[..len]);
            let [acc] = dot_rows::<S, C, 1>(s, self.matrix, self.first + i, self.x, self.factors);
            self.out[i] = s.sum(acc);
        }
    }
}

#[inline(always)]
fn dot_rows<S: Simd, C: Decoder, const R: usize>(s: S, matrix: &CodedMatrix, first: usize, x: &[f32], factors: &[f32]) -> [S::V; R] {
    let (book, per_row, row_bytes) = (book_of(s, matrix), matrix.scales.per_row, matrix.row_bytes());
    let codes = matrix.rows(first, R);
    let mut rows = [&[0u8; 0][..]; R];
    unroll!(I < R => rows[I] = &codes[I * row_bytes..][..row_bytes]);
    let mut acc = [s.splat(0.0); R];
    let mut at = 0;
    for (group, x) in x.chunks(matrix.scales.cols).enumerate() {
        let (mut scales, mut zeros) = ([s.splat(0.0); R], [s.splat(0.0); R]);
        unroll!(I < R => {
            scales[I] = s.splat(factors[2 * I * per_row + group]);
            zeros[I] = s.splat(if C::ZEROS { factors[(2 * I + 1) * per_row + group] } else { 0.0 });
        });
        for x in x.as_chunks::<STEP>().0 {
            s.prefetch(rows[0], AHEAD + R * at);
            let x = s.load(x);
            unroll!(I < R => acc[I] = s.fma(weights::<S, C>(s, book, rows[I], at, scales[I], zeros[I]), x, acc[I]));
            at += C::BYTES;
        }
    }
    acc
}

/// Dequantises rows into a panel.
pub struct CodedFill<'a, C> {
    /// The weight.
    pub matrix: &'a CodedMatrix,
    /// First row.
    pub first: usize,
    /// Room for the rows, `panel_stride(k)` apart.
    pub panel: &'a mut [f32],
    /// Room for `factors_len(matrix, 1)`.
    pub factors: &'a mut [f32],
    /// The code.
    pub code: PhantomData<C>,
}

impl<C: Decoder> Kernel for CodedFill<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let matrix = self.matrix;
        let book = book_of(s, matrix);
        for (i, out) in self.panel.chunks_exact_mut(panel_stride(matrix.k)).enumerate() {
            read_factors::<C>(matrix, self.first + i, self.factors);
            let (scales, zeros) = self.factors.split_at(matrix.scales.per_row);
            let (codes, mut at) = (matrix.rows(self.first + i, 1), 0);
            for (group, out) in out[..matrix.k].chunks_mut(matrix.scales.cols).enumerate() {
                let (scale, zero) = (s.splat(scales[group]), s.splat(zeros[group]));
                for out in out.chunks_exact_mut(STEP) {
                    s.store(weights::<S, C>(s, book, codes, at, scale, zero), lanes_mut(out, 0));
                    at += C::BYTES;
                }
            }
        }
    }
}
