//! Quantising dense weights while they are loaded.

use super::floats::{fp8_rows, nvfp4, nvfp4_binary_global};
use super::four_bit::{BLOCK, nf4};
use super::integers::int8_rows;
use crate::device::{HostMatrix, HostWeight};
use crate::error::{EngineError, Result};
use crate::weights::dequant::dequantize_row;
use crate::weights::mapped::MappedBytes;
use crate::weights::quant::books::{E2M1, NF4, e4m3, table};
use crate::weights::quant::coded::{Code, CodedMatrix, Nibble, Zeros};
use crate::weights::quant::scales::{ScaleValues, Scales};
use rayon::prelude::*;

/// Weights that are in memory as f32 at once.
const CHUNK_VALUES: usize = 16 << 20;

/// What is quantised when it is read; None: as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtLoad {
    /// All matrices but embedding, head and router.
    pub projections: Option<LoadFormat>,
    /// The head; also the embedding where both are one matrix.
    pub head: Option<LoadFormat>,
    /// The embedding where it is a matrix of its own.
    pub embedding: Option<LoadFormat>,
}

/// A format that weights can be loaded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// bitsandbytes NF4, blocks of 64.
    Nf4,
    /// NVFP4: e2m1 in groups of 16 with e4m3 scales over a power of two.
    Fp4,
    /// e4m3 with a scale a row.
    Fp8,
    /// Integers with a scale a row, symmetric.
    Int8,
}

impl LoadFormat {
    /// Bytes that a matrix `[n, k]` will take; None where it stays as it is.
    pub fn bytes(self, n: usize, k: usize) -> Option<usize> {
        let values = n * k;
        match self {
            LoadFormat::Nf4 if k.is_multiple_of(BLOCK) => Some(values / 2 + values / BLOCK * 4),
            LoadFormat::Fp4 if k.is_multiple_of(16) => Some(values / 2 + values / 16 + 1024),
            LoadFormat::Fp8 | LoadFormat::Int8 if k.is_multiple_of(16) => Some(values + 4 * n),
            _ => None,
        }
    }

    /// The matrix in this format: dense ones of a shape it takes. What is quantised already stays.
    ///
    /// # Errors
    /// `not_finite`.
    pub fn convert(self, matrix: HostMatrix) -> Result<HostMatrix> {
        match matrix {
            HostMatrix::Rows(weight) if weight.format.is_dense() && self.bytes(weight.n, weight.k).is_some() => {
                Ok(self.quantize(&weight)?.into())
            }
            other => Ok(other),
        }
    }

    /// Whether `convert` quantises the matrix.
    pub fn takes(self, matrix: &HostMatrix) -> bool {
        matches!(matrix, HostMatrix::Rows(weight) if weight.format.is_dense() && self.bytes(weight.n, weight.k).is_some())
    }

    fn quantize(self, weight: &HostWeight) -> Result<CodedMatrix> {
        let (n, k) = (weight.n, weight.k);
        // Whole rows of a bounded size at a time, so that a head of gigabytes needs no copy in f32.
        let rows = (CHUNK_VALUES / k).max(1);
        let chunks = || (0..n).step_by(rows).map(|first| dense_values(&weight.slice_rows(first, rows.min(n - first))));
        let (mut codes, mut bytes, mut floats) = (Vec::new(), Vec::new(), Vec::new());
        let global = if self == LoadFormat::Fp4 { nvfp4_binary_global(largest(chunks(), &weight.name)?) } else { 1.0 };
        for values in chunks() {
            let (chunk, scales) = match self {
                LoadFormat::Nf4 => {
                    let blocks = nf4(&values, BLOCK);
                    (blocks.codes, blocks.absmax)
                }
                LoadFormat::Fp4 => {
                    let matrix = nvfp4(&values, global);
                    bytes.extend(matrix.scales);
                    (matrix.codes, Vec::new())
                }
                LoadFormat::Fp8 => fp8_rows(&values, k, |scale| scale),
                LoadFormat::Int8 => int8_rows(&values, k),
            };
            codes.extend(chunk);
            floats.extend(scales);
        }
        let floats = || ScaleValues::F32(MappedBytes::from_slice(bytemuck::cast_slice(&floats)));
        let (code, scales) = match self {
            LoadFormat::Nf4 => (Code::Four { book: NF4, first: Nibble::High }, Scales::new(1, BLOCK, k, floats())),
            LoadFormat::Fp4 => {
                let values =
                    ScaleValues::Table { codes: MappedBytes::from_slice(&bytes), table: Box::new(table(|byte| e4m3(byte) / global)) };
                (Code::Four { book: E2M1, first: Nibble::Low }, Scales::new(1, 16, k, values))
            }
            LoadFormat::Fp8 => (Code::E4M3, Scales::new(1, k, k, floats())),
            LoadFormat::Int8 => (Code::U8, Scales::new(1, k, k, floats())),
        };
        let zeros = if self == LoadFormat::Int8 { Zeros::Same(128.0) } else { Zeros::None };
        let (name, codes) = (weight.name.clone(), MappedBytes::from_slice(&codes));
        Ok(CodedMatrix { name, n, k, code, codes, scales, zeros, order: None })
    }
}

/// The largest magnitude of some values of the weight `name`.
///
/// # Errors
/// `not_finite`.
fn largest(chunks: impl Iterator<Item = Vec<f32>>, name: &str) -> Result<f32> {
    // Magnitudes are ordered like their bits, NaN above infinity.
    let bits = |values: Vec<f32>| values.par_iter().map(|value| value.abs().to_bits()).max().unwrap_or(0);
    let largest = f32::from_bits(chunks.map(bits).max().unwrap_or(0));
    if largest.is_finite() { Ok(largest) } else { Err(not_finite(name)) }
}

/// What a scale of the whole matrix cannot be made of: an infinity would leave zeros of all the rest.
pub fn not_finite(name: &str) -> EngineError {
    EngineError::Unsupported(format!("weight {name} in NVFP4 (quantization fp4): it holds infinity or NaN, expected finite values"))
}

/// `[n][k]` in f32.
pub fn dense_values(weight: &HostWeight) -> Vec<f32> {
    let mut values = vec![0.0f32; weight.n * weight.k];
    values.par_chunks_exact_mut(weight.k).enumerate().for_each(|(row, out)| dequantize_row(weight.format, weight.rows(row, 1), out));
    values
}
