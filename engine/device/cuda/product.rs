//! Linear layers: neighbouring parts as one matrix; our own kernels for few tokens and for gate and up of many, cuBLASLt for the rest.
//!
//! `heuristics::product_plan` chooses; here the operands are cut to what it chose. With `deterministic` a token's sums depend on the
//! matrix alone, never on how many tokens there are.

use pagoda_kernels::cublaslt::Matmul;
use pagoda_kernels::heuristics::{GpuClass, ProductPlan, ProductShape, SkinnyShape, SumOrder, padded_tokens, product_plan, skinny_plan};
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, Start, skinny_gemm};
use pagoda_kernels::ops::grouped::{GroupedGemm, grouped_gemm};
use pagoda_kernels::ops::step::add_bias;
use pagoda_kernels::ops::wide::{WideGemm, wide_gemm};
use pagoda_kernels::ops::{self, DeviceBytes};

use super::bytes::join_bytes;
use super::{CudaDevice, CudaVector, CudaWeight, Stored, engine_error};
use crate::device::Linear;
use crate::error::{EngineError, Result};

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
    /// `[n, k]`.
    pub stored: Stored,
    /// Rows.
    pub n: usize,
}

impl Matrix {
    /// This matrix and the rows of `next` behind it, where they lie so.
    fn join(&self, next: &CudaWeight) -> Option<Matrix> {
        let stored = match (self.stored, next.stored) {
            (Stored::Dense(rows), Stored::Dense(next)) => Stored::Dense(rows.join(next)?),
            (Stored::Bytes(rows), Stored::Bytes(next)) => Stored::Bytes(join_bytes(&rows, self.n, &next)?),
            _ => return None,
        };
        Some(Matrix { stored, n: self.n + next.n })
    }
}

/// The parts as few matrices as possible. Parts loaded one after another lie one after another.
pub(super) fn joined<'a>(parts: impl IntoIterator<Item = &'a CudaWeight>) -> Vec<Matrix> {
    let mut matrices: Vec<Matrix> = Vec::with_capacity(1);
    for part in parts {
        match matrices.last_mut().and_then(|last| Some((last.join(part)?, last))) {
            Some((joined, last)) => *last = joined,
            None => matrices.push(Matrix { stored: part.stored, n: part.n }),
        }
    }
    matrices
}

/// One matrix times some tokens, into columns of `out`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// Its first column is the matrix's first row.
    pub out: Rows,
    pub x: Rows,
    pub num_tokens: usize,
    pub matrix: Matrix,
    pub k: usize,
    /// Elements between two rows of `out`.
    pub ld_out: usize,
    pub bias: Option<&'a CudaVector>,
    /// First row of the matrix in the layer, for the bias.
    pub first_row: usize,
    pub epilogue: Epilogue,
    /// In order where the kernel before makes the weights.
    pub start: Start,
}

impl Product<'_> {
    pub fn shape(&self, library: bool) -> ProductShape {
        const VECTOR: usize = 8;
        let gated = self.epilogue == Epilogue::SiluMul;
        let num_cols = if gated { self.matrix.n / 2 } else { self.matrix.n };
        let whole = self.out.dtype == ops::DType::BF16
            && num_cols.is_multiple_of(VECTOR)
            && self.ld_out.is_multiple_of(VECTOR)
            && self.out.bytes.address().is_multiple_of(16);
        ProductShape { num_tokens: self.num_tokens, n: self.matrix.n, k: self.k, gated, whole, library }
    }

    pub fn bias(&self) -> Option<DeviceBytes> {
        self.bias.map(|bias| bias.bytes.from(self.first_row * 4))
    }

    /// The bias as the library takes it: bf16, where that is exact.
    fn half_bias(&self) -> Option<DeviceBytes> {
        let bytes = self.bias?.half?.from(self.first_row * 2);
        (self.out.dtype == ops::DType::BF16 && bytes.address().is_multiple_of(16)).then_some(bytes)
    }

    /// Rows `first ..` of input and output.
    pub fn rows_from(&self, first: usize) -> (DeviceBytes, DeviceBytes) {
        (self.out.bytes.from(first * self.ld_out * self.out.dtype.size()), self.x.bytes.from(first * self.k * 2))
    }
}

impl CudaDevice {
    /// out[.. num_tokens] = x · wᵀ + bias.
    pub(super) fn product(&self, out: Rows, x: Rows, num_tokens: usize, linear: &Linear<CudaDevice>) -> Result<()> {
        if num_tokens == 0 {
            return Ok(());
        }
        let mut products = Vec::with_capacity(1);
        let mut first_row = 0;
        for matrix in joined(&linear.parts) {
            let out = Rows { bytes: out.bytes.from(first_row * out.dtype.size()), ..out };
            let (k, ld_out, bias, epilogue, start) = (linear.k, linear.n, linear.bias.as_ref(), Epilogue::Plain, Start::Early);
            products.push(Product { out, x, num_tokens, matrix, k, ld_out, bias, first_row, epilogue, start });
            first_row += matrix.n;
        }
        let all_add = products.iter().try_fold(true, |all, p| Ok::<_, EngineError>(all && self.adds_bias(p)?))?;
        let Some(bias) = linear.bias.as_ref().filter(|_| !all_add) else {
            return products.iter().try_for_each(|p| self.run_product(p));
        };
        products.into_iter().try_for_each(|p| self.run_product(&Product { bias: None, ..p }))?;
        let stream = self.gpu.stream().map_err(engine_error)?;
        add_bias(out.bytes, bias.bytes, num_tokens, linear.n, out.dtype, stream).map_err(engine_error)
    }

    /// out[.. num_tokens] = silu(gate) * up of the product with a layer that holds both; false, and nothing done, where that takes
    /// another launch anyway.
    pub(super) fn gated_product(&self, out: Rows, x: Rows, num_tokens: usize, linear: &Linear<CudaDevice>) -> Result<bool> {
        let [matrix] = joined(&linear.parts)[..] else { return Ok(false) };
        let (k, ld_out, bias, epilogue, start) = (linear.k, linear.n / 2, linear.bias.as_ref(), Epilogue::SiluMul, Start::Early);
        let product = Product { out, x, num_tokens, matrix, k, ld_out, bias, first_row: 0, epilogue, start };
        let fused = match matrix.stored {
            Stored::Bytes(_) => true,
            Stored::Dense(_) => self.joins_gates(&product),
            Stored::Tiles(weight) => self.tiles_join_gates(&product, &weight)?,
            Stored::Blocks(weight) => self.blocks_join_gates(&product, &weight)?,
        };
        if fused && num_tokens > 0 {
            self.run_product(&product)?;
        }
        Ok(fused)
    }

    pub(super) fn gpu_class(&self) -> GpuClass {
        let info = self.gpu.info();
        GpuClass { num_sms: info.num_sms, compute_capability: info.compute_capability }
    }

    pub(super) fn sum_order(&self) -> SumOrder {
        if self.deterministic { SumOrder::BatchInvariant } else { SumOrder::Fastest }
    }

    fn product_plan(&self, p: &Product<'_>) -> ProductPlan {
        product_plan(&p.shape(self.blas.is_some()), self.gpu_class(), self.sum_order())
    }

    /// Whether the launch of a product with dense gate and up joins them.
    pub(super) fn joins_gates(&self, p: &Product<'_>) -> bool {
        matches!(self.product_plan(p), ProductPlan::Skinny(_) | ProductPlan::Wide(_))
    }

    /// Whether the launch of the product adds its bias.
    pub(super) fn adds_bias(&self, p: &Product<'_>) -> Result<bool> {
        match p.matrix.stored {
            Stored::Dense(_) => {}
            Stored::Bytes(_) => return Ok(true),
            Stored::Tiles(weight) => return self.tiles_add_bias(p, &weight),
            Stored::Blocks(weight) => return self.blocks_add_bias(p, &weight),
        }
        Ok(match self.product_plan(p) {
            ProductPlan::Skinny(_) | ProductPlan::Wide(_) => true,
            ProductPlan::Library => p.half_bias().is_some(),
            ProductPlan::Portable => false,
        })
    }

    pub(super) fn run_product(&self, p: &Product<'_>) -> Result<()> {
        match p.matrix.stored {
            Stored::Dense(w) => self.run_dense(p, w),
            Stored::Bytes(w) => self.run_w8(p, &w),
            Stored::Tiles(weight) => self.run_tiles(p, &weight),
            Stored::Blocks(weight) => self.run_blocks(p, &weight),
        }
    }

    fn run_dense(&self, p: &Product<'_>, w: DeviceBytes) -> Result<()> {
        let stream = self.gpu.stream().map_err(engine_error)?;
        let Product { num_tokens, k, ld_out, epilogue, start, .. } = *p;
        let n = p.matrix.n;
        match self.product_plan(p) {
            ProductPlan::Skinny(rows) => {
                (0..num_tokens).step_by(rows).try_for_each(|first| self.skinny(p, w, first, rows.min(num_tokens - first)))
            }
            ProductPlan::Wide(plan) => {
                let (out, x, bias) = (p.out.bytes, p.x.bytes, p.bias());
                let params = WideGemm { out, x, w, bias, groups: None, num_rows: num_tokens, n, k, ld_out, epilogue, plan, start };
                wide_gemm(&params, stream).map_err(engine_error)
            }
            ProductPlan::Library => {
                let blas = self.blas.as_ref().expect("only a library that is there is chosen");
                // The rows between `num_tokens` and the padded count are room that nobody reads.
                let num_tokens = padded_tokens(num_tokens, p.out.max_rows.min(p.x.max_rows));
                let (out, x, bias, out_dtype) = (p.out.bytes, p.x.bytes, p.half_bias(), p.out.dtype);
                blas.matmul(&Matmul { out, x, w, bias, num_tokens, n, k, ld_out, out_dtype }).map_err(engine_error)
            }
            ProductPlan::Portable => {
                let (out, x, out_dtype) = (p.out.bytes, p.x.bytes, p.out.dtype);
                let params = GroupedGemm { out, x, w, groups: None, rows: None, num_rows: num_tokens, n, k, ld_out, out_dtype };
                grouped_gemm(&params, stream).map_err(engine_error)
            }
        }
    }

    /// Tokens `first .. first + num_tokens` of a product.
    fn skinny(&self, p: &Product<'_>, w: DeviceBytes, first: usize, num_tokens: usize) -> Result<()> {
        let shape = SkinnyShape { num_tokens, n: p.matrix.n, k: p.k };
        let plan = skinny_plan(shape, self.gpu_class(), self.sum_order())
            .ok_or_else(|| EngineError::Unsupported(format!("product {shape:?} on CUDA, expected k in whole vectors of 8")))?;
        let (out, x) = p.rows_from(first);
        let params = SkinnyGemmParams {
            out,
            x,
            w,
            bias: p.bias(),
            residual: None,
            shape,
            ld_out: p.ld_out,
            out_dtype: p.out.dtype,
            epilogue: p.epilogue,
            plan,
            start: p.start,
            groups: None,
        };
        self.gpu.stream().and_then(|stream| skinny_gemm(&params, stream)).map_err(engine_error)
    }
}
