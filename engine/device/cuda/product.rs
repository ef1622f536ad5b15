//! Linear layers: neighbouring parts as one matrix; our own kernel for few tokens, cuBLASLt for many.

use pagoda_kernels::cublaslt::Matmul;
use pagoda_kernels::heuristics::{GpuClass, SkinnyShape, SumOrder, padded_tokens, skinny_plan};
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, Start, skinny_gemm};
use pagoda_kernels::ops::grouped::{GroupedGemm, grouped_gemm};
use pagoda_kernels::ops::step::add_bias;
use pagoda_kernels::ops::{self, DeviceBytes};

use super::{CudaDevice, CudaWeight, engine_error};
use crate::device::Linear;
use crate::error::{EngineError, Result};

/// Up to here our skinny kernel reads the weights faster than the library does.
const MAX_SKINNY_TOKENS: usize = 16;

/// Rows of a product: where they are and how many there is room for.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Row-major without gaps.
    pub bytes: DeviceBytes,
    /// Rows that `bytes` has room for.
    pub max_rows: usize,
    /// Type of the elements.
    pub dtype: ops::DType,
}

/// A matrix that lies in one piece: some neighbouring parts of a layer.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    /// `[n, k]` bf16.
    pub bytes: DeviceBytes,
    /// Rows.
    pub n: usize,
}

/// The parts as few matrices as possible. Parts loaded one after another lie one after another.
pub(super) fn joined<'a>(parts: impl IntoIterator<Item = &'a CudaWeight>) -> Vec<Matrix> {
    let mut matrices: Vec<Matrix> = Vec::with_capacity(1);
    for part in parts {
        match matrices.last_mut().and_then(|last| Some((last.bytes.join(part.bytes)?, last))) {
            Some((bytes, last)) => *last = Matrix { bytes, n: last.n + part.n },
            None => matrices.push(Matrix { bytes: part.bytes, n: part.n }),
        }
    }
    matrices
}

impl CudaDevice {
    /// out[.. num_tokens] = x · wᵀ + bias.
    pub(super) fn product(&self, out: Rows, x: Rows, num_tokens: usize, linear: &Linear<CudaDevice>) -> Result<()> {
        let bias = linear.bias.as_ref().map(|bias| bias.bytes);
        let mut column = 0;
        for matrix in joined(&linear.parts) {
            let out = Rows { bytes: out.bytes.from(column * out.dtype.size()), ..out };
            if num_tokens <= MAX_SKINNY_TOKENS {
                let bias = bias.map(|bias| bias.from(column * 4));
                self.product_of_few(out, x, num_tokens, matrix, linear, bias)?;
            } else {
                self.product_of_many(out, x, num_tokens, matrix, linear)?;
            }
            column += matrix.n;
        }
        match bias {
            Some(bias) if num_tokens > MAX_SKINNY_TOKENS => {
                let stream = self.gpu.stream().map_err(engine_error)?;
                add_bias(out.bytes, bias, num_tokens, linear.n, out.dtype, stream).map_err(engine_error)
            }
            _ => Ok(()),
        }
    }

    fn product_of_few(
        &self,
        out: Rows,
        x: Rows,
        num_tokens: usize,
        matrix: Matrix,
        linear: &Linear<CudaDevice>,
        bias: Option<DeviceBytes>,
    ) -> Result<()> {
        if num_tokens == 0 {
            return Ok(());
        }
        let info = self.gpu.info();
        let gpu = GpuClass { num_sms: info.num_sms, compute_capability: info.compute_capability };
        let shape = SkinnyShape { num_tokens, n: matrix.n, k: linear.k };
        let plan = skinny_plan(shape, gpu, SumOrder::Fastest)
            .ok_or_else(|| EngineError::Unsupported(format!("product {shape:?} on CUDA, expected k in whole vectors of 8")))?;
        let params = SkinnyGemmParams {
            out: out.bytes,
            x: x.bytes,
            w: matrix.bytes,
            bias,
            residual: None,
            shape,
            ld_out: linear.n,
            out_dtype: out.dtype,
            epilogue: Epilogue::Plain,
            plan,
            start: Start::InOrder,
        };
        self.gpu.stream().and_then(|stream| skinny_gemm(&params, stream)).map_err(engine_error)
    }

    fn product_of_many(&self, out: Rows, x: Rows, num_tokens: usize, matrix: Matrix, linear: &Linear<CudaDevice>) -> Result<()> {
        let (n, k, ld_out) = (matrix.n, linear.k, linear.n);
        let Some(blas) = &self.blas else {
            let stream = self.gpu.stream().map_err(engine_error)?;
            let (x, w, out_dtype) = (x.bytes, matrix.bytes, out.dtype);
            let params = GroupedGemm { out: out.bytes, x, w, groups: None, rows: None, num_rows: num_tokens, n, k, ld_out, out_dtype };
            return grouped_gemm(&params, stream).map_err(engine_error);
        };
        // The rows between `num_tokens` and the padded count are room that nobody reads.
        let num_tokens = padded_tokens(num_tokens, out.max_rows.min(x.max_rows));
        let params = Matmul { out: out.bytes, x: x.bytes, w: matrix.bytes, num_tokens, n, k, ld_out, out_dtype: out.dtype };
        blas.matmul(&params).map_err(engine_error)
    }
}
