//! Small floats: FP8 e4m3 per tensor, channel and block; NVFP4 (compressed-tensors and ModelOpt); MXFP4.
//!
//! FP8: `weight` F8_E4M3 `[n, k]` times `weight_scale` (or `weight_scale_inv`, which is multiplied despite its name). NVFP4: e2m1 codes, the
//! first in the low nibble, an e4m3 scale for each 16 columns, and one f32 for the tensor: a divisor in compressed-tensors
//! (`weight_global_scale`), a factor in ModelOpt (`weight_scale_2`). MXFP4: e2m1 codes and an e8m0 scale for each 32 columns.

use super::books::{E2M1, e4m3, e8m0, table};
use super::coded::{Code, CodedMatrix, Nibble, Zeros};
use super::scales::{ScaleValues, Scales};
use super::source::{Site, Source};
use crate::device::HostMatrix;
use crate::error::Result;
use crate::weights::mapped::MappedBytes;

/// Columns of a scale.
const NVFP4_GROUP: usize = 16;
const MXFP4_GROUP: usize = 32;

/// The tensors of an FP8 matrix; `block` is the height and width of its blocks if it has some.
///
/// # Errors
/// A tensor is missing or of another shape.
pub(super) fn find_fp8(site: &Site<'_>, block: [usize; 2]) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    let codes = site.bytes("weight", &["F8_E4M3"], &[&[n, k]])?;
    let key = if site.get("weight_scale_inv").is_some() { "weight_scale_inv" } else { "weight_scale" };
    let [height, width] = block;
    let blocks = [n.div_ceil(height), k.div_ceil(width)];
    let (rows, cols) = match *site.require(key)?.shape.as_slice() {
        [] | [1] => (n, k),
        [channels] | [channels, 1] if channels == n => (1, k),
        _ => (height, width),
    };
    let values = site.scales(key, &[&[], &[1], &[n], &[n, 1], &blocks])?;
    coded(site, Code::E4M3, codes, Scales::new(rows, cols, k, values))
}

/// The tensors of an NVFP4 matrix of compressed-tensors.
///
/// # Errors
/// A tensor is missing or of another shape.
pub(super) fn find_nvfp4(site: &Site<'_>) -> Result<Source> {
    let global = site.scalar("weight_global_scale")?;
    nvfp4(site, "weight_packed", &|byte| e4m3(byte) / global)
}

/// The tensors of an NVFP4 matrix of ModelOpt.
///
/// # Errors
/// A tensor is missing or of another shape.
pub(super) fn find_modelopt(site: &Site<'_>) -> Result<Source> {
    let global = site.scalar("weight_scale_2")?;
    nvfp4(site, "weight", &|byte| e4m3(byte) * global)
}

fn nvfp4(site: &Site<'_>, key: &str, scale: &dyn Fn(u8) -> f32) -> Result<Source> {
    grouped(site, key, NVFP4_GROUP, &["F8_E4M3"], Box::new(table(scale)))
}

/// The tensors of an MXFP4 matrix.
///
/// # Errors
/// A tensor is missing or of another shape.
pub(super) fn find_mxfp4(site: &Site<'_>) -> Result<Source> {
    grouped(site, "weight_packed", MXFP4_GROUP, &["U8", "F8_E8M0"], Box::new(table(e8m0)))
}

fn grouped(site: &Site<'_>, key: &str, group: usize, scale_types: &[&str], table: Box<[f32; 256]>) -> Result<Source> {
    let (n, k) = (site.n, site.k);
    if !k.is_multiple_of(group) {
        return Err(site.error(key, format_args!("has {k} columns, expected a multiple of {group}")));
    }
    let codes = site.bytes(key, &["U8"], &[&[n, k / 2]])?;
    let scales = site.bytes("weight_scale", scale_types, &[&[n, k / group]])?;
    let values = ScaleValues::Table { codes: scales, table };
    coded(site, Code::Four { book: E2M1, first: Nibble::Low }, codes, Scales::new(1, group, k, values))
}

fn coded(site: &Site<'_>, code: Code, codes: MappedBytes, scales: Scales) -> Result<Source> {
    let matrix = CodedMatrix { name: site.label(), n: site.n, k: site.k, code, codes, scales, zeros: Zeros::None, order: None };
    Ok(Source::of(HostMatrix::from(matrix)))
}
