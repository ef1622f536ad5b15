//! Weights of 8 bits (pagoda_w8.h): quantising, products of few tokens with bf16 activations, of many with e4m3 ones, rows back as bf16.
//! Asynchronous on `stream`, may be captured.

use super::gemm::{SkinnyGemmParams, lower as lower_skinny};
use super::wide::{WideGemm, lower as lower_wide};
use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Rows and columns of a block of weights that share a scale.
pub const SCALE_BLOCK: usize = 128;
/// Columns that fragment order moves within.
pub const CHUNK: usize = 16;

/// What a byte stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteCode {
    /// e4m3fn.
    E4m3,
    /// The byte minus 128.
    Int8,
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGrid {
    /// Those of a row: `[n]` f32.
    Rows,
    /// Those of a block of 128 x 128: `[n.div_ceil(128), k.div_ceil(128)]` f32.
    Blocks,
}

impl ScaleGrid {
    /// Scales of a matrix `[n, k]`.
    pub fn count(self, n: usize, k: usize) -> usize {
        match self {
            ScaleGrid::Rows => n,
            ScaleGrid::Blocks => n.div_ceil(SCALE_BLOCK) * k.div_ceil(SCALE_BLOCK),
        }
    }
}

/// A matrix `[n, k]` of bytes in fragment order, k a multiple of 16, and its scales.
#[derive(Clone, Copy, Debug)]
pub struct ByteMatrix {
    /// `[n, k]`.
    pub codes: DeviceBytes,
    /// f32, as `grid` says.
    pub scales: DeviceBytes,
    /// Which weights share a scale.
    pub grid: ScaleGrid,
    /// What a byte stands for.
    pub code: ByteCode,
}

/// Puts the bytes of every 16 columns of `codes` into fragment order, in place.
///
/// # Errors
/// `InvalidArgument` for a range that is not aligned or no whole number of chunks, `NotBuilt`, `Cuda`.
pub fn permute(codes: DeviceBytes, stream: Stream) -> Result<()> {
    const OP: &str = "w8_permute";
    if !codes.len().is_multiple_of(CHUNK) {
        return Err(invalid(OP, format!("{} bytes, expected a multiple of {CHUNK}", codes.len())));
    }
    check_range(OP, "codes", codes, codes.len(), ALIGNMENT)?;
    let num_chunks = i64::try_from(codes.len() / CHUNK).expect("addresses fit 63 bits");
    let raw = sys::pagoda_w8_permute_params { codes: codes.as_ptr(), num_chunks };
    launch!(pagoda_w8_permute, raw, stream)
}

/// Operands of `quantize`.
#[derive(Clone, Copy, Debug)]
pub struct Quantize {
    /// `[num_rows, cols]` in fragment order, out.
    pub codes: DeviceBytes,
    /// f32, out: of rows `[num_rows]`, of blocks `[cols.div_ceil(128), num_rows]`.
    pub scales: DeviceBytes,
    /// `[num_rows, cols]`.
    pub x: DeviceBytes,
    /// Of x.
    pub dtype: DType,
    /// Rows.
    pub num_rows: usize,
    /// Columns, a multiple of 16, at most 65536.
    pub cols: usize,
    /// `Blocks`: columns share a scale in groups of 128.
    pub grid: ScaleGrid,
    /// Whose scales have which lower bound, and whether ties matter.
    pub rounding: Rounding,
}

/// How values become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Weights as e4m3: x / scale, scales of at least 1e-12. The bytes of the CPU's quantiser.
    Weights,
    /// Weights as integers with 128 added: x / scale, scales of at least the smallest normal number. Of rows alone; the CPU's bytes too.
    Integers,
    /// Activations as e4m3: x * (1 / scale), scales of at least 1 / (448 * 512).
    Activations,
}

/// codes = code(x / scale), scale = largest magnitude / 448, of integers / 127.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, or integers with blocks; `Unsupported` for other columns, `NotBuilt`, `Cuda`.
pub fn quantize(p: &Quantize, stream: Stream) -> Result<()> {
    const OP: &str = "w8_quantize";
    let groups = match p.grid {
        ScaleGrid::Rows => 1,
        ScaleGrid::Blocks => p.cols.div_ceil(SCALE_BLOCK),
    };
    check_range(OP, "codes", p.codes, p.num_rows * p.cols, ALIGNMENT)?;
    check_range(OP, "scales", p.scales, p.num_rows * groups * 4, 4)?;
    check_range(OP, "x", p.x, p.num_rows * p.cols * p.dtype.size(), ALIGNMENT)?;
    let (divides, min_scale, byte) = match p.rounding {
        Rounding::Weights => (true, 1e-12, ByteCode::E4m3),
        Rounding::Integers => (true, f32::MIN_POSITIVE, ByteCode::Int8),
        Rounding::Activations => (false, 1.0 / (448.0 * 512.0), ByteCode::E4m3),
    };
    let raw = sys::pagoda_w8_quantize_params {
        codes: p.codes.as_ptr(),
        scales: p.scales.as_ptr(),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        num_rows: int(OP, "num_rows", p.num_rows)?,
        cols: int(OP, "cols", p.cols)?,
        group_cols: if p.grid == ScaleGrid::Blocks { 128 } else { 0 },
        ld_scales: int(OP, "num_rows", p.num_rows)?,
        divides: i32::from(divides),
        min_scale,
        code: code(byte),
        dtype: p.dtype.code(),
    };
    launch!(pagoda_w8_quantize, raw, stream)
}

/// Operands of `dequantize_rows`.
#[derive(Clone, Copy, Debug)]
pub struct DequantizeRows {
    /// `[num_rows, cols]` in plain order, out.
    pub out: DeviceBytes,
    /// BF16 or F32.
    pub out_dtype: DType,
    /// `[num_code_rows, cols]`.
    pub matrix: ByteMatrix,
    /// `[num_rows]` i32: the row of the matrix for each row of out; a row outside of it gives zeros. None: each its own.
    pub index: Option<DeviceBytes>,
    /// Rows of out.
    pub num_rows: usize,
    /// Rows of the matrix.
    pub num_code_rows: usize,
    /// Columns, a multiple of 16.
    pub cols: usize,
    /// On every value.
    pub factor: f32,
}

/// out[i, :] = rows of the matrix times `factor`: embeddings, and weights for kernels that take none of 8 bits.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `Unsupported` for a type without kernel, `NotBuilt`, `Cuda`.
pub fn dequantize_rows(p: &DequantizeRows, stream: Stream) -> Result<()> {
    const OP: &str = "w8_dequantize";
    if p.index.is_none() && p.num_rows > p.num_code_rows {
        return Err(invalid(OP, format!("{} rows of a matrix of {}", p.num_rows, p.num_code_rows)));
    }
    check_range(OP, "out", p.out, p.num_rows * p.cols * p.out_dtype.size(), ALIGNMENT)?;
    check_matrix(OP, &p.matrix, p.num_code_rows, p.cols)?;
    p.index.map_or(Ok(()), |index| check_range(OP, "index", index, p.num_rows * 4, 4))?;
    let raw = sys::pagoda_w8_dequantize_params {
        out: p.out.as_ptr(),
        codes: p.matrix.codes.as_ptr::<std::ffi::c_void>(),
        scales: p.matrix.scales.as_ptr::<f32>(),
        index: p.index.map_or(std::ptr::null(), |index| index.as_ptr::<i32>()),
        num_rows: int(OP, "num_rows", p.num_rows)?,
        num_code_rows: int(OP, "num_code_rows", p.num_code_rows)?,
        cols: int(OP, "cols", p.cols)?,
        has_blocks: i32::from(p.matrix.grid == ScaleGrid::Blocks),
        factor: p.factor,
        code: code(p.matrix.code),
        out_dtype: p.out_dtype.code(),
    };
    launch!(pagoda_w8_dequantize, raw, stream)
}

/// The product of `skinny_gemm` with a matrix of bytes: `params.w` is its codes, 1 to 64 tokens, no groups, k a multiple of 16.
///
/// # Errors
/// As `skinny_gemm`.
pub fn skinny_w8(params: &SkinnyGemmParams, matrix: &ByteMatrix, stream: Stream) -> Result<()> {
    const OP: &str = "skinny_w8";
    check_matrix(OP, matrix, params.shape.n, params.shape.k)?;
    let raw = sys::pagoda_skinny_w8_params {
        gemm: lower_skinny(params, 1)?,
        scales: matrix.scales.as_ptr::<f32>(),
        has_blocks: i32::from(matrix.grid == ScaleGrid::Blocks),
        code: code(matrix.code),
    };
    launch!(pagoda_skinny_w8, raw, stream)
}

/// The product of `wide_gemm` of e4m3 activations (`params.x`, with scales like those of `quantize`) and a matrix of e4m3.
///
/// # Errors
/// As `wide_gemm`.
pub fn wide_w8(params: &WideGemm, x_scales: DeviceBytes, matrix: &ByteMatrix, stream: Stream) -> Result<()> {
    const OP: &str = "wide_w8";
    check_matrix(OP, matrix, params.n, params.k)?;
    let groups = if matrix.grid == ScaleGrid::Blocks { params.k.div_ceil(SCALE_BLOCK) } else { 1 };
    check_range(OP, "x_scales", x_scales, params.num_rows * groups * 4, 4)?;
    if matrix.code != ByteCode::E4m3 {
        return Err(invalid(OP, format!("{:?}, expected e4m3", matrix.code)));
    }
    let raw = sys::pagoda_wide_w8_params {
        gemm: lower_wide(params, 1)?,
        x_scales: x_scales.as_ptr::<f32>(),
        w_scales: matrix.scales.as_ptr::<f32>(),
        ld_x_scales: int(OP, "num_rows", params.num_rows)?,
        has_blocks: i32::from(matrix.grid == ScaleGrid::Blocks),
    };
    launch!(pagoda_wide_w8, raw, stream)
}

fn check_matrix(op: &'static str, matrix: &ByteMatrix, n: usize, k: usize) -> Result<()> {
    if !k.is_multiple_of(CHUNK) {
        return Err(invalid(op, format!("{k} columns, expected a multiple of {CHUNK}")));
    }
    check_range(op, "codes", matrix.codes, n * k, ALIGNMENT)?;
    check_range(op, "scales", matrix.scales, matrix.grid.count(n, k) * 4, 8)
}

fn code(code: ByteCode) -> sys::pagoda_w8_code {
    match code {
        ByteCode::E4m3 => sys::PAGODA_W8_E4M3,
        ByteCode::Int8 => sys::PAGODA_W8_INT8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    #[test]
    fn matrices_are_checked_against_their_grid() {
        let matrix =
            |grid, codes, scales| ByteMatrix { codes: range(0x1000, codes), scales: range(0x2000, scales), grid, code: ByteCode::E4m3 };
        let cases = [
            (ScaleGrid::Rows, 130 * 144, 130 * 4, 144, None),
            (ScaleGrid::Blocks, 130 * 144, 2 * 2 * 4, 144, None),
            (ScaleGrid::Rows, 130 * 144, 129 * 4, 144, Some("scales holds 516 bytes, needs 520")),
            (ScaleGrid::Blocks, 130 * 144, 12, 144, Some("scales holds 12 bytes, needs 16")),
            (ScaleGrid::Rows, 130 * 144 - 1, 130 * 4, 144, Some("codes holds 18719 bytes, needs 18720")),
            (ScaleGrid::Rows, 130 * 144, 130 * 4, 136, Some("136 columns, expected a multiple of 16")),
        ];
        for (grid, codes, scales, k, expected) in cases {
            let answer = check_matrix("w8", &matrix(grid, codes, scales), 130, k).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(answer, Ok(()), "{grid:?} {codes} {scales}"),
                Some(text) => assert!(answer.as_ref().is_err_and(|error| error.contains(text)), "{answer:?} does not say {text}"),
            }
        }
    }
}
