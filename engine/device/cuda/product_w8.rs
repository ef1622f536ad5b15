//! Products with weights of 8 bits. Few tokens: activations stay bf16. Many: they are rounded to e4m3 with a scale a token (or a token's 128
//! columns, where weights have scales of blocks) and multiplied by the tensor cores' own e4m3 product. With `deterministic` never that.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::heuristics::{W8Plan, skinny_w8_plan, w8_plan, wide_block_tiles};
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::gemm::{Epilogue, SkinnyGemmParams, Start};
use pagoda_kernels::ops::w8::{ByteCode, ByteMatrix, Quantize, Rounding, SCALE_BLOCK, ScaleGrid, quantize, skinny_w8, wide_w8};
use pagoda_kernels::ops::wide::WideGemm;

use super::product::Product;
use super::{CudaDevice, engine_error};
use crate::error::Result;

/// Tokens of a launch of the skinny kernel.
const SKINNY_TOKENS: usize = 64;

/// Memory for activations in 8 bits. Grown by the first step of many tokens; what recorded steps may name is kept.
#[derive(Default)]
pub(super) struct RoundedInputs {
    taken: Vec<DeviceMemory>,
    /// The longest row of the matrices that were loaded: the first allocation suits all.
    max_cols: usize,
}

/// Codes and scales of some activations.
#[derive(Clone, Copy)]
struct Rounded {
    codes: DeviceBytes,
    scales: DeviceBytes,
}

impl RoundedInputs {
    /// Bytes for `rows` rows of `cols` columns.
    pub fn bytes(rows: usize, cols: usize) -> usize {
        (rows * cols).next_multiple_of(256) + rows * cols.div_ceil(SCALE_BLOCK) * 4
    }

    /// There is a matrix of rows so long.
    pub fn expect(&mut self, cols: usize) {
        self.max_cols = self.max_cols.max(cols);
    }

    fn room(&mut self, device: &CudaDevice, rows: usize, cols: usize) -> Result<Rounded> {
        if self.taken.last().is_none_or(|memory| memory.bytes().len() < RoundedInputs::bytes(rows, cols)) {
            self.taken.push(device.zeroed(RoundedInputs::bytes(rows, cols.max(self.max_cols)))?);
        }
        let all = self.taken.last().expect("taken above").bytes();
        Ok(Rounded { codes: all, scales: all.from((rows * cols).next_multiple_of(256)) })
    }
}

impl CudaDevice {
    /// A product with a matrix of bytes.
    pub(super) fn run_w8(&self, p: &Product<'_>, w: &ByteMatrix) -> Result<()> {
        let num_cols = if p.epilogue == Epilogue::SiluMul { p.matrix.n / 2 } else { p.matrix.n };
        // A tile's rows of w lie in one row of blocks.
        let whole_blocks = w.grid == ScaleGrid::Rows || num_cols.is_multiple_of(SCALE_BLOCK);
        let wide = w.code == ByteCode::E4m3 && whole_blocks;
        match w8_plan(&p.shape(false), wide, self.gpu_class(), self.sum_order()) {
            W8Plan::Skinny => (0..p.num_tokens)
                .step_by(SKINNY_TOKENS)
                .try_for_each(|first| self.skinny_bytes(p, w, first, SKINNY_TOKENS.min(p.num_tokens - first))),
            W8Plan::Wide(plan) => {
                let plan = if w.grid == ScaleGrid::Blocks { wide_block_tiles(plan) } else { plan };
                let x = self.round_inputs(p, w.grid)?;
                let params = WideGemm {
                    out: p.out.bytes,
                    x: x.codes,
                    w: w.codes,
                    bias: p.bias(),
                    groups: None,
                    num_rows: p.num_tokens,
                    n: p.matrix.n,
                    k: p.k,
                    ld_out: p.ld_out,
                    epilogue: p.epilogue,
                    plan,
                    start: Start::Early,
                };
                self.launch(|stream| wide_w8(&params, x.scales, w, stream))
            }
        }
    }

    fn round_inputs(&self, p: &Product<'_>, grid: ScaleGrid) -> Result<Rounded> {
        let rounded = self.rounded_inputs.lock().room(self, p.x.max_rows, p.k)?;
        let Rounded { codes, scales } = rounded;
        let (num_rows, cols, rounding) = (p.num_tokens, p.k, Rounding::Activations);
        let params = Quantize { codes, scales, x: p.x.bytes, dtype: p.x.dtype, num_rows, cols, grid, rounding };
        self.launch(|stream| quantize(&params, stream))?;
        Ok(rounded)
    }

    /// Tokens `first .. first + num_tokens` of a product.
    fn skinny_bytes(&self, p: &Product<'_>, w: &ByteMatrix, first: usize, num_tokens: usize) -> Result<()> {
        let (n, k) = (p.matrix.n, p.k);
        let (out, x) = p.rows_from(first);
        let params = SkinnyGemmParams {
            out,
            x,
            w: w.codes,
            bias: p.bias(),
            residual: None,
            shape: pagoda_kernels::heuristics::SkinnyShape { num_tokens, n, k },
            ld_out: p.ld_out,
            out_dtype: p.out.dtype,
            epilogue: p.epilogue,
            plan: skinny_w8_plan(num_tokens, n, k, self.gpu_class().num_sms),
            start: Start::Early,
            groups: None,
        };
        self.gpu.stream().and_then(|stream| skinny_w8(&params, w, stream)).map_err(engine_error)
    }
}
