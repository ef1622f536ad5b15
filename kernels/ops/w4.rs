//! 4-bit weights in tiles (include/pagoda_w4.h): packed when weights are loaded, turned into bf16 for products of many tokens, read row by row
//! as an embedding. Asynchronous on `stream`.

use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns of a tile.
pub const TILE_COLS: usize = 64;

/// What the tiles of a matrix `[n, k]` hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct W4Layout {
    /// Rows.
    pub n: usize,
    /// Columns, a multiple of 64.
    pub k: usize,
    /// Columns that share a scale: 16, 32, a multiple of 64, or all of k.
    pub group: usize,
    /// Whether every scale has a zero point.
    pub zeros: bool,
    /// Whether rows of gate and up alternate in groups of 8; n is a multiple of 16 then.
    pub interleaved: bool,
}

impl W4Layout {
    /// Whether there are tiles for such a matrix.
    pub fn is_supported(&self) -> bool {
        let group_ok = matches!(self.group, 16 | 32) || self.group.is_multiple_of(TILE_COLS) || self.group >= self.k;
        let rows_ok = !self.interleaved || self.n.is_multiple_of(TILE_ROWS);
        self.n > 0 && self.k > 0 && self.k.is_multiple_of(TILE_COLS) && self.group > 0 && group_ok && rows_ok
    }

    /// Scales of a row in a tile.
    pub fn scales_per_tile(&self) -> usize {
        if self.group >= self.k { 1 } else { (TILE_COLS / self.group).max(1) }
    }

    /// Scales of a row.
    pub fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// Bytes of a tile.
    pub fn tile_bytes(&self) -> usize {
        TILE_ROWS * TILE_COLS / 2 + 2 * TILE_ROWS * self.scales_per_tile() * if self.zeros { 2 } else { 1 }
    }

    /// Bytes of all tiles.
    pub fn bytes(&self) -> usize {
        self.n.div_ceil(TILE_ROWS) * (self.k / TILE_COLS) * self.tile_bytes()
    }
}

/// A matrix in tiles: w = (book[code] - zero) * scale * scale_factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct W4Matrix {
    /// `layout.bytes()` bytes.
    pub tiles: DeviceBytes,
    /// Shape and parts of the tiles.
    pub layout: W4Layout,
    /// What each code stands for.
    pub book: [f32; 16],
    /// On all scales.
    pub scale_factor: f32,
    /// Whether bf16 holds the scales in the tiles, because they have at most 8 significant bits.
    pub short_scales: bool,
}

impl W4Matrix {
    /// The power of two that puts scales of at most `largest` well into the range of f16: its largest stored scale is from 2^10 to 2^11,
    /// so that scales down to 2^-24 of it keep 11 bits.
    pub fn scale_factor(largest: f32) -> f32 {
        if !largest.is_finite() || largest <= 0.0 {
            return 1.0;
        }
        // Both the factor and its inverse are normal.
        let exponent = (i32::from((largest.to_bits() >> 23) as u8) - 127).clamp(-110, 110);
        f32::from_bits(((exponent - 10 + 127) as u32) << 23)
    }

    /// `scale_factor` and `short_scales` for scales of at most `largest`. Where all scales are a `unit` times a float of at most 8 significant
    /// bits (e4m3 under a scale of the whole matrix, e8m0 times one), the unit is part of the factor, so that what is stored is exact.
    pub fn scales_in(largest: f32, unit: Option<f32>) -> (f32, bool) {
        let in_unit = unit.map(|unit| W4Matrix::scale_factor(largest / unit) * unit);
        match in_unit.filter(|factor| factor.is_normal() && (1.0 / factor).is_normal()) {
            Some(factor) => (factor, true),
            None => (W4Matrix::scale_factor(largest), false),
        }
    }

    /// Whether the kernel of very few tokens has such tiles: scales and zeros of every format that is read, through the table of pairs or as
    /// whole numbers (`kColumnsKernels` in cuda/gemm/w4.cu).
    pub fn fits_columns(&self) -> bool {
        let first = self.book[0];
        let whole =
            first == first.trunc() && (-16.0..=0.0).contains(&first) && (0u8..).zip(self.book).all(|(i, v)| v == first + f32::from(i));
        matches!((self.layout.scales_per_tile(), self.layout.zeros, whole), (1 | 2, false, _) | (4, false, false) | (1 | 2, true, true))
    }

    pub(super) fn lower(&self, op: &'static str) -> Result<sys::pagoda_w4_matrix> {
        let layout = &self.layout;
        if !layout.is_supported() {
            return Err(invalid(op, format!("no tiles for {layout:?}")));
        }
        check_range(op, "tiles", self.tiles, layout.bytes(), ALIGNMENT)?;
        Ok(sys::pagoda_w4_matrix {
            tiles: self.tiles.as_ptr(),
            book: self.book,
            scale_factor: self.scale_factor,
            n: int(op, "n", layout.n)?,
            k: int(op, "k", layout.k)?,
            scales_per_tile: int(op, "scales_per_tile", layout.scales_per_tile())?,
            has_zeros: i32::from(layout.zeros),
            interleaved: i32::from(layout.interleaved),
            short_scales: i32::from(self.short_scales),
        })
    }
}

/// Rows of codes with their scales.
#[derive(Clone, Copy, Debug)]
pub struct W4Codes {
    /// `[n, k / 2]`, two codes a byte.
    pub codes: DeviceBytes,
    /// Whether the high half of a byte is the smaller column.
    pub first_high: bool,
    /// `[n, groups]` f32.
    pub scales: DeviceBytes,
    /// `[n, groups]` bytes, and what is added to each.
    pub zeros: Option<(DeviceBytes, u8)>,
}

/// Fills the tiles of `matrix`. Scales are rounded to f16 in units of its factor.
///
/// # Errors
/// `InvalidArgument` for a range too short or a shape without tiles, `Unsupported`, `NotBuilt`, `Cuda`.
pub fn w4_pack(matrix: &W4Matrix, from: &W4Codes, stream: Stream) -> Result<()> {
    const OP: &str = "w4_pack";
    let layout = &matrix.layout;
    let raw_matrix = matrix.lower(OP)?;
    let scales = layout.n * layout.groups();
    check_range(OP, "codes", from.codes, layout.n * layout.k / 2, ALIGNMENT)?;
    check_range(OP, "scales", from.scales, scales * 4, 4)?;
    if from.zeros.is_some() != layout.zeros {
        return Err(invalid(OP, format!("zeros given: {}, in the tiles: {}", from.zeros.is_some(), layout.zeros)));
    }
    from.zeros.map_or(Ok(()), |(zeros, _)| check_range(OP, "zeros", zeros, scales, 1))?;
    let raw = sys::pagoda_w4_pack_params {
        matrix: raw_matrix,
        codes: from.codes.as_ptr::<u8>(),
        scales: from.scales.as_ptr::<f32>(),
        zeros: from.zeros.map_or(std::ptr::null(), |(zeros, _)| zeros.as_ptr::<u8>()),
        zero_plus: from.zeros.map_or(0, |(_, plus)| i32::from(plus)),
        group: int(OP, "group", layout.group)?,
        first_high: i32::from(from.first_high),
    };
    launch!(pagoda_w4_pack, raw, stream)
}

/// Rows of a matrix as bf16.
#[derive(Clone, Copy, Debug)]
pub struct W4Dequantize<'a> {
    /// The matrix.
    pub matrix: &'a W4Matrix,
    /// `[num_rows, k]` bf16.
    pub out: DeviceBytes,
    /// `[k]` i32: column c goes to column `order[c]`; None: they stay.
    pub order: Option<DeviceBytes>,
    /// First of the rows, a multiple of 16.
    pub first_row: usize,
    /// Rows; a multiple of 16 unless they are the last. Of an interleaved matrix: gates, then their ups.
    pub num_rows: usize,
}

/// Some rows of tiles as bf16; each weight is rounded once.
///
/// # Errors
/// As `w4_pack`.
pub fn w4_dequantize(p: &W4Dequantize<'_>, stream: Stream) -> Result<()> {
    const OP: &str = "w4_dequantize";
    let W4Layout { n, k, .. } = p.matrix.layout;
    if !p.first_row.is_multiple_of(TILE_ROWS) || p.first_row + p.num_rows > n {
        return Err(invalid(OP, format!("rows {} + {} of {n}", p.first_row, p.num_rows)));
    }
    check_range(OP, "out", p.out, p.num_rows * k * 2, ALIGNMENT)?;
    p.order.map_or(Ok(()), |order| check_range(OP, "order", order, k * 4, 4))?;
    let raw = sys::pagoda_w4_dequantize_params {
        matrix: p.matrix.lower(OP)?,
        out: p.out.as_ptr(),
        order: p.order.map_or(std::ptr::null(), |order| order.as_ptr::<i32>()),
        first_tile: int(OP, "first_row", p.first_row / TILE_ROWS)?,
        num_rows: int(OP, "num_rows", p.num_rows)?,
    };
    launch!(pagoda_w4_dequantize, raw, stream)
}

/// out[i, :] = w[index[i], :] * scale; out: `[num_rows, k]` of `out_dtype`, index: `[num_rows]` i32.
///
/// # Errors
/// As `w4_pack`; an interleaved matrix is an invalid argument.
pub fn w4_gather_rows(
    matrix: &W4Matrix,
    (out, out_dtype): (DeviceBytes, DType),
    index: DeviceBytes,
    num_rows: usize,
    scale: f32,
    stream: Stream,
) -> Result<()> {
    const OP: &str = "w4_gather_rows";
    check_range(OP, "out", out, num_rows * matrix.layout.k * out_dtype.size(), ALIGNMENT)?;
    check_range(OP, "index", index, num_rows * 4, 4)?;
    let raw = sys::pagoda_w4_gather_rows_params {
        matrix: matrix.lower(OP)?,
        out: out.as_ptr(),
        index: index.as_ptr::<i32>(),
        num_rows: int(OP, "num_rows", num_rows)?,
        scale,
        out_dtype: out_dtype.code(),
    };
    launch!(pagoda_w4_gather_rows, raw, stream)
}

/// out[t, c] = x[t, order[c]]; out, x: `[num_tokens, k]` bf16, apart from each other; order: `[k]` i32.
///
/// # Errors
/// As `w4_pack`.
pub fn gather_columns(out: DeviceBytes, x: DeviceBytes, order: DeviceBytes, num_tokens: usize, k: usize, stream: Stream) -> Result<()> {
    const OP: &str = "gather_columns";
    check_range(OP, "out", out, num_tokens * k * 2, ALIGNMENT)?;
    check_range(OP, "x", x, num_tokens * k * 2, ALIGNMENT)?;
    check_range(OP, "order", order, k * 4, 4)?;
    let raw = sys::pagoda_gather_columns_params {
        out: out.as_ptr(),
        x: x.as_ptr::<std::ffi::c_void>(),
        order: order.as_ptr::<i32>(),
        num_tokens: int(OP, "num_tokens", num_tokens)?,
        k: int(OP, "k", k)?,
    };
    launch!(pagoda_gather_columns, raw, stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(n: usize, k: usize, group: usize, zeros: bool) -> W4Layout {
        W4Layout { n, k, group, zeros, interleaved: false }
    }

    #[test]
    fn tiles_take_what_the_format_says() {
        for (layout, tile_bytes, bytes) in [
            (layout(16, 64, 64, false), 544, 544),
            (layout(17, 128, 128, true), 576, 4 * 576),
            (layout(32, 128, 32, true), 640, 4 * 640),
            (layout(16, 64, 16, false), 640, 640),
            (layout(16, 192, 192, false), 544, 3 * 544),
            (layout(16, 192, 1000, false), 544, 3 * 544),
        ] {
            assert!(layout.is_supported(), "{layout:?}");
            assert_eq!((layout.tile_bytes(), layout.bytes()), (tile_bytes, bytes), "{layout:?}");
        }
        for bad in [layout(16, 96, 32, false), layout(16, 128, 48, false), layout(0, 64, 64, false), layout(16, 128, 8, false)] {
            assert!(!bad.is_supported(), "{bad:?}");
        }
        assert!(!W4Layout { n: 24, interleaved: true, ..layout(16, 64, 64, false) }.is_supported());
    }

    #[test]
    fn the_kernel_of_columns_has_the_formats_that_are_read() {
        let whole = |first: f32| std::array::from_fn(|i| first + i as f32);
        let nf4 = std::array::from_fn(|i| (i as f32 - 7.0) / 8.0);
        for (book, group, zeros, expected) in [
            (nf4, 64, false, true),
            (nf4, 16, false, true),
            (nf4, 64, true, false),
            (whole(-8.0), 128, false, true),
            (whole(0.0), 128, true, true),
            (whole(0.0), 32, true, true),
            (whole(-8.0), 16, false, false),
            (whole(0.5), 64, true, false),
        ] {
            // SAFETY: nothing reads the range.
            let tiles = unsafe { DeviceBytes::new(0x1000, 1 << 20) };
            let matrix = W4Matrix { tiles, layout: layout(16, 1024, group, zeros), book, scale_factor: 1.0, short_scales: false };
            assert_eq!(matrix.fits_columns(), expected, "{book:?}, groups of {group}, zeros: {zeros}");
        }
    }

    #[test]
    fn the_largest_scale_lies_below_2_to_the_11() {
        for largest in [1.0f32, 0.013, 1e-30, 3e20, 1.999_999_9, f32::MIN_POSITIVE, f32::MAX] {
            let factor = W4Matrix::scale_factor(largest);
            assert!(factor.is_normal() && (1.0 / factor).is_normal() && factor.to_bits() & 0x007f_ffff == 0, "{largest}: {factor}");
            if (1e-30..1e30).contains(&largest) {
                assert!((1024.0..2048.0).contains(&(largest / factor)), "{largest}: {factor}");
            }
        }
        assert_eq!((W4Matrix::scale_factor(0.0), W4Matrix::scale_factor(f32::INFINITY)), (1.0, 1.0));
    }

    #[test]
    fn scales_in_a_unit_are_stored_as_they_are() {
        for unit in [1.0f32, 0.013_37, 3.3e-9, 4.1e7] {
            // e4m3: 1.125 and 2^-9 among them.
            let scales = [448.0f32, 1.125, 0.001_953_125].map(|short| short * unit);
            let (factor, is_short) = W4Matrix::scales_in(scales[0], Some(unit));
            let stored = scales.map(|scale| half::f16::from_f32(scale / factor).to_f32());
            assert!(is_short && stored[0] >= 1024.0 && stored[0] < 2048.0, "{unit}: {stored:?}");
            assert_eq!(stored.map(|scale| scale.to_bits() & 0xffff), [0; 3], "{unit}: {stored:?} in bf16");
            assert_eq!(stored.map(|scale| scale * factor), scales, "{unit}");
        }
        assert_eq!(W4Matrix::scales_in(1.5, None), (W4Matrix::scale_factor(1.5), false));
        assert!(!W4Matrix::scales_in(f32::MAX, Some(1e-38)).1, "no factor holds both");
    }
}
