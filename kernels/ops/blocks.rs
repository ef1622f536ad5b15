//! Matrices of GGUF's blocks (include/pagoda_blocks.h): the order of a row's bytes, products of few tokens, rows back as bf16 or f32.
//! Asynchronous on `stream`, may be captured.

use super::gemm::{SkinnyGemmParams, lower};
use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Rows begin at multiples of this.
const ROW_ALIGN: usize = 16;

/// Which block of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 values of 4 bits: d * (q - 8).
    Q4_0,
    /// 32 values of 4 bits: d * q + m.
    Q4_1,
    /// 32 values of 5 bits: d * (q - 16).
    Q5_0,
    /// 32 values of 5 bits: d * q + m.
    Q5_1,
    /// 32 values of 8 bits: d * q.
    Q8_0,
    /// 256 values of 4 bits, scales and minima of 6 bits for 32.
    Q4K,
    /// 256 values of 5 bits, scales and minima of 6 bits for 32.
    Q5K,
    /// 256 values of 6 bits, scales of 8 bits for 16.
    Q6K,
}

/// Where a block's codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockLayout {
    /// Values.
    values: usize,
    /// Bytes.
    bytes: usize,
    /// First byte of the codes.
    first_code: usize,
    /// Bytes of codes, a multiple of 16.
    code_bytes: usize,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [BlockFormat; 8] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    const fn layout(self) -> BlockLayout {
        let (values, bytes, first_code, code_bytes) = match self {
            BlockFormat::Q4_0 => (32, 18, 2, 16),
            BlockFormat::Q4_1 => (32, 20, 4, 16),
            BlockFormat::Q5_0 => (32, 22, 6, 16),
            BlockFormat::Q5_1 => (32, 24, 8, 16),
            BlockFormat::Q8_0 => (32, 34, 2, 32),
            BlockFormat::Q4K => (256, 144, 16, 128),
            BlockFormat::Q5K => (256, 176, 16, 160),
            BlockFormat::Q6K => (256, 210, 0, 192),
        };
        BlockLayout { values, bytes, first_code, code_bytes }
    }

    /// (values, bytes) of a block.
    pub const fn block(self) -> (usize, usize) {
        let layout = self.layout();
        (layout.values, layout.bytes)
    }

    /// Bytes of a row of `k` values on the GPU: its blocks, up to a multiple of 16.
    pub const fn row_bytes(self, k: usize) -> usize {
        let layout = self.layout();
        (k / layout.values * layout.bytes).next_multiple_of(ROW_ALIGN)
    }

    /// out = the bytes of `row`, whole blocks as a file has them, in the GPU's order: codes of all blocks, then what else they hold.
    pub fn arrange_row(self, row: &[u8], out: &mut [u8]) {
        let BlockLayout { bytes, first_code, code_bytes, .. } = self.layout();
        let num_blocks = row.len() / bytes;
        assert_eq!((row.len() % bytes, out.len()), (0, row.len().next_multiple_of(ROW_ALIGN)), "bytes of a {self:?} row");
        let (codes, rest) = out.split_at_mut(num_blocks * code_bytes);
        let (rest, padding) = rest.split_at_mut(num_blocks * (bytes - code_bytes));
        padding.fill(0);
        let places = codes.chunks_exact_mut(code_bytes).zip(rest.chunks_exact_mut(bytes - code_bytes));
        for (block, (codes, rest)) in row.chunks_exact(bytes).zip(places) {
            let (before, after) = rest.split_at_mut(first_code);
            before.copy_from_slice(&block[..first_code]);
            codes.copy_from_slice(&block[first_code..first_code + code_bytes]);
            after.copy_from_slice(&block[first_code + code_bytes..]);
        }
    }

    const fn code(self) -> sys::pagoda_block_format {
        match self {
            BlockFormat::Q4_0 => sys::PAGODA_Q4_0,
            BlockFormat::Q4_1 => sys::PAGODA_Q4_1,
            BlockFormat::Q5_0 => sys::PAGODA_Q5_0,
            BlockFormat::Q5_1 => sys::PAGODA_Q5_1,
            BlockFormat::Q8_0 => sys::PAGODA_Q8_0,
            BlockFormat::Q4K => sys::PAGODA_Q4_K,
            BlockFormat::Q5K => sys::PAGODA_Q5_K,
            BlockFormat::Q6K => sys::PAGODA_Q6_K,
        }
    }
}

/// A matrix `[n, k]` of blocks, k a multiple of the values of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMatrix {
    /// `n` rows of `format.row_bytes(k)`, each as `arrange_row` makes it.
    pub rows: DeviceBytes,
    /// Which blocks.
    pub format: BlockFormat,
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
}

impl BlockMatrix {
    /// Bytes of all rows.
    pub fn bytes(format: BlockFormat, n: usize, k: usize) -> usize {
        n * format.row_bytes(k)
    }
}

fn check_matrix(op: &'static str, matrix: &BlockMatrix) -> Result<()> {
    let (values, _) = matrix.format.block();
    if matrix.k == 0 || !matrix.k.is_multiple_of(values) {
        return Err(invalid(op, format!("{} columns, expected a multiple of {values}", matrix.k)));
    }
    check_range(op, "rows", matrix.rows, BlockMatrix::bytes(matrix.format, matrix.n, matrix.k), ALIGNMENT)
}

/// Which rows become numbers.
#[derive(Clone, Copy, Debug)]
pub enum BlockRows {
    /// Those from this one on.
    From(usize),
    /// `[num_rows]` i32: a row each; one outside of the matrix gives zeros.
    Index(DeviceBytes),
}

/// Operands of `blocks_dequantize`.
#[derive(Clone, Copy, Debug)]
pub struct BlocksDequantize {
    /// `[num_rows, k]`, out.
    pub out: DeviceBytes,
    /// BF16 or F32.
    pub out_dtype: DType,
    /// What becomes numbers.
    pub matrix: BlockMatrix,
    /// Which of its rows.
    pub rows: BlockRows,
    /// Rows of out.
    pub num_rows: usize,
    /// On every value.
    pub factor: f32,
}

/// out[i, :] = a row of the matrix times `factor`: the values of `weights/dequant.rs` of the engine, bit for bit before the factor.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `Unsupported` for a type without kernel, `NotBuilt`, `Cuda`.
pub fn blocks_dequantize(p: &BlocksDequantize, stream: Stream) -> Result<()> {
    const OP: &str = "blocks_dequantize";
    let BlockMatrix { rows, format, n, k } = p.matrix;
    check_matrix(OP, &p.matrix)?;
    check_range(OP, "out", p.out, p.num_rows * k * p.out_dtype.size(), ALIGNMENT)?;
    let (first_row, index) = match p.rows {
        BlockRows::From(first) if first + p.num_rows > n => {
            return Err(invalid(OP, format!("rows {first} to {} of {n}", first + p.num_rows)));
        }
        BlockRows::From(first) => (first, std::ptr::null()),
        BlockRows::Index(index) => {
            check_range(OP, "index", index, p.num_rows * 4, 4)?;
            (0, index.as_ptr::<i32>().cast_const())
        }
    };
    let raw = sys::pagoda_blocks_dequantize_params {
        out: p.out.as_ptr(),
        rows: rows.as_ptr::<std::ffi::c_void>(),
        index,
        first_row: int(OP, "first_row", first_row)?,
        num_rows: int(OP, "num_rows", p.num_rows)?,
        n: int(OP, "n", n)?,
        k: int(OP, "k", k)?,
        factor: p.factor,
        format: format.code(),
        out_dtype: p.out_dtype.code(),
    };
    launch!(pagoda_blocks_dequantize, raw, stream)
}

/// The product of `skinny_gemm` with a matrix of blocks: `params.w` is its rows, at most 128 tokens, no groups, `heuristics::BLOCKS_PLAN`.
///
/// # Errors
/// As `skinny_gemm`.
pub fn blocks_gemm(params: &SkinnyGemmParams, matrix: &BlockMatrix, stream: Stream) -> Result<()> {
    const OP: &str = "blocks_gemm";
    check_matrix(OP, matrix)?;
    let shape = params.shape;
    if (shape.n, shape.k, params.w) != (matrix.n, matrix.k, matrix.rows) {
        return Err(invalid(OP, format!("{shape:?} of a matrix [{}, {}]", matrix.n, matrix.k)));
    }
    // Bytes of w were checked above.
    let raw = sys::pagoda_blocks_gemm_params { gemm: lower(params, 0)?, format: matrix.format.code() };
    launch!(pagoda_blocks_gemm, raw, stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    /// Where a byte of a block goes, told in the words of the header.
    #[test]
    fn rows_hold_codes_first_and_every_byte_once() {
        for format in BlockFormat::ALL {
            let BlockLayout { values, bytes, first_code, code_bytes } = format.layout();
            assert!(code_bytes.is_multiple_of(16) && first_code + code_bytes <= bytes, "{format:?}");
            for num_blocks in [1, 2, 3, 7] {
                // Every byte names its block and its place there.
                let row: Vec<u8> = (0..num_blocks * bytes).map(|i| (i / bytes * 31 + i % bytes) as u8).collect();
                let mut out = vec![0xa5; format.row_bytes(num_blocks * values)];
                format.arrange_row(&row, &mut out);
                let rest = num_blocks * code_bytes;
                let place = |block: usize, byte: usize| match byte.checked_sub(first_code) {
                    None => rest + block * (bytes - code_bytes) + byte,
                    Some(code) if code < code_bytes => block * code_bytes + code,
                    Some(behind) => rest + block * (bytes - code_bytes) + first_code + behind - code_bytes,
                };
                for (i, byte) in row.iter().enumerate() {
                    assert_eq!(out[place(i / bytes, i % bytes)], *byte, "{format:?}: byte {i} of {num_blocks} blocks");
                }
                assert!(out[row.len()..].iter().all(|byte| *byte == 0) && out.len() - row.len() < ROW_ALIGN, "{format:?}: padding");
            }
        }
    }

    #[test]
    fn matrices_are_checked() {
        let matrix = |len, k| BlockMatrix { rows: range(0x1000, len), format: BlockFormat::Q6K, n: 3, k };
        let cases = [
            (3 * 432, 512, None),
            (3 * 432 - 1, 512, Some("rows holds 1295 bytes, needs 1296")),
            (3 * 432, 320, Some("320 columns, expected a multiple of 256")),
        ];
        for (len, k, expected) in cases {
            let answer = check_matrix("blocks", &matrix(len, k)).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(answer, Ok(()), "{len} {k}"),
                Some(text) => assert!(answer.as_ref().is_err_and(|error| error.contains(text)), "{answer:?} does not say {text}"),
            }
        }
    }
}
