//! `CodedMatrix`: the one form of every quantised weight, on any device.
//!
//! ```text
//! row r     codes     k/2 or k bytes: 4-bit codes two a byte along k, or bytes
//!           scales    one for `cols` neighbouring codes (and `rows` rows)
//!           zeros     one for each scale, or none
//! w[r, order[j]] = (value(code[r, j]) - zero) * scale          in f32, each step rounded once
//! ```
//! `value` is an entry of a book of sixteen (NF4, FP4, e2m1, int4), the byte itself, or an e4m3 float: a kernel needs one decoder for
//! each of three code widths, whatever the checkpoint's format is called. Idea of one kernel for any 16-entry code: bitsandbytes (MIT) and
//! Marlin (Apache-2.0), whose own layouts are made from this one where a device wants them.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::books::{Book, e4m3};
use super::scales::Scales;
use crate::device::HostWeight;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Code {
    /// 4 bits: an entry of the book.
    Four {
        /// The values.
        book: Book,
        /// Which half of a byte comes first.
        first: Nibble,
    },
    /// An unsigned byte.
    U8,
    /// An e4m3fn byte.
    E4M3,
}

/// Half a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nibble {
    /// Bits 0 to 3.
    Low,
    /// Bits 4 to 7.
    High,
}

/// Zero points, in units of codes.
#[derive(Clone)]
pub enum Zeros {
    /// None.
    None,
    /// One for the matrix.
    Same(f32),
    /// `codes[row * per_row + group] + plus`, on the grid of the scales.
    Groups {
        /// A byte each.
        codes: MappedBytes,
        /// Added to each: 1 for GPTQ's first version, which stores z - 1.
        plus: u8,
    },
}

/// A quantised matrix `[n, k]`.
#[derive(Clone)]
pub struct CodedMatrix {
    /// Name in the checkpoint, for errors.
    pub name: Arc<str>,
    /// Output rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
    /// What codes stand for.
    pub code: Code,
    /// `n` rows of `row_bytes`; a view into the file where its layout is this one.
    pub codes: MappedBytes,
    /// Scales.
    pub scales: Scales,
    /// Zero points.
    pub zeros: Zeros,
    /// Column `j` of the codes is column `order[j]` of the matrix (GPTQ's act order). None: as they are.
    pub order: Option<Arc<[u32]>>,
}

impl Code {
    /// Bytes of a row of `k` codes.
    pub fn row_bytes(&self, k: usize) -> usize {
        match self {
            Code::Four { .. } => k / 2,
            Code::U8 | Code::E4M3 => k,
        }
    }

    /// The value of code `j` of a row.
    fn value(&self, row: &[u8], j: usize) -> f32 {
        match self {
            Code::Four { book, first } => {
                let byte = row[j / 2];
                let low = (*first == Nibble::Low) == j.is_multiple_of(2);
                book[usize::from(if low { byte & 15 } else { byte >> 4 })]
            }
            Code::U8 => f32::from(row[j]),
            Code::E4M3 => e4m3(row[j]),
        }
    }
}

impl CodedMatrix {
    /// Bytes of a row of codes.
    pub fn row_bytes(&self) -> usize {
        self.code.row_bytes(self.k)
    }

    /// The codes of rows `start .. start + len`.
    pub fn rows(&self, start: usize, len: usize) -> &[u8] {
        &self.codes.as_slice()[start * self.row_bytes()..][..len * self.row_bytes()]
    }

    /// Bytes of codes, scales and zero points.
    pub fn bytes(&self) -> usize {
        let zeros = match &self.zeros {
            Zeros::Groups { codes, .. } => codes.len(),
            _ => 0,
        };
        self.codes.len() + self.scales.bytes() + zeros + self.order.as_ref().map_or(0, |order| 4 * order.len())
    }

    /// out = the zero points of `row`, one a scale; zeros where there are none.
    pub fn read_zeros(&self, row: usize, out: &mut [f32]) {
        let out = &mut out[..self.scales.per_row];
        match &self.zeros {
            Zeros::None => out.fill(0.0),
            Zeros::Same(zero) => out.fill(*zero),
            Zeros::Groups { codes, plus } => {
                let start = row / self.scales.rows * self.scales.per_row;
                let codes = &codes.as_slice()[start..];
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = f32::from(*code) + f32::from(*plus));
            }
        }
    }

    /// out = row `row`, `[k]`: the definition that every device is held to.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.k, "columns of {}", self.name);
        let mut factors = vec![0.0; 2 * self.scales.per_row];
        let (scales, zeros) = factors.split_at_mut(self.scales.per_row);
        self.scales.read_row(row, scales);
        self.read_zeros(row, zeros);
        let codes = self.rows(row, 1);
        for j in 0..self.k {
            let group = j / self.scales.cols;
            let column = self.order.as_ref().map_or(j, |order| order[j] as usize);
            out[column] = (self.code.value(codes, j) - zeros[group]) * scales[group];
        }
    }

    /// The matrix as rows of f32: exact, eight times as large.
    pub fn to_f32(&self) -> HostWeight {
        self.to_rows(WeightFormat::F32, |value, out| out.copy_from_slice(&value.to_le_bytes()))
    }

    /// The matrix as rows of bf16, each weight rounded to nearest even.
    pub fn to_bf16(&self) -> HostWeight {
        self.to_rows(WeightFormat::BF16, |value, out| out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()))
    }

    fn to_rows(&self, format: WeightFormat, store: impl Fn(f32, &mut [u8]) + Sync) -> HostWeight {
        let row_bytes = format.row_bytes(self.k);
        let bytes = MappedBytes::build(self.n * row_bytes, |bytes| {
            bytes.par_chunks_exact_mut(row_bytes.max(1)).enumerate().for_each_init(
                || vec![0.0; self.k],
                |values, (row, out)| {
                    self.dequantize_row(row, values);
                    out.chunks_exact_mut(row_bytes / self.k).zip(&*values).for_each(|(out, value)| store(*value, out));
                },
            );
        });
        HostWeight { name: self.name.clone(), format, n: self.n, k: self.k, bytes }
    }
}
