//! 4-bit matrices in tiles: for a product they become bf16 in the scratch, some rows at a time, unless they were copied as bf16 when they were
//! loaded.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::gemm::{Epilogue, Start};
use pagoda_kernels::ops::w4::{TILE_ROWS, W4Dequantize, W4Layout, W4Matrix, w4_dequantize};

use super::product::{Matrix, Product, Rows};
use super::{CudaDevice, Stored, engine_error};
use crate::error::Result;

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

/// Bytes of scratch that products with such a matrix take.
pub(super) fn scratch_bytes(layout: &W4Layout) -> usize {
    piece_rows(layout) * layout.k * 2
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
        let scratch = self.dense_scratch(scratch_bytes(layout))?;
        // Kernels read weights before they wait for their predecessor, which makes these.
        let step = |piece| (Some(piece), dense_products(p, layout, piece, scratch, Start::InOrder));
        Ok(pieces(layout).map(step).collect())
    }

    /// Whether the launches of a product with gate and up join them.
    pub(super) fn tiles_join_gates(&self, p: &Product<'_>, weight: &W4Weight) -> Result<bool> {
        let steps = self.dense_steps(p, weight)?;
        // A piece of several holds gates and their ups; of a bias both lie apart.
        let alone = steps.len() == 1 || (weight.matrix.layout.interleaved && p.bias.is_none());
        Ok(alone && steps.iter().flat_map(|(_, products)| products).all(|p| self.joins_gates(p)))
    }

    /// Whether the launches of a product add its bias.
    pub(super) fn tiles_add_bias(&self, p: &Product<'_>, weight: &W4Weight) -> Result<bool> {
        self.dense_steps(p, weight)?.iter().flat_map(|(_, products)| products).try_fold(true, |all, p| Ok(all && self.adds_bias(p)?))
    }

    /// A product with tiles.
    pub(super) fn run_tiles(&self, p: &Product<'_>, weight: &W4Weight) -> Result<()> {
        for (piece, products) in self.dense_steps(p, weight)? {
            if let Some(piece) = piece {
                self.dequantize(weight, piece, self.dense_scratch(0)?)?;
            }
            products.iter().try_for_each(|p| self.run_product(p))?;
        }
        Ok(())
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
            assert_eq!(scratch_bytes(&layout), all[0].len * k * 2);
        }
    }
}
