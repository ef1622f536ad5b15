//! Packed matrices as the CUDA device keeps them, and what a product of few tokens, one of many and an embedding read: of 4 bits with scales
//! rounded to f16, of GGUF's blocks the exact values, and bf16 where tokens are many.

use half::f16;
use pagoda_kernels::heuristics::MAX_BLOCK_TOKENS;
use pagoda_kernels::ops::w4::{TILE_COLS, W4Layout, W4Matrix};

use super::product::RoundedWeight;
use super::rounding::rounded;
use crate::device::cuda::MAX_TILED_TOKENS;
use crate::device::{HostMatrix, HostWeight, MatrixUse};
use crate::weights::dequant::dequantize_row;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;
use crate::weights::quant::books::Book;
use crate::weights::quant::{Code, CodedMatrix, ScaleValues, Scales, Zeros, blocks};

/// Most tokens of a product that scales sums where a tile has several scales.
const MAX_UNROUNDED_TOKENS: usize = 8;

/// Values that are not those of a product of many tokens.
pub struct PackedValues {
    /// What products of few tokens read: the book in bf16.
    few: Vec<f32>,
    /// What those of more than `MAX_UNROUNDED_TOKENS` of them read where a tile has several scales: each weight is rounded.
    scaled: Option<Vec<f32>>,
    /// What an embedding reads: unrounded.
    table: Vec<f32>,
    /// Tokens of a product that is one of few.
    max_tokens: usize,
}

/// Blocks that are codes and scales, apart.
pub fn apart(matrix: HostMatrix) -> HostMatrix {
    match matrix {
        HostMatrix::Rows(weight) if weight.format == WeightFormat::Q4_0 && weight.k.is_multiple_of(TILE_COLS) => {
            HostMatrix::from(blocks::q4_0(&weight))
        }
        other => other,
    }
}

fn layout_of(matrix: &CodedMatrix) -> W4Layout {
    let zeros = !matches!(matrix.zeros, Zeros::None);
    W4Layout { n: matrix.n, k: matrix.k, group: matrix.scales.cols, zeros, interleaved: false }
}

fn stays_packed(usage: MatrixUse) -> bool {
    usage.is_projection() || usage == MatrixUse::Table
}

/// Whether a matrix for this use is packed.
pub fn is_packed(matrix: &CodedMatrix, usage: MatrixUse) -> bool {
    matches!(matrix.code, Code::Four { .. }) && layout_of(matrix).is_supported() && stays_packed(usage)
}

/// Whether rows for this use stay blocks.
pub fn stays_blocks(weight: &HostWeight, usage: MatrixUse) -> bool {
    !weight.format.is_dense() && stays_packed(usage)
}

/// Blocks as products and an embedding read them.
pub fn unrounded_blocks(weight: &HostWeight) -> RoundedWeight {
    let (n, k) = (weight.n, weight.k);
    let mut exact = vec![0.0; n * k];
    exact.chunks_exact_mut(k).enumerate().for_each(|(row, out)| dequantize_row(weight.format, weight.rows(row, 1), out));
    let many = exact.iter().copied().map(rounded).collect();
    let packed = PackedValues { few: exact.clone(), scaled: None, table: exact, max_tokens: MAX_BLOCK_TOKENS };
    RoundedWeight { values: many, n, k, packed: Some(packed) }
}

/// The matrix as products and an embedding read it.
pub fn packed(matrix: &CodedMatrix) -> RoundedWeight {
    let (scales, unit) = half_scales(matrix);
    let Code::Four { book, first } = matrix.code else { unreachable!("asked for 4-bit codes") };
    let values = |book: Book| {
        let matrix = CodedMatrix { code: Code::Four { book, first }, scales: scales.clone(), ..matrix.clone() };
        let mut values = vec![0.0; matrix.n * matrix.k];
        values.chunks_exact_mut(matrix.k).enumerate().for_each(|(row, out)| matrix.dequantize_row(row, out));
        values
    };
    let table = values(book);
    let many = table.iter().copied().map(rounded).collect();
    let few = values(half_book(book));
    let scaled = (layout_of(matrix).scales_per_tile() > 1).then(|| few.iter().map(|value| rounded(value / unit) * unit).collect());
    let packed = PackedValues { few, scaled, table, max_tokens: MAX_TILED_TOKENS };
    RoundedWeight { values: many, n: matrix.n, k: matrix.k, packed: Some(packed) }
}

impl RoundedWeight {
    /// What a product of that many tokens reads.
    pub fn for_tokens(&self, tokens: usize) -> &[f32] {
        match &self.packed {
            Some(PackedValues { scaled: Some(scaled), max_tokens, .. }) if (MAX_UNROUNDED_TOKENS + 1..=*max_tokens).contains(&tokens) => {
                scaled
            }
            Some(PackedValues { few, max_tokens, .. }) if tokens <= *max_tokens => few,
            _ => &self.values,
        }
    }

    /// What an embedding reads.
    pub fn table(&self) -> &[f32] {
        self.packed.as_ref().map_or(&self.values, |packed| &packed.table)
    }
}

/// Every scale as f16 times a factor, and the unit of that.
fn half_scales(matrix: &CodedMatrix) -> (Scales, f32) {
    let per_row = matrix.scales.per_row;
    let mut values = vec![0.0f32; matrix.n * per_row];
    values.chunks_exact_mut(per_row).enumerate().for_each(|(row, out)| matrix.scales.read_row(row, out));
    let largest = values.iter().fold(0.0f32, |max, scale| max.max(scale.abs()));
    let (factor, is_short) = W4Matrix::scales_in(largest, matrix.scales.unit());
    values.iter_mut().for_each(|scale| *scale = f16::from_f32(*scale / factor).to_f32() * factor);
    let scales = Scales { rows: 1, values: ScaleValues::F32(MappedBytes::from_slice(bytemuck::cast_slice(&values))), ..matrix.scales };
    (scales, if is_short { factor } else { 1.0 })
}

/// The book in bf16, in the unit in which it loses least.
fn half_book(book: Book) -> Book {
    const UNITS: [f32; 2] = [1.0, 1.43675];
    let off = |value: f32| if value == 0.0 { 0.0 } else { rounded(value) / value - 1.0 };
    let error = |unit: &f32| book.iter().map(|value| off(value * unit).powi(2)).sum::<f32>();
    let unit = UNITS.into_iter().min_by(|a, b| error(a).total_cmp(&error(b))).expect("two units");
    book.map(|value| rounded(value * unit) / unit)
}
