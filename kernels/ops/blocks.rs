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

/// A block, and what a GPU makes of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockLayout {
    /// Values.
    values: usize,
    /// Bytes in a file.
    bytes: usize,
    /// First byte of what is kept behind the codes: scales and what else belongs to whole groups.
    first_rest: usize,
    /// Bytes of that.
    rest_bytes: usize,
    /// Bytes of the codes of `STEP_COLS` values on a GPU.
    step_bytes: usize,
}

/// Columns of a step: those that four lanes have at once.
const STEP_COLS: usize = 128;
const STEP_LANES: usize = 4;
const STEP_GROUPS: usize = 4;
const GROUP_COLS: usize = 32;
/// Neighbouring columns of a lane, of which it has two in a group, half a group apart.
const QUAD_COLS: usize = 4;

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
        let (values, bytes, first_rest, rest_bytes, step_bytes) = match self {
            BlockFormat::Q4_0 => (32, 18, 0, 2, 64),
            BlockFormat::Q4_1 => (32, 20, 0, 4, 64),
            BlockFormat::Q5_0 => (32, 22, 0, 2, 80),
            BlockFormat::Q5_1 => (32, 24, 0, 4, 80),
            BlockFormat::Q8_0 => (32, 34, 0, 2, 128),
            BlockFormat::Q4K => (256, 144, 0, 16, 64),
            BlockFormat::Q5K => (256, 176, 0, 16, 80),
            BlockFormat::Q6K => (256, 210, 192, 18, 96),
        };
        BlockLayout { values, bytes, first_rest, rest_bytes, step_bytes }
    }

    /// (values, bytes) of a block.
    pub const fn block(self) -> (usize, usize) {
        let layout = self.layout();
        (layout.values, layout.bytes)
    }

    /// Bytes of a row of `k` values on the GPU, a multiple of 16.
    pub const fn row_bytes(self, k: usize) -> usize {
        let layout = self.layout();
        (k.div_ceil(STEP_COLS) * layout.step_bytes + k / layout.values * layout.rest_bytes).next_multiple_of(ROW_ALIGN)
    }

    /// out = the bytes of `row`, whole blocks as a file has them, in the GPU's order (include/pagoda_blocks.h).
    pub fn arrange_row(self, row: &[u8], out: &mut [u8]) {
        let BlockLayout { values, bytes, first_rest, rest_bytes, step_bytes } = self.layout();
        let num_blocks = row.len() / bytes;
        assert_eq!((row.len() % bytes, out.len()), (0, self.row_bytes(num_blocks * values)), "bytes of a {self:?} row");
        let (steps, rest) = out.split_at_mut((num_blocks * values).div_ceil(STEP_COLS) * step_bytes);
        let (rest, padding) = rest.split_at_mut(num_blocks * rest_bytes);
        padding.fill(0);
        for (block, rest) in row.chunks_exact(bytes).zip(rest.chunks_exact_mut(rest_bytes)) {
            rest.copy_from_slice(&block[first_rest..first_rest + rest_bytes]);
        }
        let mut codes = [0; 2 * STEP_COLS];
        let blocks_at_once = values.max(STEP_COLS) / values;
        let steps_at_once = values.max(STEP_COLS) / STEP_COLS;
        for (blocks, steps) in row.chunks(blocks_at_once * bytes).zip(steps.chunks_mut(steps_at_once * step_bytes)) {
            codes.fill(0);
            for (block, codes) in blocks.chunks_exact(bytes).zip(codes.chunks_exact_mut(values)) {
                self.read_codes(block, codes);
            }
            for (step, codes) in steps.chunks_exact_mut(step_bytes).zip(codes.chunks_exact(STEP_COLS)) {
                self.write_step(codes, step);
            }
        }
    }

    /// The codes of a block in the order of its values, a byte each, as ggml's `dequantize_row_*` finds them.
    fn read_codes(self, block: &[u8], codes: &mut [u8]) {
        match self {
            BlockFormat::Q4_0 => read_nibbles(&block[2..], codes),
            BlockFormat::Q4_1 => read_nibbles(&block[4..], codes),
            BlockFormat::Q5_0 => {
                read_nibbles(&block[6..], codes);
                add_fifth_bits(&block[2..6], codes);
            }
            BlockFormat::Q5_1 => {
                read_nibbles(&block[8..], codes);
                add_fifth_bits(&block[4..8], codes);
            }
            BlockFormat::Q8_0 => codes.copy_from_slice(&block[2..]),
            BlockFormat::Q4K => read_pairs(&block[16..], codes),
            BlockFormat::Q5K => {
                read_pairs(&block[48..], codes);
                for (group, codes) in codes.chunks_exact_mut(GROUP_COLS).enumerate() {
                    codes.iter_mut().zip(&block[16..48]).for_each(|(code, bits)| *code |= (bits >> group & 1) << 4);
                }
            }
            BlockFormat::Q6K => {
                for (half, codes) in codes.chunks_exact_mut(STEP_COLS).enumerate() {
                    let (low, high) = (&block[64 * half..], &block[128 + 32 * half..]);
                    for (i, code) in codes.iter_mut().enumerate() {
                        let (quarter, l) = (i / GROUP_COLS, i % GROUP_COLS);
                        *code = low[quarter % 2 * GROUP_COLS + l] >> (quarter / 2 * 4) & 15 | (high[l] >> (2 * quarter) & 3) << 4;
                    }
                }
            }
        }
    }

    /// The codes of a step in the order of four lanes.
    fn write_step(self, codes: &[u8], out: &mut [u8]) {
        let (low, high) = out.split_at_mut(if self == BlockFormat::Q8_0 { 0 } else { STEP_LANES * 16 });
        let high_bytes = high.len() / STEP_LANES;
        for lane in 0..STEP_LANES {
            let high = &mut high[lane * high_bytes..][..high_bytes];
            let mut high_words = [0; 2];
            for (group, codes) in codes.chunks_exact(GROUP_COLS).enumerate() {
                let quads = [0, GROUP_COLS / 2].map(|half| &codes[half + lane * QUAD_COLS..][..QUAD_COLS]);
                if self == BlockFormat::Q8_0 {
                    for (quad, out) in quads.iter().zip(high[8 * group..].chunks_exact_mut(4)) {
                        out.copy_from_slice(&[quad[0], quad[2], quad[1], quad[3]]);
                    }
                    continue;
                }
                let mut word = 0;
                for (i, pair) in quads.iter().flat_map(|quad| quad.chunks_exact(2)).enumerate() {
                    for (code, half) in pair.iter().map(|code| u32::from(*code)).zip([0, 16]) {
                        word |= (code & 15) << (4 * i + half);
                        match high_bytes {
                            4 => high_words[0] |= (code >> 4) << (4 * group + i + half),
                            _ => high_words[group / 2] |= (code >> 4) << (8 * (group % 2) + 2 * i + half),
                        }
                    }
                }
                low[(lane * STEP_GROUPS + group) * 4..][..4].copy_from_slice(&word.to_le_bytes());
            }
            if self != BlockFormat::Q8_0 {
                high.chunks_exact_mut(4).zip(high_words).for_each(|(out, word)| out.copy_from_slice(&word.to_le_bytes()));
            }
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

/// Low halves of bytes are the first half of the values, high ones the second.
fn read_nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(codes.len() / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The same in every 64 values.
fn read_pairs(bytes: &[u8], codes: &mut [u8]) {
    bytes.chunks_exact(GROUP_COLS).zip(codes.chunks_exact_mut(2 * GROUP_COLS)).for_each(|(bytes, codes)| read_nibbles(bytes, codes));
}

/// Bit i of 32 is the fifth of value i.
fn add_fifth_bits(bits: &[u8], codes: &mut [u8]) {
    codes.iter_mut().enumerate().for_each(|(i, code)| *code |= (bits[i / 8] >> (i % 8) & 1) << 4);
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

/// The product of `skinny_gemm` with a matrix of blocks: `params.w` is its rows, at most 128 tokens, no groups, `heuristics::blocks_plan`.
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

    /// The code of a column of an arranged row, told in the words of the header.
    fn code_at(format: BlockFormat, out: &[u8], col: usize) -> u8 {
        let step = &out[col / STEP_COLS * format.layout().step_bytes..];
        let (group, half, lane, i) = (col % 128 / 32, col % 32 / 16, col % 16 / 4, col % 4);
        let bit =
            |byte: usize, bit: usize, num: u32| (u32::from_le_bytes(step[byte..byte + 4].try_into().unwrap()) >> bit) & ((1 << num) - 1);
        let place = [0, 2, 1, 3][i];
        let pair = 2 * half + i / 2;
        let code = match format {
            BlockFormat::Q8_0 => bit(32 * lane + 8 * group + 4 * half, 8 * place, 8),
            _ => bit(16 * lane + 4 * group, 4 * pair + 16 * (i % 2), 4),
        };
        let high = match format {
            BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q5K => bit(64 + 4 * lane, 4 * group + pair + 16 * (i % 2), 1),
            BlockFormat::Q6K => bit(64 + 8 * lane + 4 * (group / 2), 8 * (group % 2) + 2 * pair + 16 * (i % 2), 2),
            _ => 0,
        };
        u8::try_from(code | high << 4).unwrap()
    }

    #[test]
    fn rows_hold_codes_in_the_order_of_lanes_and_the_rest_behind_them() {
        for format in BlockFormat::ALL {
            let BlockLayout { values, bytes, first_rest, rest_bytes, step_bytes } = format.layout();
            for num_blocks in [1, 2, 3, 4, 7] {
                let row: Vec<u8> = (0..num_blocks * bytes).map(|i| (i * 151 + i / 7 * 13) as u8).collect();
                let mut out = vec![0xa5; format.row_bytes(num_blocks * values)];
                format.arrange_row(&row, &mut out);
                for (idx, block) in row.chunks_exact(bytes).enumerate() {
                    let mut codes = vec![0; values];
                    format.read_codes(block, &mut codes);
                    for (i, code) in codes.iter().enumerate() {
                        assert_eq!(code_at(format, &out, idx * values + i), *code, "{format:?}: value {i} of block {idx} of {num_blocks}");
                    }
                    let behind = (num_blocks * values).div_ceil(STEP_COLS) * step_bytes + idx * rest_bytes;
                    assert_eq!(out[behind..behind + rest_bytes], block[first_rest..first_rest + rest_bytes], "{format:?}: block {idx}");
                }
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
