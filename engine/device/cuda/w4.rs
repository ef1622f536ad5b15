//! 4-bit matrices in tiles. Products of few tokens read them as they are; for those of more they become bf16 (`pieces.rs`), or activations
//! NVFP4 (`fp4.rs`). With `deterministic` every token's product is that of few.

use std::ops::Range;

use pagoda_kernels::heuristics::{MAX_W4_TOKENS, W4Shape, w4_plan};
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::w4::{W4Dequantize, W4Layout, W4Matrix, gather_columns, w4_dequantize};
use pagoda_kernels::ops::w4_gemm::{W4Gemm, W4Scratch, w4_gemm};

use super::CudaDevice;
use super::pieces::{PackedRows, Piece, piece_bytes};
use super::product::Product;
use crate::error::{EngineError, Result};

/// Tokens of a product that reads tiles where there is no dense copy: two passes over 64 of them take less than making the weights dense and
/// reading them again (37888 x 3584 on an H200: 58 us a pass, 87 to make it dense, at least 63 to read that).
pub const MAX_TILED_TOKENS: usize = 2 * MAX_W4_TOKENS;

/// A matrix in tiles.
#[derive(Clone, Copy)]
pub(super) struct W4Weight {
    /// Tiles, book and scale factor.
    pub matrix: W4Matrix,
    /// `[k]` i32: column c of the tiles is column `order[c]` of the matrix.
    pub order: Option<DeviceBytes>,
    /// `[n, k]` bf16, columns in the matrix's own order.
    pub dense: Option<DeviceBytes>,
}

impl W4Weight {
    fn rows(&self) -> PackedRows {
        let W4Layout { n, k, interleaved, .. } = self.matrix.layout;
        PackedRows { n, k, interleaved, dense: self.dense }
    }
}

/// Bytes of scratch that products with such a matrix take: dense rows, or the activations of few tokens in the matrix's order.
pub(super) fn scratch_bytes(layout: &W4Layout, ordered: bool, dense: bool) -> usize {
    let rows = if dense { 0 } else { piece_bytes(layout.n, layout.k) };
    rows.max(if ordered { MAX_W4_TOKENS * layout.k * 2 } else { 0 })
}

impl CudaDevice {
    /// Whether a product reads tiles, at most 64 tokens at a time.
    fn reads_tiles(&self, p: &Product<'_>, weight: &W4Weight) -> bool {
        let few = p.num_tokens <= if weight.dense.is_some() { MAX_W4_TOKENS } else { MAX_TILED_TOKENS };
        few || self.deterministic
    }

    /// Whether the launches of a product with gate and up join them.
    pub(super) fn tiles_join_gates(&self, p: &Product<'_>, weight: &W4Weight) -> Result<bool> {
        if self.reads_tiles(p, weight) || self.takes_fp4(weight) {
            return Ok(weight.matrix.layout.interleaved);
        }
        self.dense_steps_join_gates(p, &weight.rows())
    }

    /// Whether the launches of a product add its bias.
    pub(super) fn tiles_add_bias(&self, p: &Product<'_>, weight: &W4Weight) -> Result<bool> {
        if self.reads_tiles(p, weight) || self.takes_fp4(weight) {
            return Ok(true);
        }
        self.dense_steps_add_bias(p, &weight.rows())
    }

    /// A product with tiles.
    pub(super) fn run_tiles(&self, p: &Product<'_>, weight: &W4Weight) -> Result<()> {
        if self.reads_tiles(p, weight) {
            let last = |first: usize| p.num_tokens.min(first + MAX_W4_TOKENS);
            return (0..p.num_tokens).step_by(MAX_W4_TOKENS).try_for_each(|first| self.tile_product(p, weight, first..last(first)));
        }
        if self.takes_fp4(weight) {
            return self.run_fp4(p, weight);
        }
        self.run_dense_steps(p, &weight.rows(), |piece, out| self.dequantize(weight, piece, out))
    }

    /// Some tokens of a product, with tiles as they are.
    fn tile_product(&self, p: &Product<'_>, weight: &W4Weight, tokens: Range<usize>) -> Result<()> {
        let W4Layout { n, k, .. } = weight.matrix.layout;
        let num_tokens = tokens.len();
        let (tile_bytes, fits_columns) = (weight.matrix.layout.tile_bytes(), weight.matrix.fits_columns());
        let shape = W4Shape { num_tokens, n, k, tile_bytes, fits_columns };
        let plan = w4_plan(shape, self.gpu_class(), self.sum_order())
            .ok_or_else(|| EngineError::Unsupported(format!("product {shape:?} on CUDA")))?;
        let (out, mut x) = p.rows_from(tokens.start);
        if let Some(order) = weight.order {
            let sorted = self.dense_scratch(num_tokens * k * 2)?;
            self.launch(|stream| gather_columns(sorted, x, order, num_tokens, k, stream))?;
            x = sorted;
        }
        let params = W4Gemm {
            out,
            x,
            w: weight.matrix,
            bias: p.bias(),
            residual: None,
            scratch: W4Scratch { partials: self.partials.bytes(), counters: self.counters.bytes() },
            num_tokens,
            ld_out: p.ld_out,
            out_dtype: p.out.dtype,
            epilogue: p.epilogue,
            plan,
            start: p.start,
        };
        self.launch(|stream| w4_gemm(&params, stream))
    }

    fn dequantize(&self, weight: &W4Weight, piece: Piece, out: DeviceBytes) -> Result<()> {
        let params = W4Dequantize { matrix: &weight.matrix, out, order: weight.order, first_row: piece.first, num_rows: piece.len };
        self.launch(|stream| w4_dequantize(&params, stream))
    }

    /// `[n, k]` bf16 = all rows of the matrix.
    pub(super) fn dequantize_all(&self, weight: &W4Weight, out: DeviceBytes) -> Result<()> {
        self.dequantize(weight, Piece { first: 0, len: weight.matrix.layout.n }, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_holds_a_piece_or_the_tokens_in_order() {
        for (n, k) in [(1, 64), (37888, 3584), (152_064, 3584)] {
            let layout = W4Layout { n, k, group: 64, zeros: false, interleaved: false };
            assert_eq!(scratch_bytes(&layout, false, false), piece_bytes(n, k));
            assert_eq!(scratch_bytes(&layout, true, true), MAX_W4_TOKENS * k * 2);
        }
    }
}
