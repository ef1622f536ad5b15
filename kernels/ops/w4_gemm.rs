//! Products of few tokens with 4-bit weights (cuda/gemm/w4.cu). Asynchronous on `stream`, may be captured.

use super::gemm::{Epilogue, Start};
use super::w4::{W4Layout, W4Matrix};
use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::heuristics::{MAX_W4_TOKENS, W4Kernel, W4Plan};
use crate::status::{KernelError, Result};
use crate::sys;

/// Where slabs of columns meet.
#[derive(Clone, Copy, Debug)]
pub struct W4Scratch {
    /// `W4Plan::partials_bytes`, of any content.
    pub partials: DeviceBytes,
    /// `W4Plan::counters_bytes`, zeroed once: every product leaves zeros.
    pub counters: DeviceBytes,
}

/// Operands of `out[t, i] = epilogue(sum_c x[t, c] * w[i, c] + bias[i]) + residual[t, i]`; sums in f32.
#[derive(Clone, Copy, Debug)]
pub struct W4Gemm {
    /// `[num_tokens, columns]` of row stride `ld_out`, `out_dtype`.
    pub out: DeviceBytes,
    /// `[num_tokens, k]` bf16, aligned to 16 bytes.
    pub x: DeviceBytes,
    /// `[n, k]`. `Epilogue::SiluMul` takes an interleaved matrix; of one with `Epilogue::Plain`, gates come first, then ups.
    pub w: W4Matrix,
    /// `[n]` f32, gates first.
    pub bias: Option<DeviceBytes>,
    /// Like `out`, and may be `out`.
    pub residual: Option<DeviceBytes>,
    /// For plans that need it; used by one product of a stream at a time.
    pub scratch: W4Scratch,
    /// Rows of x and out, 1..=`MAX_W4_TOKENS`.
    pub num_tokens: usize,
    /// Elements from one row of `out` to the next.
    pub ld_out: usize,
    /// Of `out` and `residual`: F32 or BF16.
    pub out_dtype: DType,
    /// What is made of the sums.
    pub epilogue: Epilogue,
    /// From `heuristics::w4_plan`.
    pub plan: W4Plan,
    /// Relation to the kernel before it.
    pub start: Start,
}

/// Where a product with tiles goes and what is added on the way: fields of one name in all of them.
pub(super) struct W4Output {
    pub out: DeviceBytes,
    pub bias: Option<DeviceBytes>,
    pub residual: Option<DeviceBytes>,
    pub num_tokens: usize,
    pub ld_out: usize,
    pub out_dtype: DType,
    pub epilogue: Epilogue,
}

impl W4Output {
    /// Whether every range holds what a matrix of that layout makes of one token or more.
    pub fn check(&self, op: &'static str, layout: &W4Layout) -> Result<()> {
        let W4Output { out, bias, residual, num_tokens, ld_out, out_dtype, epilogue } = *self;
        let num_cols = match epilogue {
            Epilogue::Plain => layout.n,
            Epilogue::SiluMul if layout.interleaved => layout.n / 2,
            Epilogue::SiluMul => return Err(invalid(op, "a gate and an up that are not interleaved".into())),
        };
        if ld_out < num_cols {
            return Err(invalid(op, format!("ld_out {ld_out}, expected at least {num_cols}")));
        }
        let out_bytes = ((num_tokens - 1) * ld_out + num_cols).saturating_mul(out_dtype.size());
        check_range(op, "out", out, out_bytes, out_dtype.size() as u64)?;
        bias.map_or(Ok(()), |bias| check_range(op, "bias", bias, layout.n * 4, 4))?;
        residual.map_or(Ok(()), |residual| check_range(op, "residual", residual, out_bytes, out_dtype.size() as u64))
    }
}

/// The product.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned or a plan out of range, `Unsupported` for a shape no kernel has, `NotBuilt`, `Cuda`.
pub fn w4_gemm(p: &W4Gemm, stream: Stream) -> Result<()> {
    let raw = lower(p)?;
    launch!(pagoda_w4_gemm, raw, stream)
}

/// Checks everything that pagoda_w4_gemm.h asks for and fills its struct.
fn lower(p: &W4Gemm) -> Result<sys::pagoda_w4_gemm_params> {
    const OP: &str = "w4_gemm";
    let layout = &p.w.layout;
    if !(1..=MAX_W4_TOKENS).contains(&p.num_tokens) || p.out_dtype == DType::F16 {
        let reason = format!("{} x {} x {} to {:?}", p.num_tokens, layout.n, layout.k, p.out_dtype);
        return Err(KernelError::Unsupported { op: OP, reason });
    }
    let W4Gemm { out, bias, residual, num_tokens, ld_out, out_dtype, epilogue, .. } = *p;
    W4Output { out, bias, residual, num_tokens, ld_out, out_dtype, epilogue }.check(OP, layout)?;
    check_range(OP, "x", p.x, p.num_tokens.saturating_mul(layout.k) * 2, ALIGNMENT)?;
    let plan = &p.plan;
    let (partials, counters) = (plan.partials_bytes(layout.n), plan.counters_bytes());
    check_range(OP, "partials", p.scratch.partials, partials, ALIGNMENT)?;
    check_range(OP, "counters", p.scratch.counters, counters, 4)?;
    Ok(sys::pagoda_w4_gemm_params {
        w: p.w.lower(OP)?,
        out: p.out.as_ptr(),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        bias: p.bias.map_or(std::ptr::null(), |bias| bias.as_ptr::<f32>()),
        residual: p.residual.map_or(std::ptr::null(), |residual| residual.as_ptr::<std::ffi::c_void>()),
        partials: p.scratch.partials.as_ptr(),
        counters: p.scratch.counters.as_ptr(),
        num_tokens: int(OP, "num_tokens", p.num_tokens)?,
        ld_out: int(OP, "ld_out", p.ld_out)?,
        out_dtype: p.out_dtype.code(),
        gated: i32::from(p.epilogue == Epilogue::SiluMul),
        kernel: match plan.kernel {
            W4Kernel::Sm80 => sys::PAGODA_W4_SM80,
            W4Kernel::Columns => sys::PAGODA_W4_COLUMNS,
            W4Kernel::Rows => sys::PAGODA_W4_ROWS,
        },
        split_k: int(OP, "split_k", plan.split_k)?,
        num_stages: int(OP, "num_stages", plan.num_stages)?,
        num_warps: int(OP, "num_warps", plan.num_warps)?,
        max_ctas: int(OP, "max_ctas", plan.max_ctas)?,
        programmatic: i32::from(p.start == Start::Early),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heuristics::{GpuClass, SumOrder, W4Shape, w4_plan};

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    fn params() -> W4Gemm {
        let layout = W4Layout { n: 32, k: 128, group: 64, zeros: false, interleaved: true };
        let gpu = GpuClass { num_sms: 132, compute_capability: (9, 0) };
        let shape = W4Shape { num_tokens: 3, n: 32, k: 128, tile_bytes: layout.tile_bytes(), fits_columns: true };
        W4Gemm {
            out: range(0x1000, (2 * 40 + 32) * 2),
            x: range(0x2000, 3 * 128 * 2),
            w: W4Matrix { tiles: range(0x3000, layout.bytes()), layout, book: [0.5; 16], scale_factor: 0.25, short_scales: false },
            bias: Some(range(0x4000, 32 * 4)),
            residual: None,
            scratch: W4Scratch { partials: range(0x6000, 0), counters: range(0x7000, 0) },
            num_tokens: 3,
            ld_out: 40,
            out_dtype: DType::BF16,
            epilogue: Epilogue::Plain,
            plan: w4_plan(shape, gpu, SumOrder::Fastest).expect("supported"),
            start: Start::Early,
        }
    }

    #[test]
    fn a_valid_call_is_lowered() {
        let raw = lower(&params()).expect("valid");
        assert_eq!((raw.num_tokens, raw.w.n, raw.w.k, raw.ld_out, raw.gated, raw.programmatic), (3, 32, 128, 40, 0, 1));
        assert_eq!((raw.kernel, raw.out_dtype, raw.residual.is_null()), (sys::PAGODA_W4_COLUMNS, sys::PAGODA_BF16, true));
        let gated = W4Gemm { epilogue: Epilogue::SiluMul, ..params() };
        assert_eq!(lower(&gated).expect("valid").gated, 1);
    }

    #[test]
    fn wrong_arguments_are_named() {
        type Change = fn(&mut W4Gemm);
        let cases: [(Change, &str); 10] = [
            (|p| p.num_tokens = 65, "unsupported: 65 x 32 x 128"),
            (|p| p.num_tokens = 0, "unsupported: 0 x 32 x 128"),
            (|p| p.out_dtype = DType::F16, "to F16"),
            (|p| p.ld_out = 31, "ld_out 31, expected at least 32"),
            (|p| p.w.tiles = range(0x3000, 2175), "tiles holds 2175 bytes, needs 2176"),
            (|p| p.x = range(0x2008, 768), "x is at 0x2008"),
            (|p| p.residual = Some(range(0x5000, 223)), "residual holds 223 bytes, needs 224"),
            (|p| p.plan.split_k = 2, "partials holds 0 bytes, needs 2048"),
            (|p| (p.plan.split_k, p.scratch.partials) = (2, range(0x6000, 2048)), "counters holds 0 bytes"),
            (|p| (p.w.layout.interleaved, p.epilogue) = (false, Epilogue::SiluMul), "not interleaved"),
        ];
        for (change, expected) in cases {
            let mut p = params();
            change(&mut p);
            let message = lower(&p).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message} does not say {expected}");
        }
    }
}
