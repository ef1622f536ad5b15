//! Quantising dense weights while they are loaded.

use super::floats::{fp8_rows, nvfp4};
use super::four_bit::{BLOCK, nf4};
use crate::device::{HostMatrix, HostWeight};
use crate::weights::dequant::dequantize_row;
use crate::weights::mapped::MappedBytes;
use crate::weights::quant::books::{E2M1, NF4, e4m3, table};
use crate::weights::quant::coded::{Code, CodedMatrix, Nibble, Zeros};
use crate::weights::quant::scales::{ScaleValues, Scales};
use rayon::prelude::*;

/// A format that weights can be loaded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// bitsandbytes NF4, blocks of 64.
    Nf4,
    /// NVFP4: e2m1 in groups of 16 with e4m3 scales.
    Fp4,
    /// e4m3 with a scale a row.
    Fp8,
}

impl LoadFormat {
    /// Bytes that a matrix `[n, k]` will take; None where it stays as it is.
    pub fn bytes(self, n: usize, k: usize) -> Option<usize> {
        let values = n * k;
        match self {
            LoadFormat::Nf4 if k.is_multiple_of(BLOCK) => Some(values / 2 + values / BLOCK * 4),
            LoadFormat::Fp4 if k.is_multiple_of(16) => Some(values / 2 + values / 16 + 1024),
            LoadFormat::Fp8 if k.is_multiple_of(16) => Some(values + 4 * n),
            _ => None,
        }
    }

    /// The matrix in this format: dense ones of a shape it takes. What is quantised already stays.
    pub fn convert(self, matrix: HostMatrix) -> HostMatrix {
        match matrix {
            HostMatrix::Rows(weight) if self.takes(&weight) => self.quantize(&weight).into(),
            other => other,
        }
    }

    fn takes(self, weight: &HostWeight) -> bool {
        weight.format.is_dense() && self.bytes(weight.n, weight.k).is_some()
    }

    fn quantize(self, weight: &HostWeight) -> CodedMatrix {
        let (n, k, values) = (weight.n, weight.k, dense_values(weight));
        let (code, codes, scales) = match self {
            LoadFormat::Nf4 => {
                let blocks = nf4(&values, BLOCK);
                let scales = ScaleValues::F32(MappedBytes::from_slice(bytemuck::cast_slice(&blocks.absmax)));
                (Code::Four { book: NF4, first: Nibble::High }, blocks.codes, Scales::new(1, BLOCK, k, scales))
            }
            LoadFormat::Fp4 => {
                let absmax = values.par_iter().fold(|| 0.0f32, |max, x| max.max(x.abs())).reduce(|| 0.0, f32::max);
                let matrix = nvfp4(&values, absmax);
                let (table, codes) = (Box::new(table(|byte| e4m3(byte) / matrix.global)), MappedBytes::from_slice(&matrix.scales));
                let scales = Scales::new(1, 16, k, ScaleValues::Table { codes, table });
                (Code::Four { book: E2M1, first: Nibble::Low }, matrix.codes, scales)
            }
            LoadFormat::Fp8 => {
                let (codes, scales) = fp8_rows(&values, k, |scale| scale);
                let scales = ScaleValues::F32(MappedBytes::from_slice(bytemuck::cast_slice(&scales)));
                (Code::E4M3, codes, Scales::new(1, k, k, scales))
            }
        };
        let (name, codes) = (weight.name.clone(), MappedBytes::from_slice(&codes));
        CodedMatrix { name, n, k, code, codes, scales, zeros: Zeros::None, order: None }
    }
}

/// `[n][k]` in f32.
pub fn dense_values(weight: &HostWeight) -> Vec<f32> {
    let mut values = vec![0.0f32; weight.n * weight.k];
    values.par_chunks_exact_mut(weight.k).enumerate().for_each(|(row, out)| dequantize_row(weight.format, weight.rows(row, 1), out));
    values
}
