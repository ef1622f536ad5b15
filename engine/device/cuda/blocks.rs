//! GGUF's blocks on the GPU: the bytes of the file, each row in the order of its kernels (`pagoda_blocks.h`). Products of few tokens read them
//! as they are; for those of more they become bf16 (`pieces.rs`). With `deterministic` every token's product is that of few.

use pagoda_kernels::heuristics::{MAX_BLOCK_TOKENS, MAX_BLOCK_TOKENS_BESIDE_COPY, SkinnyShape, blocks_plan};
use pagoda_kernels::ops::blocks::{BlockFormat, BlockMatrix, BlockRows, BlocksDequantize, blocks_dequantize, blocks_gemm};
use pagoda_kernels::ops::gemm::SkinnyGemmParams;
use pagoda_kernels::ops::{DType, DeviceBytes};
use rayon::prelude::*;

use super::memory::TASK_BYTES;
use super::pieces::{PackedRows, Piece, piece_bytes};
use super::product::Product;
use super::w4_load::is_packed;
use super::{CudaDevice, CudaWeight, Stored, engine_error};
use crate::device::{HostMatrix, HostWeight, MatrixForm, MatrixLoad, MatrixUse, StoredForm, Tensor};
use crate::error::{EngineError, Result};
use crate::weights::format::WeightFormat;

/// Tokens of a launch, at most.
const LAUNCH_TOKENS: usize = 128;

/// A matrix of blocks.
#[derive(Clone, Copy)]
pub(super) struct BlockWeight {
    /// Rows of blocks.
    pub matrix: BlockMatrix,
    /// `[n, k]` bf16.
    pub dense: Option<DeviceBytes>,
}

impl BlockWeight {
    fn rows(&self) -> PackedRows {
        PackedRows { n: self.matrix.n, k: self.matrix.k, interleaved: false, dense: self.dense }
    }
}

/// The blocks that a matrix for this use stays in; None: it becomes tiles, bytes or bf16.
pub(super) fn block_format(form: &MatrixForm, usage: MatrixUse) -> Option<BlockFormat> {
    let StoredForm::Rows(stored) = form.stored else { return None };
    let format = match stored {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => return None,
        WeightFormat::Q4_0 => BlockFormat::Q4_0,
        WeightFormat::Q4_1 => BlockFormat::Q4_1,
        WeightFormat::Q5_0 => BlockFormat::Q5_0,
        WeightFormat::Q5_1 => BlockFormat::Q5_1,
        WeightFormat::Q8_0 => BlockFormat::Q8_0,
        WeightFormat::Q4K => BlockFormat::Q4K,
        WeightFormat::Q5K => BlockFormat::Q5K,
        WeightFormat::Q6K => BlockFormat::Q6K,
    };
    is_packed(usage).then_some(format)
}

/// out = rows `first ..` of `weight`, each in the order of the GPU.
fn arrange_rows(out: &mut [u8], weight: &HostWeight, format: BlockFormat, first: usize) {
    let row_bytes = format.row_bytes(weight.k);
    let rows_per_task = (TASK_BYTES / row_bytes).max(1);
    out.par_chunks_mut(rows_per_task * row_bytes).enumerate().for_each(|(task, rows)| {
        for (i, out) in rows.chunks_exact_mut(row_bytes).enumerate() {
            format.arrange_row(weight.rows(first + task * rows_per_task + i, 1), out);
        }
    });
}

impl CudaDevice {
    /// Neighbouring parts of one format as one matrix.
    pub(super) fn upload_blocks(&self, parts: &[HostMatrix], format: BlockFormat, load: MatrixLoad) -> Result<CudaWeight> {
        let (n, k) = (parts.iter().map(HostMatrix::n).sum(), parts[0].k());
        let row_bytes = format.row_bytes(k);
        let rows = self.weights.alloc(BlockMatrix::bytes(format, n, k)).map_err(engine_error)?;
        let mut first = 0;
        for part in parts {
            let HostMatrix::Rows(weight) = part else { unreachable!("blocks lie in rows") };
            let (found, expected) = (weight.bytes.len(), weight.n * weight.row_bytes());
            if found != expected {
                let name = &weight.name;
                return Err(EngineError::Device(format!("weight {name}: {found} bytes of {format:?}, expected {expected}")));
            }
            let out = rows.from(first * row_bytes).first(weight.n * row_bytes);
            self.staging.lock().upload_with(out, out.len(), row_bytes, |start, piece| {
                arrange_rows(piece, weight, format, start / row_bytes);
                Ok(())
            })?;
            first += weight.n;
        }
        let mut weight = BlockWeight { matrix: BlockMatrix { rows, format, n, k }, dense: None };
        if self.keeps_dense_copies() && load.usage != MatrixUse::Table {
            let dense = self.weights.alloc(n * k * 2).map_err(engine_error)?;
            self.dequantize_blocks(&weight.matrix, Piece { first: 0, len: n }, dense)?;
            weight.dense = Some(dense);
        } else {
            self.need_scratch(piece_bytes(n, k));
        }
        Ok(CudaWeight { stored: Stored::Blocks(weight), n, k })
    }

    fn dequantize_blocks(&self, matrix: &BlockMatrix, piece: Piece, out: DeviceBytes) -> Result<()> {
        let (rows, num_rows) = (BlockRows::From(piece.first), piece.len);
        let params = BlocksDequantize { out, out_dtype: DType::BF16, matrix: *matrix, rows, num_rows, factor: 1.0 };
        self.launch(|stream| blocks_dequantize(&params, stream))
    }

    /// out = rows of a table of blocks, by index.
    pub(super) fn gather_blocks(&self, out: &Tensor<CudaDevice>, table: &BlockMatrix, index: DeviceBytes, factor: f32) -> Result<()> {
        let (bytes, rows) = (out.operand().bytes, BlockRows::Index(index));
        let params = BlocksDequantize { out: bytes, out_dtype: out.dtype, matrix: *table, rows, num_rows: out.rows, factor };
        self.launch(|stream| blocks_dequantize(&params, stream))
    }

    /// Whether a product reads blocks as they are.
    fn reads_blocks(&self, p: &Product<'_>, weight: &BlockWeight) -> bool {
        let few = if weight.dense.is_some() { MAX_BLOCK_TOKENS_BESIDE_COPY } else { MAX_BLOCK_TOKENS };
        p.num_tokens <= few || self.deterministic
    }

    /// Whether the launches of a product with gate and up join them.
    pub(super) fn blocks_join_gates(&self, p: &Product<'_>, weight: &BlockWeight) -> Result<bool> {
        if self.reads_blocks(p, weight) { Ok(true) } else { self.dense_steps_join_gates(p, &weight.rows()) }
    }

    /// Whether the launches of a product add its bias.
    pub(super) fn blocks_add_bias(&self, p: &Product<'_>, weight: &BlockWeight) -> Result<bool> {
        if self.reads_blocks(p, weight) { Ok(true) } else { self.dense_steps_add_bias(p, &weight.rows()) }
    }

    /// A product with blocks.
    pub(super) fn run_blocks(&self, p: &Product<'_>, weight: &BlockWeight) -> Result<()> {
        if self.reads_blocks(p, weight) {
            let num_tokens = |first: usize| LAUNCH_TOKENS.min(p.num_tokens - first);
            return (0..p.num_tokens).step_by(LAUNCH_TOKENS).try_for_each(|first| self.block_product(p, weight, first, num_tokens(first)));
        }
        self.run_dense_steps(p, &weight.rows(), |piece, out| self.dequantize_blocks(&weight.matrix, piece, out))
    }

    /// Tokens `first .. first + num_tokens` of a product, with blocks as they are.
    fn block_product(&self, p: &Product<'_>, weight: &BlockWeight, first: usize, num_tokens: usize) -> Result<()> {
        let BlockMatrix { rows, n, k, .. } = weight.matrix;
        let (out, x) = p.rows_from(first);
        let shape = SkinnyShape { num_tokens, n, k };
        let params = SkinnyGemmParams {
            out,
            x,
            w: rows,
            bias: p.bias(),
            residual: None,
            shape,
            ld_out: p.ld_out,
            out_dtype: p.out.dtype,
            epilogue: p.epilogue,
            plan: blocks_plan(shape, self.gpu_class().num_sms, self.sum_order()),
            start: p.start,
            groups: None,
        };
        self.launch(|stream| blocks_gemm(&params, &weight.matrix, stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::mapped::MappedBytes;

    /// Rows are arranged by many threads, a piece of some rows at a time: each is what it is alone.
    #[test]
    fn rows_are_arranged_alike_in_any_piece() {
        for stored in WeightFormat::ALL.into_iter().filter(|stored| !stored.is_dense()) {
            let (values, bytes) = stored.block();
            // A task takes fewer rows than there are.
            let (n, num_blocks) = (70, TASK_BYTES / 30 / bytes);
            let (k, len) = (num_blocks * values, n * num_blocks * bytes);
            let format = block_format(&MatrixForm { n, k, stored: StoredForm::Rows(stored) }, MatrixUse::Table).expect("blocks");
            assert_eq!(format.block(), (values, bytes), "{stored:?}");
            let file: Vec<u8> = (0..len).map(|i| (i * 151 + i / 7 * 13) as u8).collect();
            let weight = HostWeight { name: "blocks".into(), format: stored, n, k, bytes: MappedBytes::from_slice(&file) };
            let row_bytes = format.row_bytes(k);
            let mut expected = vec![0xa5; n * row_bytes];
            expected.chunks_exact_mut(row_bytes).enumerate().for_each(|(row, out)| format.arrange_row(weight.rows(row, 1), out));
            for first in [0, 1, 33, n - 1] {
                let mut got = vec![0x5a; (n - first) * row_bytes];
                arrange_rows(&mut got, &weight, format, first);
                assert!(got == expected[first * row_bytes..], "{stored:?} from row {first}");
            }
        }
    }
}
