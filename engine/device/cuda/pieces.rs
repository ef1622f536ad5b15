//! Products of many tokens with packed matrices: some rows at a time become bf16 in the scratch and are multiplied there, unless all of them
//! were copied as bf16 when they were loaded.

use pagoda_kernels::DeviceMemory;
use pagoda_kernels::ops::DeviceBytes;
use pagoda_kernels::ops::gemm::{Epilogue, Start};

use super::product::{Matrix, Product, Rows};
use super::{CudaDevice, Stored, engine_error};
use crate::error::Result;

/// Bytes of the largest matrix that is dense in the scratch as a whole; of larger ones some rows at a time.
const SCRATCH_BYTES: usize = 320 << 20;
/// Rows of such a piece are a multiple of this, so that tiles of products are full.
const PIECE_ROWS: usize = 256;
/// Rows of a piece, at least: those of a tile.
const MIN_ROWS: usize = 16;

/// What is packed, and where it is dense.
#[derive(Clone, Copy)]
pub(super) struct PackedRows {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Whether rows of gate and up alternate in groups of 8.
    pub interleaved: bool,
    /// `[n, k]` bf16, in the order of the matrix.
    pub dense: Option<DeviceBytes>,
}

/// Rows of a matrix that are dense at once: whole tiles, or all.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub first: usize,
    pub len: usize,
}

/// A piece, and the dense products that follow it; no piece: the copy is there.
type Step<'a> = (Option<Piece>, Vec<Product<'a>>);

fn piece_rows(n: usize, k: usize) -> usize {
    let fit = SCRATCH_BYTES / (k * 2);
    if fit >= n { n } else { (fit / PIECE_ROWS * PIECE_ROWS).max(MIN_ROWS) }
}

fn pieces(n: usize, k: usize) -> impl Iterator<Item = Piece> {
    let rows = piece_rows(n, k);
    (0..n).step_by(rows).map(move |first| Piece { first, len: rows.min(n - first) })
}

/// Bytes of the rows of a matrix `[n, k]` that are dense at once.
pub(super) fn piece_bytes(n: usize, k: usize) -> usize {
    piece_rows(n, k) * k * 2
}

/// The products with dense rows `piece` of a matrix that together give `p`'s columns of these rows.
fn dense_products<'a>(p: &Product<'a>, packed: &PackedRows, piece: Piece, rows: DeviceBytes, start: Start) -> Vec<Product<'a>> {
    let row_bytes = packed.k * 2;
    let product = |col: usize, first: usize, len: usize| {
        let matrix = Matrix { stored: Stored::Dense(rows.from(first * row_bytes).first(len * row_bytes)), n: len };
        let out = Rows { bytes: p.out.bytes.from(col * p.out.dtype.size()), ..p.out };
        Product { out, matrix, first_row: p.first_row + col, start, ..*p }
    };
    let (first, half) = (piece.first / 2, piece.len / 2);
    match p.epilogue {
        _ if piece.len == packed.n || !packed.interleaved => vec![product(piece.first, 0, piece.len)],
        Epilogue::SiluMul => vec![product(first, 0, piece.len)],
        Epilogue::Plain => vec![product(first, 0, half), product(packed.n / 2 + first, half, half)],
    }
}

impl CudaDevice {
    fn dense_steps<'a>(&self, p: &Product<'a>, packed: &PackedRows) -> Result<Vec<Step<'a>>> {
        let PackedRows { n, k, dense, .. } = *packed;
        if let Some(dense) = dense {
            return Ok(vec![(None, dense_products(p, packed, Piece { first: 0, len: n }, dense, p.start))]);
        }
        let scratch = self.dense_scratch(piece_bytes(n, k))?;
        // Kernels read weights before they wait for their predecessor, which makes these.
        let step = |piece| (Some(piece), dense_products(p, packed, piece, scratch, Start::InOrder));
        Ok(pieces(n, k).map(step).collect())
    }

    /// Whether the launches of a product of many tokens with gate and up join them.
    pub(super) fn dense_steps_join_gates(&self, p: &Product<'_>, packed: &PackedRows) -> Result<bool> {
        let steps = self.dense_steps(p, packed)?;
        // A piece of several holds gates and their ups; of a bias both lie apart.
        let alone = steps.len() == 1 || (packed.interleaved && p.bias.is_none());
        Ok(alone && steps.iter().flat_map(|(_, products)| products).all(|p| self.joins_gates(p)))
    }

    /// Whether the launches of a product of many tokens add its bias.
    pub(super) fn dense_steps_add_bias(&self, p: &Product<'_>, packed: &PackedRows) -> Result<bool> {
        self.dense_steps(p, packed)?.iter().flat_map(|(_, products)| products).try_fold(true, |all, p| Ok(all && self.adds_bias(p)?))
    }

    /// A product of many tokens; `dequantize` queues a piece's rows as bf16.
    pub(super) fn run_dense_steps(
        &self,
        p: &Product<'_>,
        packed: &PackedRows,
        dequantize: impl Fn(Piece, DeviceBytes) -> Result<()>,
    ) -> Result<()> {
        for (piece, products) in self.dense_steps(p, packed)? {
            if let Some(piece) = piece {
                dequantize(piece, self.dense_scratch(0)?)?;
            }
            products.iter().try_for_each(|p| self.run_product(p))?;
        }
        Ok(())
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
            let all: Vec<Piece> = pieces(n, k).collect();
            let mut next = 0;
            for piece in &all {
                assert!(piece.first == next && piece.first.is_multiple_of(MIN_ROWS) && piece.len > 0, "[{n}, {k}]");
                next += piece.len;
            }
            assert!(next == n && (all.len() == 1 || all[0].len * k * 2 <= SCRATCH_BYTES || all[0].len == MIN_ROWS), "[{n}, {k}]");
            assert_eq!(piece_bytes(n, k), all[0].len * k * 2, "[{n}, {k}]");
        }
    }
}
