//! Weights of 8 bits: which matrices stay so on this GPU, and their way there, as a file stores them or quantised by the GPU itself.

use pagoda_kernels::heuristics::has_w8_kernels;
use pagoda_kernels::ops::w8::{
    ByteCode, ByteMatrix, CHUNK, DequantizeRows, Quantize, Rounding, SCALE_BLOCK, ScaleGrid, dequantize_rows, permute, quantize,
};
use pagoda_kernels::ops::{self, DeviceBytes};

use super::memory::read_parallel;
use super::{CudaDevice, CudaWeight, Stored, engine_error};
use crate::device::{CodeForm, CodedForm, HostMatrix, HostWeight, MatrixForm, MatrixLoad, MatrixUse, StoredForm, Tensor, ZeroForm};
use crate::error::Result;
use crate::weights::format::WeightFormat;
use crate::weights::quant::{CodedMatrix, Scales};

/// Longest row that the quantiser takes.
const MAX_COLS: usize = 65_536;

/// What of a matrix's form the kernels for bytes know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteForm {
    pub code: ByteCode,
    pub grid: ScaleGrid,
}

/// `rows` and the rows of `next` behind them, where both codes and scales lie so. `n`: rows of the first.
pub(super) fn join_bytes(rows: &ByteMatrix, n: usize, next: &ByteMatrix) -> Option<ByteMatrix> {
    let whole_blocks = rows.grid == ScaleGrid::Rows || n.is_multiple_of(SCALE_BLOCK);
    if (rows.grid, rows.code) != (next.grid, next.code) || !whole_blocks {
        return None;
    }
    Some(ByteMatrix { codes: rows.codes.join(next.codes)?, scales: rows.scales.join(next.scales)?, ..*rows })
}

/// The form that the kernels take, if they take it.
fn byte_form(form: &MatrixForm) -> Option<ByteForm> {
    let StoredForm::Coded(CodedForm { code, rows, cols, zeros, is_ordered: false }) = form.stored else { return None };
    let MatrixForm { n, k, .. } = *form;
    let whole_rows = cols == k && (rows == 1 || rows == n);
    let code = match (code, zeros) {
        (CodeForm::E4M3, ZeroForm::None) => ByteCode::E4m3,
        (CodeForm::U8, ZeroForm::Same(128.0)) => ByteCode::Int8,
        _ => return None,
    };
    let grid = match code {
        _ if whole_rows => ScaleGrid::Rows,
        ByteCode::E4m3 if (rows, cols) == (SCALE_BLOCK, SCALE_BLOCK) => ScaleGrid::Blocks,
        _ => return None,
    };
    (k.is_multiple_of(CHUNK) && k <= MAX_COLS).then_some(ByteForm { code, grid })
}

impl CudaDevice {
    /// How a matrix for this use is kept in 8 bits; None: as bf16.
    pub(super) fn byte_form(&self, form: &MatrixForm, usage: MatrixUse) -> Option<ByteForm> {
        let has_kernels = has_w8_kernels(self.gpu_class()) && (usage.is_projection() || usage == MatrixUse::Table);
        byte_form(form).filter(|_| has_kernels)
    }

    /// See `Device::load_matrix`.
    pub(super) fn upload_matrix(&self, matrix: HostMatrix, load: MatrixLoad) -> Result<CudaWeight> {
        let format = load.quantize.filter(|format| format.takes(&matrix));
        let form = format.map_or_else(|| matrix.form(), |format| MatrixForm::loaded_in(format, matrix.n(), matrix.k()));
        let Some(bytes) = self.byte_form(&form, load.usage) else {
            return self.upload_weight(&matrix.converted(load)?.into_rows());
        };
        if bytes.code == ByteCode::E4m3 && load.usage.is_projection() {
            self.rounded_inputs.lock().expect(form.k);
        }
        let stored = match matrix {
            // The only forms in bytes that a format makes: e4m3 and integers with a scale a row.
            HostMatrix::Rows(weight) if format.is_some() => self.quantize_rows(&weight, bytes)?,
            other => match other.converted(load)? {
                HostMatrix::Coded(matrix) => self.upload_codes(&matrix, bytes)?,
                HostMatrix::Rows(weight) => return self.upload_weight(&weight),
            },
        };
        Ok(CudaWeight { stored: Stored::Bytes(stored), n: form.n, k: form.k })
    }

    fn byte_matrix(&self, n: usize, k: usize, form: ByteForm) -> Result<ByteMatrix> {
        let codes = self.weights.alloc(n * k).map_err(engine_error)?;
        let scales = self.scales.alloc(form.grid.count(n, k) * 4).map_err(engine_error)?;
        Ok(ByteMatrix { codes, scales, grid: form.grid, code: form.code })
    }

    /// Codes and scales as a checkpoint has them; the GPU puts codes into the order of its kernels.
    fn upload_codes(&self, matrix: &CodedMatrix, form: ByteForm) -> Result<ByteMatrix> {
        let (n, k) = (matrix.n, matrix.k);
        let on_gpu = self.byte_matrix(n, k, form)?;
        let scales = match form.grid {
            ScaleGrid::Rows => (0..n).map(|row| scale_of(&matrix.scales, row)).collect(),
            ScaleGrid::Blocks => block_scales(&matrix.scales, n),
        };
        let mut staging = self.staging.lock();
        staging.upload_with(on_gpu.codes, n * k, k, |start, piece| read_parallel(piece, &matrix.codes, start))?;
        staging.upload(on_gpu.scales, bytemuck::cast_slice(&scales))?;
        self.launch(|stream| permute(on_gpu.codes, stream))?;
        Ok(on_gpu)
    }

    /// Dense rows, quantised by the GPU piece by piece. Until the first step nobody else needs the memory for partial results.
    fn quantize_rows(&self, weight: &HostWeight, form: ByteForm) -> Result<ByteMatrix> {
        let (n, k, row_bytes) = (weight.n, weight.k, weight.row_bytes());
        let on_gpu = self.byte_matrix(n, k, form)?;
        let room = self.partials.bytes();
        let rows_at_once = (room.len() / row_bytes).max(1);
        let dtype = match weight.format {
            WeightFormat::F32 => ops::DType::F32,
            WeightFormat::F16 => ops::DType::F16,
            _ => ops::DType::BF16,
        };
        let rounding = match form.code {
            ByteCode::E4m3 => Rounding::Weights,
            ByteCode::Int8 => Rounding::Integers,
        };
        let mut staging = self.staging.lock();
        for first in (0..n).step_by(rows_at_once) {
            let num_rows = rows_at_once.min(n - first);
            let x = room.first(num_rows * row_bytes);
            staging.upload_with(x, x.len(), row_bytes, |start, piece| read_parallel(piece, &weight.bytes, first * row_bytes + start))?;
            let (codes, scales) = (on_gpu.codes.from(first * k), on_gpu.scales.from(first * 4));
            let grid = ScaleGrid::Rows;
            let params = Quantize { codes, scales, x, dtype, num_rows, cols: k, grid, rounding };
            self.launch(|stream| quantize(&params, stream))?;
        }
        Ok(on_gpu)
    }

    /// out = rows of a table of bytes, by index.
    pub(super) fn gather_bytes(
        &self,
        out: &Tensor<CudaDevice>,
        table: &ByteMatrix,
        num_code_rows: usize,
        index: DeviceBytes,
        factor: f32,
    ) -> Result<()> {
        let params = DequantizeRows {
            out: out.operand().bytes,
            out_dtype: out.dtype,
            matrix: *table,
            index: Some(index),
            num_rows: out.rows,
            num_code_rows,
            cols: out.cols,
            factor,
        };
        self.launch(|stream| dequantize_rows(&params, stream))
    }
}

fn scale_of(scales: &Scales, row: usize) -> f32 {
    let mut scale = [0.0];
    scales.read_row(row, &mut scale);
    scale[0]
}

/// `[n.div_ceil(128)][per_row]`.
fn block_scales(scales: &Scales, n: usize) -> Vec<f32> {
    let mut all = vec![0.0; scales.count(n)];
    for (block, out) in all.chunks_exact_mut(scales.per_row).enumerate() {
        scales.read_row(block * scales.rows, out);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::quant::LoadFormat;

    #[test]
    fn forms_that_stay_in_bytes() {
        let coded = |n, k, coded| MatrixForm { n, k, stored: StoredForm::Coded(coded) };
        let e4m3 = |n, k, rows, cols| coded(n, k, CodedForm::plain(CodeForm::E4M3, rows, cols));
        let int8 = |zero, cols| coded(64, 256, CodedForm { zeros: ZeroForm::Same(zero), ..CodedForm::plain(CodeForm::U8, 1, cols) });
        let rows = |code| Some(ByteForm { code, grid: ScaleGrid::Rows });
        for (form, expected) in [
            (e4m3(64, 256, 1, 256), rows(ByteCode::E4m3)),
            (e4m3(64, 256, 64, 256), rows(ByteCode::E4m3)),
            (e4m3(128, 128, 128, 128), rows(ByteCode::E4m3)),
            (e4m3(200, 272, 128, 128), Some(ByteForm { code: ByteCode::E4m3, grid: ScaleGrid::Blocks })),
            (e4m3(64, 256, 64, 64), None),
            (e4m3(64, 40, 1, 40), None),
            (int8(128.0, 256), rows(ByteCode::Int8)),
            (int8(127.0, 256), None),
            (int8(128.0, 128), None),
            (MatrixForm::loaded_in(LoadFormat::Fp8, 64, 256), rows(ByteCode::E4m3)),
            (MatrixForm::loaded_in(LoadFormat::Nf4, 64, 256), None),
            (MatrixForm { n: 64, k: 256, stored: StoredForm::Rows(WeightFormat::BF16) }, None),
        ] {
            assert_eq!(byte_form(&form), expected, "{form:?}");
        }
    }
}
