//! From the packings of checkpoints to codes along k, and small planes of zero points and scales along the groups of a row.
//!
//! All of them copy; large ones in parallel, reading whole cache lines.

use rayon::prelude::*;

use crate::weights::mapped::MappedBytes;

/// Bytes of a cache line: what a strided read takes along.
const LINE: usize = 64;

/// Nibble `i` of an AWQ word holds column `8 c + AWQ_ORDER[i]`.
pub const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// `[rows][cols]` elements of `size` bytes -> `[cols][rows]`.
pub fn transpose(src: &[u8], rows: usize, cols: usize, size: usize) -> MappedBytes {
    assert_eq!(src.len(), rows * cols * size, "bytes of [{rows}, {cols}]");
    let line = LINE / size;
    MappedBytes::build(src.len(), |out| {
        // One task writes `line` rows of the result and reads a cache line of every row of the source.
        out.par_chunks_mut((line * rows * size).max(1)).enumerate().for_each(|(task, out)| {
            let width = out.len() / (rows * size);
            for row in 0..rows {
                let from = &src[(row * cols + task * line) * size..][..width * size];
                for (i, element) in from.chunks_exact(size).enumerate() {
                    out[(i * rows + row) * size..][..size].copy_from_slice(element);
                }
            }
        });
    })
}

/// AWQ's `[k][n / 8]` words of eight columns -> `[n][k / 2]` bytes, low nibble first. `k` is even.
pub fn awq_codes(src: &[u8], k: usize, n: usize) -> MappedBytes {
    assert_eq!(src.len(), k * n / 2, "bytes of AWQ codes [{k}, {n}]");
    let words = n / 8;
    let (row_bytes, per_task) = (k / 2, LINE / 4);
    MappedBytes::build(n * row_bytes, |out| {
        out.par_chunks_mut((per_task * 8 * row_bytes).max(1)).enumerate().for_each(|(task, out)| {
            let width = out.len() / (8 * row_bytes);
            let at = |row: usize| src[(row * words + task * per_task) * 4..][..4 * width].as_chunks::<4>().0;
            for pair in 0..row_bytes {
                for (c, (even, odd)) in at(2 * pair).iter().zip(at(2 * pair + 1)).enumerate() {
                    let (even, odd) = (u32::from_le_bytes(*even), u32::from_le_bytes(*odd));
                    for (i, column) in AWQ_ORDER.iter().enumerate() {
                        let byte = (even >> (4 * i) & 15) | (odd >> (4 * i) & 15) << 4;
                        out[(8 * c + column) * row_bytes + pair] = byte as u8;
                    }
                }
            }
        });
    })
}

/// Codes of `bits` packed low bits first along rows of `cols` codes, `[rows][cols * bits / 32]` words -> a byte each.
pub fn unpack(src: &[u8], bits: usize) -> Vec<u8> {
    match bits {
        8 => src.to_vec(),
        _ => src.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
    }
}

/// `unpack` of AWQ's order within eight.
pub fn unpack_awq(src: &[u8]) -> Vec<u8> {
    let plain = unpack(src, 4);
    let mut out = vec![0; plain.len()];
    for (from, to) in plain.chunks_exact(8).zip(out.chunks_exact_mut(8)) {
        for (i, column) in AWQ_ORDER.iter().enumerate() {
            to[*column] = from[i];
        }
    }
    out
}

/// `[n][k / 2]` low nibble first, or `[n][k]` bytes, with the columns of every row in another order: code `j` is the old code `order[j]`.
pub fn reorder(src: &[u8], row_bytes: usize, order: &[u32]) -> MappedBytes {
    let nibbles = row_bytes < order.len();
    MappedBytes::build(src.len(), |out| {
        out.par_chunks_mut(row_bytes).zip(src.par_chunks(row_bytes)).for_each(|(out, row)| {
            let nibble = |j: u32| row[j as usize / 2] >> (4 * (j % 2)) & 15;
            for (i, out) in out.iter_mut().enumerate() {
                *out = if nibbles { nibble(order[2 * i]) | nibble(order[2 * i + 1]) << 4 } else { row[order[i] as usize] };
            }
        });
    })
}
