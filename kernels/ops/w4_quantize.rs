//! Dense values become 4-bit codes (include/pagoda_w4.h): NF4 as bitsandbytes makes it, and NVFP4; both bit for bit as on the CPU, when weights
//! are loaded. Asynchronous on `stream`.

use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Values that share an absmax of `nf4_quantize`.
pub const NF4_BLOCK: usize = 64;
/// Values that share a scale of `nvfp4_quantize`.
pub const NVFP4_GROUP: usize = 16;

/// Where `nf4_quantize` writes.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Blocks {
    /// Two codes a byte, the first in the high half.
    pub codes: DeviceBytes,
    /// One f32 a block of 64 values.
    pub absmax: DeviceBytes,
    /// One f32: raised to the largest absmax.
    pub largest: DeviceBytes,
}

/// NF4 codes and absmax of `count` neighbouring values, as bitsandbytes makes them. `count` is a multiple of 64.
///
/// # Errors
/// `InvalidArgument` for a range too short or blocks that are not whole, `NotBuilt`, `Cuda`.
pub fn nf4_quantize(out: &Nf4Blocks, values: DeviceBytes, dtype: DType, count: usize, stream: Stream) -> Result<()> {
    const OP: &str = "nf4_quantize";
    if !count.is_multiple_of(NF4_BLOCK) {
        return Err(invalid(OP, format!("{count} values, expected whole blocks of {NF4_BLOCK}")));
    }
    check_range(OP, "values", values, count * dtype.size(), ALIGNMENT)?;
    check_range(OP, "codes", out.codes, count / 2, ALIGNMENT)?;
    check_range(OP, "absmax", out.absmax, count / NF4_BLOCK * 4, 4)?;
    check_range(OP, "largest", out.largest, 4, 4)?;
    let raw = sys::pagoda_nf4_quantize_params {
        codes: out.codes.as_ptr(),
        absmax: out.absmax.as_ptr(),
        largest: out.largest.as_ptr(),
        values: values.as_ptr::<std::ffi::c_void>(),
        count: values_count(OP, count)?,
        dtype: dtype.code(),
    };
    launch!(pagoda_nf4_quantize, raw, stream)
}

/// Raises `absmax`, one f32 that is not negative, to the largest magnitude of `count` values; by their bits, so that NaN is above infinity.
/// `count` is a multiple of 8.
///
/// # Errors
/// `InvalidArgument` for a range too short or an odd count, `NotBuilt`, `Cuda`.
pub fn absmax(absmax: DeviceBytes, values: DeviceBytes, dtype: DType, count: usize, stream: Stream) -> Result<()> {
    const OP: &str = "absmax";
    check_range(OP, "absmax", absmax, 4, 4)?;
    check_range(OP, "values", values, count * dtype.size(), ALIGNMENT)?;
    let raw = sys::pagoda_absmax_params {
        absmax: absmax.as_ptr(),
        values: values.as_ptr::<std::ffi::c_void>(),
        count: values_count(OP, count)?,
        dtype: dtype.code(),
    };
    launch!(pagoda_absmax, raw, stream)
}

/// Where `nvfp4_quantize` writes.
#[derive(Clone, Copy, Debug)]
pub struct Nvfp4Groups {
    /// Two codes a byte, the first in the low half.
    pub codes: DeviceBytes,
    /// One f32 a group of 16 values: what codes are multiplied with.
    pub scales: DeviceBytes,
    /// One f32: raised to the largest scale, to infinity where absmax is not finite.
    pub largest: DeviceBytes,
}

/// e2m1 codes of `count` neighbouring values, and scales that are e4m3 over 448 * 6 / absmax. `largest_value` is the f32 of `absmax` for all
/// values that share it. `count` is a multiple of 16.
///
/// # Errors
/// `InvalidArgument` for a range too short or groups that are not whole, `NotBuilt`, `Cuda`.
pub fn nvfp4_quantize(
    out: &Nvfp4Groups,
    largest_value: DeviceBytes,
    values: DeviceBytes,
    dtype: DType,
    count: usize,
    stream: Stream,
) -> Result<()> {
    const OP: &str = "nvfp4_quantize";
    if !count.is_multiple_of(NVFP4_GROUP) {
        return Err(invalid(OP, format!("{count} values, expected whole groups of {NVFP4_GROUP}")));
    }
    check_range(OP, "values", values, count * dtype.size(), ALIGNMENT)?;
    check_range(OP, "absmax", largest_value, 4, 4)?;
    check_range(OP, "codes", out.codes, count / 2, ALIGNMENT)?;
    check_range(OP, "scales", out.scales, count / NVFP4_GROUP * 4, 4)?;
    check_range(OP, "largest", out.largest, 4, 4)?;
    let raw = sys::pagoda_nvfp4_quantize_params {
        codes: out.codes.as_ptr(),
        scales: out.scales.as_ptr(),
        largest: out.largest.as_ptr(),
        absmax: largest_value.as_ptr::<f32>(),
        values: values.as_ptr::<std::ffi::c_void>(),
        count: values_count(OP, count)?,
        dtype: dtype.code(),
    };
    launch!(pagoda_nvfp4_quantize, raw, stream)
}

fn values_count(op: &'static str, count: usize) -> Result<i64> {
    i64::try_from(count).map_err(|_| invalid(op, format!("{count} values")))
}
