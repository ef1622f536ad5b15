//! GPTQ, 4 and 8 bits: `qweight` I32 `[k * bits / 32, n]` packed along k, `qzeros` I32 `[groups, n * bits / 32]` packed along n, `scales`
//! F16 `[groups, n]`, `g_idx` I32 `[k]`; w[n, k] = s[g_idx[k], n] * (q[k, n] - z[g_idx[k], n]).
//!
//! Layout as in AutoGPTQ and GPTQModel (MIT, Apache-2.0). The first version of the format stores z - 1, the second z.

use super::books::{INT4, UINT4};
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::config::GptqConfig;
use super::order::column_order;
use super::repack::{reorder, transpose, unpack};
use super::scales::{ScaleValues, Scales};
use super::source::{Site, Source};
use crate::device::{CodeForm, CodedForm, HostMatrix, ZeroForm};
use crate::error::Result;
use crate::weights::mapped::MappedBytes;

/// The tensors of a matrix.
///
/// # Errors
/// A tensor is missing or of another shape, or the bits are neither 4 nor 8.
pub(super) fn find(site: &Site<'_>, config: &GptqConfig) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let words = site.require("qweight")?.shape.first().copied().unwrap_or(0);
    let bits = site.bits("qweight", words, k)?;
    let codes = site.bytes("qweight", &["I32"], &[&[words, n]])?;
    let groups = site.require("scales")?.shape.first().copied().unwrap_or(0);
    let group = site.group("scales", groups, config.group_size)?;
    let scales = site.bytes("scales", &["F16", "BF16"], &[&[groups, n]])?;
    let is_half = site.require("scales")?.type_name == "F16";
    if !(n * bits).is_multiple_of(32) {
        return Err(site.error("qzeros", format_args!("packs {n} columns of {bits} bits, expected whole words")));
    }
    let zeros = site.bytes("qzeros", &["I32"], &[&[groups, n * bits / 32]])?;
    let mut order = None;
    if site.get("g_idx").is_some() {
        let g_idx = site.bytes("g_idx", &["I32"], &[&[k]])?;
        order = column_order(g_idx.as_slice(), groups, group).map_err(|reason| site.error("g_idx", reason))?;
    }
    let (name, plus) = (site.label(), u8::from(!config.stores_zero));
    let bytes = codes.len() + scales.len() + groups * n + order.as_ref().map_or(0, |order| 4 * order.len());
    let code = if bits == 4 { CodeForm::Four } else { CodeForm::U8 };
    let zero_form = zero_form(bits, zeros.as_slice(), plus);
    let form = CodedForm { zeros: zero_form, is_ordered: order.is_some(), ..CodedForm::plain(code, 1, group) };
    Ok(Source::new(bytes, site.form(form), move || {
        let mut codes = transpose(codes.as_slice(), words, n, 4);
        if let Some(order) = &order {
            codes = reorder(codes.as_slice(), k * bits / 8, order);
        }
        let scales = transpose(scales.as_slice(), groups, n, 2);
        let (code, zeros) = code_and_zeros(bits, &unpack(zeros.as_slice(), bits), groups, n, plus);
        let scales = Scales::new(1, group, k, half_scales(scales, is_half));
        Ok(HostMatrix::from(CodedMatrix { name, n, k, code, codes, scales, zeros, order }))
    }))
}

/// What `code_and_zeros` will make of zero points, told from them as they are packed.
fn zero_form(bits: usize, packed: &[u8], plus: u8) -> ZeroForm {
    let Some(&first) = packed.first().filter(|first| packed.iter().all(|byte| byte == *first)) else { return ZeroForm::Groups };
    match bits {
        4 if first & 15 == first >> 4 && (first & 15) + plus == 8 => ZeroForm::None,
        4 => ZeroForm::Groups,
        _ => ZeroForm::Same(f32::from(u16::from(first) + u16::from(plus))),
    }
}

/// Scales of two bytes each.
pub(super) fn half_scales(bytes: MappedBytes, is_half: bool) -> ScaleValues {
    if is_half { ScaleValues::F16(bytes) } else { ScaleValues::BF16(bytes) }
}

/// The code for unsigned integers with zero points `[groups][n]`: symmetric matrices need no plane of them.
pub(super) fn code_and_zeros(bits: usize, stored: &[u8], groups: usize, n: usize, plus: u8) -> (Code, Zeros) {
    let four = |book| Code::Four { book, first: Nibble::Low };
    let same = stored.first().copied().filter(|first| stored.iter().all(|zero| zero == first));
    match (bits, same.map(|zero| u16::from(zero) + u16::from(plus))) {
        (4, Some(8)) => (four(INT4), Zeros::None),
        (4, _) => (four(UINT4), Zeros::Groups { codes: transpose(stored, groups, n, 1), plus }),
        (_, Some(zero)) => (Code::U8, Zeros::Same(f32::from(zero))),
        _ => (Code::U8, Zeros::Groups { codes: transpose(stored, groups, n, 1), plus }),
    }
}
