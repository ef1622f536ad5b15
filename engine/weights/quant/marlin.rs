//! Checkpoints stored in Marlin's own layout: `B` I32 `[k / 16, 2 n]`, `s` F16 `[groups, n]`; symmetric 4 bits, w = (q - 8) * s.
//!
//! The layout follows Marlin (IST-DASLab, Apache-2.0): tiles of 16 x 16, four of them permuted into the fragments of a tensor core.

use rayon::prelude::*;

use super::books::INT4;
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::repack::transpose;
use super::scales::{ScaleValues, Scales};
use super::source::{Site, Source};
use crate::device::{CodeForm, CodedForm, HostMatrix};
use crate::error::Result;
use crate::weights::mapped::MappedBytes;

/// Codes that are permuted together: four tiles.
const RUN: usize = 1024;
/// Columns of a run.
const RUN_COLUMNS: usize = 64;
/// Rows of a tile.
const TILE: usize = 16;

/// The tensors of a matrix.
///
/// # Errors
/// A tensor is missing or of another shape.
pub(super) fn find(site: &Site<'_>) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    if !k.is_multiple_of(TILE) || !n.is_multiple_of(RUN_COLUMNS) {
        return Err(site.error("B", format_args!("is a matrix [{n}, {k}], Marlin's layout has rows in {RUN_COLUMNS}s, columns in {TILE}s")));
    }
    let codes = site.bytes("B", &["I32"], &[&[k / TILE, 2 * n]])?;
    let groups = site.require("s")?.shape.first().copied().unwrap_or(0);
    let group = site.group("s", groups, None)?;
    let scales = site.bytes("s", &["F16"], &[&[groups, n]])?;
    let name = site.label();
    let form = site.form(CodedForm::plain(CodeForm::Four, 1, group));
    Ok(Source::new(codes.len() + scales.len(), form, move || {
        let scales = unpermuted_scales(scales.as_slice(), groups);
        let scales = transpose(&scales, groups, n, 2);
        Ok(HostMatrix::from(CodedMatrix {
            name,
            n,
            k,
            code: Code::Four { book: INT4, first: Nibble::Low },
            codes: unpermuted_codes(codes.as_slice(), n, k),
            scales: Scales::new(1, group, k, ScaleValues::F16(scales)),
            zeros: Zeros::None,
            order: None,
        }))
    }))
}

/// Where code `i` of a run comes from: (row of the tile, column of the run).
fn origin(i: usize) -> (usize, usize) {
    // Within eight, the codes are stored as 0, 2, 4, 6, 1, 3, 5, 7.
    const INTERLEAVE: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let (lane, tile) = (i / 32, i / 8 % 4);
    let (half, step) = (INTERLEAVE[i % 8] / 4, INTERLEAVE[i % 8] % 4);
    let row = 2 * (lane % 4) + [0, 1, 8, 9][step];
    (row, TILE * tile + lane / 4 + 8 * half)
}

/// `[n][k / 2]`, low nibble first.
fn unpermuted_codes(src: &[u8], n: usize, k: usize) -> MappedBytes {
    let origins: Vec<(usize, usize)> = (0..RUN).map(origin).collect();
    let row_bytes = k / 2;
    MappedBytes::build(n * row_bytes, |out| {
        out.par_chunks_mut(RUN_COLUMNS * row_bytes).enumerate().for_each(|(run, out)| {
            for tile in 0..k / TILE {
                let from = &src[(tile * n * TILE + run * RUN) / 2..][..RUN / 2];
                for (i, (row, column)) in origins.iter().enumerate() {
                    let code = from[i / 2] >> (4 * (i % 2)) & 15;
                    let k = tile * TILE + row;
                    out[column * row_bytes + k / 2] |= code << (4 * (k % 2));
                }
            }
        });
    })
}

/// `[groups][n]` halves in the order of the columns.
fn unpermuted_scales(src: &[u8], groups: usize) -> Vec<u8> {
    let grouped = |j: usize| j / 8 + 8 * (j % 8);
    let single = |j: usize| 2 * (j / 8) + [0, 1, 8, 9, 16, 17, 24, 25][j % 8];
    let run = if groups > 1 { 64 } else { 32 };
    let mut out = vec![0; src.len()];
    for (from, to) in src.chunks_exact(2 * run).zip(out.chunks_exact_mut(2 * run)) {
        for (j, half) in from.chunks_exact(2).enumerate() {
            let column = if groups > 1 { grouped(j) } else { single(j) };
            to[2 * column..][..2].copy_from_slice(half);
        }
    }
    out
}
