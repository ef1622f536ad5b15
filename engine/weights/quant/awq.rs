//! AWQ, GEMM packing: `qweight` I32 `[k, n / 8]`, `qzeros` I32 `[groups, n / 8]`, `scales` F16 `[groups, n]`; w = (q - z) * s.
//!
//! Layout as in AutoAWQ (MIT): eight columns a word in the order of `repack::AWQ_ORDER`.

use super::books::UINT4;
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::repack::{awq_codes, transpose, unpack_awq};
use super::scales::Scales;
use super::source::{Site, Source};
use crate::device::{CodeForm, CodedForm, HostMatrix, ZeroForm};
use crate::error::Result;

/// The tensors of a matrix.
///
/// # Errors
/// A tensor is missing or of another shape; `n` is no multiple of 8 or `k` is odd.
pub(super) fn find(site: &Site<'_>) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let shape = site.require("qweight")?.shape.as_slice();
    if shape == [n, k / 8] && n != k {
        return Err(site.error("qweight", format_args!("has shape {shape:?}: AWQ's gemv layout; supported is gemm, [{k}, {}]", n / 8)));
    }
    if !n.is_multiple_of(8) || !k.is_multiple_of(2) {
        return Err(site.error("qweight", format_args!("is a matrix [{n}, {k}], supported are rows in eights and even columns")));
    }
    let codes = site.bytes("qweight", &["I32"], &[&[k, n / 8]])?;
    let groups = site.require("scales")?.shape.first().copied().unwrap_or(0);
    let group = site.group("scales", groups, None)?;
    let scales = site.bytes("scales", &["F16", "BF16"], &[&[groups, n]])?;
    let is_half = site.require("scales")?.type_name == "F16";
    let zeros = site.bytes("qzeros", &["I32"], &[&[groups, n / 8]])?;
    let name = site.label();
    let bytes = codes.len() + scales.len() + groups * n;
    let form = CodedForm { zeros: ZeroForm::Groups, ..CodedForm::plain(CodeForm::Four, 1, group) };
    Ok(Source::new(bytes, site.form(form), move || {
        let scales = transpose(scales.as_slice(), groups, n, 2);
        let zeros = transpose(&unpack_awq(zeros.as_slice()), groups, n, 1);
        Ok(HostMatrix::from(CodedMatrix {
            name,
            n,
            k,
            code: Code::Four { book: UINT4, first: Nibble::Low },
            codes: awq_codes(codes.as_slice(), k, n),
            scales: Scales::new(1, group, k, super::gptq::half_scales(scales, is_half)),
            zeros: Zeros::Groups { codes: zeros, plus: 0 },
            order: None,
        }))
    }))
}
