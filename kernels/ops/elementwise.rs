//! Row-wise and element-wise ops: for now the RMS norms of a decoder (cuda/norm.cu).

use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, launch};
use crate::heuristics;
use crate::status::{KernelError, Result};
use crate::sys;

const OP: &str = "rms_norm";

/// Which norm, with what it reads and writes beside `x`. `norm(v)[i] = v[i] / sqrt(mean(v^2) + eps) * weight[i]`.
/// The residual stream has a type of its own: it is `x` of a plain norm and `residual` of the others; everything else is bf16.
#[derive(Clone, Copy, Debug)]
pub enum RmsNorm {
    /// out = norm(x). `out` may be `x`.
    Plain {
        /// `[num_tokens, hidden]`.
        out: DeviceBytes,
    },
    /// residual += x; out = norm(residual).
    AddThenNorm {
        /// `[num_tokens, hidden]`.
        out: DeviceBytes,
        /// `[num_tokens, hidden]`.
        residual: DeviceBytes,
    },
    /// residual += norm(x).
    NormThenAdd {
        /// `[num_tokens, hidden]`.
        residual: DeviceBytes,
    },
}

/// Operands and shape of one RMS norm; matrices are row-major without gaps and aligned to 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormParams {
    /// Form of the norm, its output and residual.
    pub norm: RmsNorm,
    /// `[num_tokens, hidden]`.
    pub x: DeviceBytes,
    /// `[hidden]` f32.
    pub weight: DeviceBytes,
    /// Rows.
    pub num_tokens: usize,
    /// Columns.
    pub hidden: usize,
    /// Inside the root.
    pub eps: f32,
    /// Of the residual stream: f32 or bf16.
    pub stream_dtype: DType,
}

/// RMS norm of every row, in f32 (HF `LlamaRMSNorm`). Asynchronous on `stream`.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `Unsupported` for a row length no kernel has, `NotBuilt`, `Cuda`.
pub fn rms_norm(params: &RmsNormParams, stream: Stream) -> Result<()> {
    let raw = lower(params)?;
    launch!(pagoda_rms_norm, raw, stream)
}

/// Checks everything that pagoda.h asks for and fills its struct.
fn lower(p: &RmsNormParams) -> Result<sys::pagoda_rms_norm_params> {
    let row_bytes = p.hidden.saturating_mul(2);
    let num_threads = heuristics::rms_norm_threads(row_bytes).and_then(|threads| i32::try_from(threads).ok());
    let (Some(num_threads), Ok(hidden), Ok(num_tokens)) = (num_threads, i32::try_from(p.hidden), i32::try_from(p.num_tokens)) else {
        return Err(KernelError::Unsupported { op: OP, reason: format!("{} x {} {:?}", p.num_tokens, p.hidden, p.stream_dtype) });
    };
    if !(p.eps.is_finite() && p.eps >= 0.0) {
        return Err(invalid(format!("eps {}, expected >= 0", p.eps)));
    }
    let matrix_bytes = p.num_tokens.saturating_mul(row_bytes);
    let stream_bytes = matrix_bytes / 2 * p.stream_dtype.size();
    let x_bytes = if matches!(p.norm, RmsNorm::Plain { .. }) { stream_bytes } else { matrix_bytes };
    check_range(OP, "x", p.x, x_bytes, ALIGNMENT)?;
    check_range(OP, "weight", p.weight, p.hidden * 4, ALIGNMENT)?;
    let (kind, out, residual) = match p.norm {
        RmsNorm::Plain { out } => (sys::PAGODA_NORM, Some(out), None),
        RmsNorm::AddThenNorm { out, residual } => (sys::PAGODA_ADD_NORM, Some(out), Some(residual)),
        RmsNorm::NormThenAdd { residual } => (sys::PAGODA_NORM_ADD, None, Some(residual)),
    };
    for (name, range, bytes) in [("out", out, matrix_bytes), ("residual", residual, stream_bytes)] {
        range.map_or(Ok(()), |range| check_range(OP, name, range, bytes, ALIGNMENT))?;
    }
    let pointer = |range: Option<DeviceBytes>| range.map_or(std::ptr::null_mut(), |r| r.as_ptr());
    Ok(sys::pagoda_rms_norm_params {
        out: pointer(out),
        residual: pointer(residual),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        weight: p.weight.as_ptr::<f32>(),
        num_tokens: i64::from(num_tokens),
        hidden,
        num_threads,
        eps: p.eps,
        stream_dtype: p.stream_dtype.code(),
        kind,
    })
}

fn invalid(reason: String) -> KernelError {
    KernelError::InvalidArgument { op: OP, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    fn params() -> RmsNormParams {
        let matrix = range(0x1000, 3 * 64 * 2);
        RmsNormParams {
            norm: RmsNorm::AddThenNorm { out: matrix, residual: range(0x2000, 3 * 64 * 4) },
            x: matrix,
            weight: range(0x3000, 64 * 4),
            num_tokens: 3,
            hidden: 64,
            eps: 1e-5,
            stream_dtype: DType::F32,
        }
    }

    #[test]
    fn a_valid_call_is_lowered() {
        let raw = lower(&params()).expect("valid");
        assert_eq!((raw.num_tokens, raw.hidden, raw.num_threads, raw.kind), (3, 64, 32, sys::PAGODA_ADD_NORM));
        assert_eq!((raw.x as usize, raw.residual as usize, raw.stream_dtype), (0x1000, 0x2000, sys::PAGODA_F32));
    }

    #[test]
    fn wrong_arguments_are_named() {
        type Change = fn(&mut RmsNormParams);
        let cases: [(Change, &str); 8] = [
            (|p| p.hidden = 63, "unsupported: 3 x 63"),
            (|p| p.hidden = 1 << 20, "unsupported: 3 x 1048576"),
            (|p| p.num_tokens = 4, "x holds 384 bytes, needs 512"),
            (|p| p.weight = range(0x3000, 255), "weight holds 255 bytes, needs 256"),
            (|p| (p.x, p.norm) = (range(0x1000, 768), RmsNorm::Plain { out: range(0x1008, 384) }), "out is at 0x1008"),
            (|p| p.norm = RmsNorm::NormThenAdd { residual: range(0, 768) }, "residual is at 0x0"),
            (|p| p.norm = RmsNorm::NormThenAdd { residual: range(0x2000, 384) }, "residual holds 384 bytes, needs 768"),
            (|p| p.eps = f32::NAN, "eps NaN"),
        ];
        for (change, expected) in cases {
            let mut p = params();
            change(&mut p);
            let message = lower(&p).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message} does not say {expected}");
        }
    }
}
