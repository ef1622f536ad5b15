//! Scales of a coded matrix: one value for a rectangle of weights, stored as floats or as bytes with a table.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::books::E4M3_ONE;
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

    /// What all scales are, times floats of at most 8 significant bits; None: not known. It is the scale of the tensor where the others are
    /// e4m3, and 1 where they have so few bits themselves.
    pub fn unit(&self) -> Option<f32> {
        /// Of a product or a quotient that was rounded, which its unit does not undo.
        const ROUNDED: f32 = 2.0 * f32::EPSILON;
        match &self.values {
            ScaleValues::BF16(_) => Some(1.0),
            ScaleValues::Table { table, .. } => [1.0, table[usize::from(E4M3_ONE)]].into_iter().find(|unit| {
                let is_short = |value: f32| (bf16::from_f32(value).to_f32() - value).abs() <= ROUNDED * value.abs();
                unit.is_normal() && *unit > 0.0 && table.iter().all(|value| !value.is_finite() || is_short(value / unit))
            }),
            ScaleValues::F32(_) | ScaleValues::F16(_) | ScaleValues::Nested { .. } => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::quant::books::{e4m3, e8m0, table};

    fn scales(values: ScaleValues) -> Scales {
        Scales::new(1, 16, 64, values)
    }

    fn of_table(value: impl Fn(u8) -> f32) -> Scales {
        scales(ScaleValues::Table { codes: MappedBytes::from_slice(&[]), table: Box::new(table(value)) })
    }

    #[test]
    fn the_unit_of_scales_leaves_them_few_bits() {
        for global in [1.0f32, 512.0, 2688.0 / 0.37, 1.234_567e-3] {
            let (over, times) = (of_table(|byte| e4m3(byte) / global), of_table(|byte| e4m3(byte) * global));
            let is_binary = global.to_bits() & 0x007f_ffff == 0;
            assert_eq!(over.unit(), Some(if is_binary { 1.0 } else { 1.0 / global }), "over {global}");
            assert_eq!(times.unit(), Some(if is_binary { 1.0 } else { global }), "times {global}");
        }
        assert_eq!(of_table(e8m0).unit(), Some(1.0));
        assert_eq!(of_table(|byte| f32::from(byte).sqrt()).unit(), None);
        assert_eq!(of_table(|_| 0.0).unit(), Some(1.0));
        let halves = || MappedBytes::from_slice(&[0x31, 0x2e]);
        assert_eq!((scales(ScaleValues::BF16(halves())).unit(), scales(ScaleValues::F16(halves())).unit()), (Some(1.0), None));
    }
}
