//! Scales of a coded matrix: one value for a rectangle of weights, stored as floats or as bytes with a table.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::weights::mapped::MappedBytes;

/// Which weights share a scale, and where it is: entry `(row / rows) * per_row + column / cols`.
#[derive(Clone)]
pub struct Scales {
    /// Rows that share a scale: 1, a block's height, or all.
    pub rows: usize,
    /// Columns that share a scale: the group, a block's width, or all of k.
    pub cols: usize,
    /// Scales of a row: `k.div_ceil(cols)`.
    pub per_row: usize,
    /// The values.
    pub values: ScaleValues,
}

/// How scales are stored.
#[derive(Clone)]
pub enum ScaleValues {
    /// IEEE single, little endian, at any address.
    F32(MappedBytes),
    /// IEEE half.
    F16(MappedBytes),
    /// bfloat16.
    BF16(MappedBytes),
    /// A byte each, looked up: e4m3 and e8m0 scales, already multiplied or divided by the scale of the tensor.
    Table {
        /// The bytes.
        codes: MappedBytes,
        /// Their values.
        table: Box<[f32; 256]>,
    },
    /// bitsandbytes' double quantisation: `table[codes[i]] * outer[i / block] + offset`.
    Nested {
        /// The bytes.
        codes: MappedBytes,
        /// Their values.
        table: Box<[f32; 256]>,
        /// A factor for each block of scales.
        outer: Vec<f32>,
        /// Scales of a block.
        block: usize,
        /// Added to all.
        offset: f32,
    },
}

impl Scales {
    /// One scale for all of `k` columns of each `rows` rows, a group of `cols`, or a block.
    pub fn new(rows: usize, cols: usize, k: usize, values: ScaleValues) -> Scales {
        Scales { rows, cols, per_row: k.div_ceil(cols), values }
    }

    /// Scales of `n` rows.
    pub fn count(&self, n: usize) -> usize {
        n.div_ceil(self.rows) * self.per_row
    }

    /// out = the `per_row` scales of `row`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let start = row / self.rows * self.per_row;
        let out = &mut out[..self.per_row];
        match &self.values {
            ScaleValues::F32(bytes) => {
                let words = bytes.as_slice()[4 * start..].as_chunks::<4>().0;
                out.iter_mut().zip(words).for_each(|(out, word)| *out = f32::from_le_bytes(*word));
            }
            ScaleValues::F16(bytes) => read_halves::<f16>(&bytes.as_slice()[2 * start..], out),
            ScaleValues::BF16(bytes) => read_halves::<bf16>(&bytes.as_slice()[2 * start..], out),
            ScaleValues::Table { codes, table } => {
                let codes = &codes.as_slice()[start..];
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = table[usize::from(*code)]);
            }
            ScaleValues::Nested { codes, table, outer, block, offset } => {
                let codes = &codes.as_slice()[start..];
                for (i, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                    *out = table[usize::from(*code)] * outer[(start + i) / block] + offset;
                }
            }
        }
    }

    /// Bytes they take in memory.
    pub fn bytes(&self) -> usize {
        match &self.values {
            ScaleValues::F32(bytes) | ScaleValues::F16(bytes) | ScaleValues::BF16(bytes) => bytes.len(),
            ScaleValues::Table { codes, .. } => codes.len() + 1024,
            ScaleValues::Nested { codes, outer, .. } => codes.len() + 4 * outer.len() + 1024,
        }
    }
}

fn read_halves<H>(bytes: &[u8], out: &mut [f32])
where
    [H]: HalfFloatSliceExt,
    H: bytemuck::Pod + Into<f32>,
{
    let bytes = &bytes[..2 * out.len()];
    match bytemuck::try_cast_slice::<u8, H>(bytes) {
        Ok(halves) => halves.convert_to_f32_slice(out),
        Err(_) => out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(out, pair)| *out = bytemuck::pod_read_unaligned::<H>(pair).into()),
    }
}
