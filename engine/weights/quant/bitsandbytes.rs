//! bitsandbytes: 4 bits (NF4, FP4), plain and double-quantised, and 8 bits.
//!
//! 4 bits: the matrix is flattened and cut into blocks of `blocksize`; `weight` U8 holds two codes a byte, the first in the high nibble.
//! Beside it lie `weight.absmax`, `weight.quant_map` and the JSON `weight.quant_state.bitsandbytes__nf4`; when absmax is quantised itself, also
//! `weight.nested_absmax` and `weight.nested_quant_map`. Layout as `QuantState.as_dict` of bitsandbytes (MIT) writes it.

use serde_json::Value;

use super::books::Book;
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::scales::{ScaleValues, Scales};
use super::source::{Site, Source};
use crate::device::{CodeForm, CodedForm, HostMatrix, MatrixForm, StoredForm, ZeroForm};
use crate::error::Result;
use crate::weights::format::WeightFormat;
use crate::weights::mapped::MappedBytes;

/// Longest quant_state that is read.
const MAX_STATE_BYTES: usize = 4096;

/// A type of 4-bit codes.
pub(super) struct QuantType {
    /// Name of the tensor that says so.
    pub key: &'static str,
    name: &'static str,
}

/// The types.
pub(super) const QUANT_TYPES: [QuantType; 2] = [
    QuantType { key: "weight.quant_state.bitsandbytes__nf4", name: "nf4" },
    QuantType { key: "weight.quant_state.bitsandbytes__fp4", name: "fp4" },
];

/// What quant_state says.
struct State {
    blocksize: usize,
    /// (block of absmax values, offset).
    nested: Option<(usize, f32)>,
}

/// The tensors of a 4-bit matrix.
///
/// # Errors
/// A tensor is missing or of another shape, or quant_state says something else than the tensors.
pub(super) fn find(site: &Site<'_>, kind: &QuantType) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let state = read_state(site, kind)?;
    let blocks = (n * k).div_ceil(state.blocksize);
    let packed = (n * k).div_ceil(2);
    let codes = site.bytes("weight", &["U8"], &[&[packed, 1], &[1, packed], &[packed]])?;
    let book: Book = floats(&site.bytes("weight.quant_map", &["F32"], &[&[16]])?);
    let values = match state.nested {
        None => ScaleValues::F32(site.bytes("weight.absmax", &["F32"], &[&[blocks]])?),
        Some((block, offset)) => {
            let codes = site.bytes("weight.absmax", &["U8"], &[&[blocks]])?;
            let outer = site.bytes("weight.nested_absmax", &["F32"], &[&[blocks.div_ceil(block)]])?;
            let outer = outer.as_slice().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
            let table = Box::new(floats(&site.bytes("weight.nested_quant_map", &["F32"], &[&[256]])?));
            ScaleValues::Nested { codes, table, outer, block, offset }
        }
    };
    let code = Code::Four { book, first: Nibble::High };
    if k.is_multiple_of(state.blocksize) {
        let scales = Scales::new(1, state.blocksize, k, values);
        let matrix = CodedMatrix { name: site.label(), n, k, code, codes, scales, zeros: Zeros::None, order: None };
        return Ok(Source::of(HostMatrix::from(matrix)));
    }
    // Blocks run across the ends of rows: the whole is one row of codes, and becomes rows of floats.
    let (len, name) = (2 * packed, site.label());
    let scales = Scales::new(1, state.blocksize, n * k, values);
    let form = MatrixForm { n, k, stored: StoredForm::Rows(WeightFormat::F32) };
    Ok(Source::new(4 * n * k, form, move || {
        let flat = CodedMatrix { name, n: 1, k: len, code, codes, scales, zeros: Zeros::None, order: None };
        let mut rows = flat.to_f32();
        (rows.n, rows.k, rows.bytes) = (n, k, rows.bytes.slice(0, 4 * n * k));
        Ok(HostMatrix::Rows(rows))
    }))
}

fn floats<const N: usize>(bytes: &MappedBytes) -> [f32; N] {
    let words = bytes.as_slice().as_chunks::<4>().0;
    std::array::from_fn(|i| f32::from_le_bytes(words[i]))
}

fn read_state(site: &Site<'_>, kind: &QuantType) -> Result<State> {
    let tensor = site.require(kind.key)?;
    let fail = |reason: String| site.error(kind.key, reason);
    if tensor.type_name != "U8" || tensor.bytes.len() > MAX_STATE_BYTES {
        return Err(fail(format!("is no JSON text of at most {MAX_STATE_BYTES} bytes")));
    }
    let state: Value = serde_json::from_slice(tensor.bytes.as_slice()).map_err(|error| fail(format!("is not valid JSON: {error}")))?;
    if state["quant_type"] != kind.name {
        return Err(fail(format!("has quant_type {}, expected \"{}\"", state["quant_type"], kind.name)));
    }
    let shape: Option<Vec<usize>> = serde_json::from_value(state["shape"].clone()).ok();
    if shape.as_deref() != Some(&[site.n, site.k]) {
        return Err(fail(format!("has shape {}, expected [{}, {}]", state["shape"], site.n, site.k)));
    }
    let size = |key: &str| match state[key].as_u64() {
        Some(size @ 16..=65536) if size.is_power_of_two() => Ok(size as usize),
        _ => Err(fail(format!("has {key} {}, expected a power of two from 16 to 65536", state[key]))),
    };
    let blocksize = size("blocksize")?;
    let nested = match &state["nested_blocksize"] {
        Value::Null => None,
        _ => {
            let offset = state["nested_offset"].as_f64().map(|offset| offset as f32).filter(|offset| offset.is_finite());
            let offset = offset.ok_or_else(|| fail(format!("has nested_offset {}, expected a number", state["nested_offset"])))?;
            Some((size("nested_blocksize")?, offset))
        }
    };
    Ok(State { blocksize, nested })
}

/// The tensors of an 8-bit matrix: `weight` I8 and `SCB` F32, the largest magnitude of each row; w = q * SCB / 127.
///
/// # Errors
/// A tensor is missing or of another shape.
pub(super) fn find_int8(site: &Site<'_>) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let largest = site.bytes("SCB", &["F32"], &[&[n], &[n, 1]])?;
    let codes = site.bytes("weight", &["I8"], &[&[n, k]])?;
    let name = site.label();
    let form = CodedForm { zeros: ZeroForm::Same(128.0), ..CodedForm::plain(CodeForm::U8, 1, k) };
    Ok(Source::new(n * k + 4 * n, site.form(form), move || {
        let scales = MappedBytes::build(4 * n, |out| {
            for (out, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(largest.as_slice().as_chunks::<4>().0) {
                *out = (f32::from_le_bytes(*word) / 127.0).to_le_bytes();
            }
        });
        Ok(HostMatrix::from(super::compressed::signed_bytes(name, n, k, &codes, Scales::new(1, k, k, ScaleValues::F32(scales)))))
    }))
}
