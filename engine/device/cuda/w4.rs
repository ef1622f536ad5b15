//! 4-bit matrices in tiles. Products of few tokens read them as they are; for those of more they become bf16 in the scratch, some rows at a
//! time, unless they were copied as bf16 when they were loaded. With `deterministic` every token's product is that of few.

use std::ops::Range;

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::heuristics::{MAX_W4_TOKENS, W4Shape, w4_plan};
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::gemm::{Epilogue, Start};
use pagoda_kernels::ops::w4::{TILE_ROWS, W4Dequantize, W4Layout, W4Matrix, gather_columns, w4_dequantize};
use pagoda_kernels::ops::w4_gemm::{W4Gemm, W4Scratch, w4_gemm};

use super::product::{Matrix, Product, Rows};
use super::{CudaDevice, Stored, engine_error};
use crate::error::{EngineError, Result};

/// Tokens of a product that reads tiles where there is no dense copy: two passes over 64 of them take less than making the weights dense and
/// reading them again (37888 x 3584 on an H200: 58 us a pass, 87 to make it dense, at least 63 to read that).
pub const MAX_TILED_TOKENS: usize = 2 * MAX_W4_TOKENS;
/// Bytes of the largest matrix that is dense in the scratch as a whole; of larger ones some rows at a time.
const SCRATCH_BYTES: usize = 320 << 20;
/// Rows of such a piece are a multiple of this, so that tiles of products are full.
const PIECE_ROWS: usize = 256;

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

/// Rows of a matrix that are dense at once: whole tiles, or all.
#[derive(Clone, Copy)]
struct Piece {
    first: usize,
    len: usize,
}

fn piece_rows(layout: &W4Layout) -> usize {
    let fit = SCRATCH_BYTES / (layout.k * 2);
    if fit >= layout.n { layout.n } else { (fit / PIECE_ROWS * PIECE_ROWS).max(TILE_ROWS) }
}

/// Bytes of scratch that products with such a matrix take: dense rows, or the activations of few tokens in the matrix's order.
pub(super) fn scratch_bytes(layout: &W4Layout, ordered: bool, dense: bool) -> usize {
    let rows = if dense { 0 } else { piece_rows(layout) };
    rows.max(if ordered { MAX_W4_TOKENS } else { 0 }) * layout.k * 2
}

fn pieces(layout: &W4Layout) -> impl Iterator<Item = Piece> + use<> {
    let (n, rows) = (layout.n, piece_rows(layout));
    (0..n).step_by(rows).map(move |first| Piece { first, len: rows.min(n - first) })
}

/// The products with dense rows `piece` of a matrix that together give `p`'s columns of these rows.
fn dense_products<'a>(p: &Product<'a>, layout: &W4Layout, piece: Piece, rows: DeviceBytes, start: Start) -> Vec<Product<'a>> {
    let row_bytes = layout.k * 2;
    let product = |col: usize, first: usize, len: usize| {
        let matrix = Matrix { stored: Stored::Dense(rows.from(first * row_bytes).first(len * row_bytes)), n: len };
        let out = Rows { bytes: p.out.bytes.from(col * p.out.dtype.size()), ..p.out };
        Product { out, matrix, first_row: p.first_row + col, start, ..*p }
    };
    let (first, half) = (piece.first / 2, piece.len / 2);
    match p.epilogue {
        _ if piece.len == layout.n || !layout.interleaved => vec![product(piece.first, 0, piece.len)],
        Epilogue::SiluMul => vec![product(first, 0, piece.len)],
        Epilogue::Plain => vec![product(first, 0, half), product(layout.n / 2 + first, half, half)],
    }
}

impl CudaDevice {
    /// The pieces that a product with tiles is made of, each with the dense products that follow it; no piece: the copy is there.
    fn dense_steps<'a>(&self, p: &Product<'a>, weight: &W4Weight) -> Result<Vec<(Option<Piece>, Vec<Product<'a>>)>> {
        let layout = &weight.matrix.layout;
        if let Some(dense) = weight.dense {
            return Ok(vec![(None, dense_products(p, layout, Piece { first: 0, len: layout.n }, dense, p.start))]);
        }
        let scratch = self.dense_scratch(piece_rows(layout) * layout.k * 2)?;
        // Kernels read weights before they wait for their predecessor, which makes these.
        let step = |piece| (Some(piece), dense_products(p, layout, piece, scratch, Start::InOrder));
        Ok(pieces(layout).map(step).collect())
    }

    /// Whether a product reads tiles, at most 64 tokens at a time.
    fn reads_tiles(&self, p: &Product<'_>, weight: &W4Weight) -> bool {
        let few = p.num_tokens <= if weight.dense.is_some() { MAX_W4_TOKENS } else { MAX_TILED_TOKENS };
        few || self.deterministic
    }

    /// Whether the launches of a product with gate and up join them.
    pub(super) fn tiles_join_gates(&self, p: &Product<'_>, weight: &W4Weight) -> Result<bool> {
        if self.reads_tiles(p, weight) {
            return Ok(weight.matrix.layout.interleaved);
        }
        let steps = self.dense_steps(p, weight)?;
        // A piece of several holds gates and their ups; of a bias both lie apart.
        let alone = steps.len() == 1 || (weight.matrix.layout.interleaved && p.bias.is_none());
        Ok(alone && steps.iter().flat_map(|(_, products)| products).all(|p| self.joins_gates(p)))
    }

    /// Whether the launches of a product add its bias.
    pub(super) fn tiles_add_bias(&self, p: &Product<'_>, weight: &W4Weight) -> Result<bool> {
        if self.reads_tiles(p, weight) {
            return Ok(true);
        }
        self.dense_steps(p, weight)?.iter().flat_map(|(_, products)| products).try_fold(true, |all, p| Ok(all && self.adds_bias(p)?))
    }

    /// A product with tiles.
    pub(super) fn run_tiles(&self, p: &Product<'_>, weight: &W4Weight) -> Result<()> {
        if self.reads_tiles(p, weight) {
            let last = |first: usize| p.num_tokens.min(first + MAX_W4_TOKENS);
            return (0..p.num_tokens).step_by(MAX_W4_TOKENS).try_for_each(|first| self.tile_product(p, weight, first..last(first)));
        }
        for (piece, products) in self.dense_steps(p, weight)? {
            if let Some(piece) = piece {
                self.dequantize(weight, piece, self.dense_scratch(0)?)?;
            }
            products.iter().try_for_each(|p| self.run_product(p))?;
        }
        Ok(())
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

    /// Room for dense rows, at least `len` bytes. Its address stays once all weights are loaded: recordings hold it.
    pub(super) fn dense_scratch(&self, len: usize) -> Result<DeviceBytes> {
        let mut scratch = self.dense_scratch.lock();
        match scratch.as_ref().map(DeviceMemory::bytes).filter(|bytes| bytes.len() >= len) {
            Some(bytes) => Ok(bytes),
            None => {
                *scratch = None;
                Ok(scratch.insert(DeviceMemory::zeroed(&self.gpu, len).map_err(engine_error)?).bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_tiles_and_cover_all_rows() {
        for (n, k) in [(1, 64), (37888, 3584), (152_064, 3584), (57344, 8192), (100, 1 << 24)] {
            let layout = W4Layout { n, k, group: 64, zeros: false, interleaved: false };
            let all: Vec<Piece> = pieces(&layout).collect();
            let mut next = 0;
            for piece in &all {
                assert!(piece.first == next && piece.first.is_multiple_of(TILE_ROWS) && piece.len > 0, "[{n}, {k}]");
                next += piece.len;
            }
            assert!(next == n && (all.len() == 1 || all[0].len * k * 2 <= SCRATCH_BYTES || all[0].len == TILE_ROWS), "[{n}, {k}]");
            assert_eq!(scratch_bytes(&layout, false, false), all[0].len * k * 2);
            assert_eq!(scratch_bytes(&layout, true, true), MAX_W4_TOKENS * k * 2);
        }
    }
}
