//! compressed-tensors integers: `pack-quantized` (`weight_packed` I32 `[n, k * bits / 32]` along k, 4 or 8 bits, stored with half the range
//! added; `weight_scale` `[n, groups]`; asymmetric: `weight_zero_point` I32 `[n * bits / 32, groups]`; `weight_g_idx` for act order) and
//! `int-quantized` (`weight` I8, `weight_scale`).
//!
//! Layout as in compressed-tensors (Apache-2.0). w = (q - z) * s.

use std::sync::Arc;

use super::books::{INT4, UINT4};
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::order::column_order;
use super::repack::{reorder, transpose, unpack};
use super::scales::Scales;
use super::source::{Site, Source};
use crate::device::{CodeForm, CodedForm, HostMatrix, ZeroForm};
use crate::error::Result;
use crate::weights::mapped::MappedBytes;

/// The tensors of a packed matrix.
///
/// # Errors
/// A tensor is missing or of another shape, or the bits are neither 4 nor 8.
pub(super) fn find_packed(site: &Site<'_>) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let words = site.require("weight_packed")?.shape.last().copied().unwrap_or(0);
    let bits = site.bits("weight_packed", words, k)?;
    let codes = site.bytes("weight_packed", &["I32"], &[&[n, words]])?;
    let (scales, groups) = scales(site)?;
    let four = |book| Code::Four { book, first: Nibble::Low };
    let (code, zeros) = match site.get("weight_zero_point") {
        None if bits == 4 => (four(INT4), Zeros::None),
        None => (Code::U8, Zeros::Same(128.0)),
        Some(_) => {
            let rows = (n * bits).div_ceil(32);
            let packed = site.bytes("weight_zero_point", &["I32"], &[&[rows, groups]])?;
            (if bits == 4 { four(UINT4) } else { Code::U8 }, Zeros::Groups { codes: zero_plane(&packed, rows, groups, bits), plus: 0 })
        }
    };
    let mut order = None;
    if site.get("weight_g_idx").is_some() {
        let g_idx = site.bytes("weight_g_idx", &["I32"], &[&[k]])?;
        order = column_order(g_idx.as_slice(), groups, scales.cols).map_err(|reason| site.error("weight_g_idx", reason))?;
    }
    let mut matrix = CodedMatrix { name: site.label(), n, k, code, codes, scales, zeros, order };
    Ok(Source::new(matrix.bytes(), matrix.form(), move || {
        if let Some(order) = &matrix.order {
            matrix.codes = reorder(matrix.codes.as_slice(), k * bits / 8, order);
        }
        Ok(HostMatrix::from(matrix))
    }))
}

/// `[rows of words][groups]` packed along n -> `[n][groups]` bytes (n rounded up to whole words).
fn zero_plane(packed: &MappedBytes, rows: usize, groups: usize, bits: usize) -> MappedBytes {
    // With the words of a group side by side, unpacking gives [groups][n].
    let by_group = transpose(packed.as_slice(), rows, groups, 4);
    let plain = unpack(by_group.as_slice(), bits);
    transpose(&plain, groups, rows * 32 / bits, 1)
}

/// `weight_scale` and the groups of a row.
fn scales(site: &Site<'_>) -> Result<(Scales, usize)> {
    const KEY: &str = "weight_scale";
    let (n, k) = (site.n, site.k);
    match *site.require(KEY)?.shape.as_slice() {
        [] | [1] => Ok((Scales::new(n, k, k, site.scales(KEY, &[&[], &[1]])?), 1)),
        [_, groups] => {
            let group = site.group(KEY, groups, None)?;
            Ok((Scales::new(1, group, k, site.scales(KEY, &[&[n, groups]])?), groups))
        }
        _ => Ok((Scales::new(1, k, k, site.scales(KEY, &[&[n]])?), 1)),
    }
}

/// The tensors of a matrix of signed bytes.
///
/// # Errors
/// A tensor is missing or of another shape; zero points, which symmetric matrices have not.
pub(super) fn find_int8(site: &Site<'_>) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let codes = site.bytes("weight", &["I8"], &[&[n, k]])?;
    if site.get("weight_zero_point").is_some() {
        return Err(site.error("weight_zero_point", "is there; supported are symmetric int8 weights"));
    }
    let (scales, _) = scales(site)?;
    let name = site.label();
    let form = CodedForm { zeros: ZeroForm::Same(128.0), ..CodedForm::plain(CodeForm::U8, scales.rows, scales.cols) };
    let bytes = n * k + scales.bytes();
    Ok(Source::new(bytes, site.form(form), move || Ok(HostMatrix::from(signed_bytes(name, n, k, &codes, scales)))))
}

/// Signed bytes as unsigned ones with a zero point of 128.
pub(super) fn signed_bytes(name: Arc<str>, n: usize, k: usize, codes: &MappedBytes, scales: Scales) -> CodedMatrix {
    let codes = MappedBytes::build(codes.len(), |out| {
        out.iter_mut().zip(codes.as_slice()).for_each(|(out, code)| *out = code ^ 0x80);
    });
    CodedMatrix { name, n, k, code: Code::U8, codes, scales, zeros: Zeros::Same(128.0), order: None }
}
