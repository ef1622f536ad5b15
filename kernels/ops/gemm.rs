//! Products of few tokens with a weight matrix (cuda/gemm/skinny.cu): decode steps, where reading the weights is all that counts.

use super::{DType, DeviceBytes, Stream};
use crate::heuristics::{SkinnyKernel, SkinnyPlan, SkinnyShape};
use crate::status::{KernelError, Result};
use crate::sys;

const OP: &str = "skinny_gemm";
const ALIGNMENT: u64 = 16;

/// What is made of a row of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// out = sums (+ bias) (+ residual): n columns.
    Plain,
    /// out = silu(gate) * up (+ residual): rows `0..n/2` of w are the gate, the others up; n / 2 columns.
    SiluMul,
}

/// When the kernel may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the work before it.
    InOrder,
    /// While the kernel before it ends (programmatic dependent launch): it reads weights early, everything else after that kernel.
    /// The kernel before it must itself have waited for its predecessor.
    Early,
}

/// Operands of `out[t, i] = epilogue(sum_k x[t, k] * w[i, k] + bias[i]) + residual[t, i]`; sums in f32.
#[derive(Clone, Copy, Debug)]
pub struct SkinnyGemmParams {
    /// `[num_tokens, columns]` of row stride `ld_out`, `out_dtype`.
    pub out: DeviceBytes,
    /// `[num_tokens, k]` bf16, aligned to 16 bytes.
    pub x: DeviceBytes,
    /// `[n, k]` bf16, aligned to 16 bytes.
    pub w: DeviceBytes,
    /// `[n]` f32.
    pub bias: Option<DeviceBytes>,
    /// Like `out`, and may be `out`.
    pub residual: Option<DeviceBytes>,
    /// Tokens, rows of w and their length.
    pub shape: SkinnyShape,
    /// Elements from one row of `out` to the next.
    pub ld_out: usize,
    /// Of `out` and `residual`: F32 or BF16.
    pub out_dtype: DType,
    /// What is made of the sums.
    pub epilogue: Epilogue,
    /// From `heuristics::skinny_plan`.
    pub plan: SkinnyPlan,
    /// Relation to the kernel before it.
    pub start: Start,
    /// None: one matrix for all tokens.
    pub groups: Option<SkinnyGroups>,
}

/// Tokens in groups (experts): those at `offsets[g] .. offsets[g + 1]` use matrix g of `w`, which is `[num_groups, n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct SkinnyGroups {
    /// `[num_groups + 1]` i32.
    pub offsets: DeviceBytes,
    /// Matrices, at most 512.
    pub num_groups: usize,
    /// Tokens of one group that a tile has room for: 8, 16, 32, 64, 128.
    pub block_tokens: usize,
}

/// The product. Asynchronous on `stream`, may be captured.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `Unsupported` for a shape or plan no kernel has, `NotBuilt`, `Cuda`.
pub fn skinny_gemm(params: &SkinnyGemmParams, stream: Stream) -> Result<()> {
    let raw = lower(params, 2)?;
    launch(&raw, stream, || format!("{params:?}"))
}

/// Checks everything that pagoda.h asks for and fills its struct; elements of w have `w_bytes`.
pub(super) fn lower(p: &SkinnyGemmParams, w_bytes: usize) -> Result<sys::pagoda_skinny_gemm_params> {
    let SkinnyShape { num_tokens, n, k } = p.shape;
    let num_groups = p.groups.map_or(1, |groups| groups.num_groups);
    let most = if p.groups.is_some() { i32::MAX as usize } else { 128 };
    if !(1..=most).contains(&num_tokens)
        || !(1..=512).contains(&num_groups)
        || n == 0
        || k == 0
        || !k.is_multiple_of(8)
        || p.out_dtype == DType::F16
    {
        return Err(unsupported(p));
    }
    let num_cols = match p.epilogue {
        Epilogue::Plain => n,
        Epilogue::SiluMul if n.is_multiple_of(2) => n / 2,
        Epilogue::SiluMul => return Err(invalid(format!("{n} rows of gate and up, expected an even number"))),
    };
    if p.ld_out < num_cols {
        return Err(invalid(format!("ld_out {}, expected at least {num_cols}", p.ld_out)));
    }
    let out_bytes = ((num_tokens - 1) * p.ld_out + num_cols).saturating_mul(p.out_dtype.size());
    check_range("out", p.out, out_bytes, p.out_dtype.size() as u64)?;
    check_range("x", p.x, num_tokens.saturating_mul(k) * 2, ALIGNMENT)?;
    check_range("w", p.w, n.saturating_mul(k).saturating_mul(w_bytes * num_groups), ALIGNMENT)?;
    p.groups.map_or(Ok(()), |groups| check_range("offsets", groups.offsets, (num_groups + 1) * 4, 4))?;
    p.bias.map_or(Ok(()), |bias| check_range("bias", bias, n * 4, 4))?;
    p.residual.map_or(Ok(()), |residual| check_range("residual", residual, out_bytes, p.out_dtype.size() as u64))?;
    let int = |v: usize| i32::try_from(v).map_err(|_| unsupported(p));
    Ok(sys::pagoda_skinny_gemm_params {
        out: p.out.as_ptr(),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        w: p.w.as_ptr::<std::ffi::c_void>(),
        bias: p.bias.map_or(std::ptr::null(), |bias| bias.as_ptr::<f32>()),
        residual: p.residual.map_or(std::ptr::null(), |residual| residual.as_ptr::<std::ffi::c_void>()),
        offsets: p.groups.map_or(std::ptr::null(), |groups| groups.offsets.as_ptr::<i32>()),
        num_tokens: int(num_tokens)?,
        n: int(n)?,
        k: int(k)?,
        ld_out: int(p.ld_out)?,
        out_dtype: p.out_dtype.code(),
        gated: i32::from(p.epilogue == Epilogue::SiluMul),
        kernel: match p.plan.kernel {
            SkinnyKernel::Gemv => sys::PAGODA_SKINNY_GEMV,
            SkinnyKernel::Sm80 => sys::PAGODA_SKINNY_SM80,
            SkinnyKernel::Sm90 => sys::PAGODA_SKINNY_SM90,
        },
        block_n: int(block_n(p))?,
        split_k: int(p.plan.split_k as usize)?,
        num_stages: int(p.plan.num_stages as usize)?,
        max_ctas: int(p.plan.max_ctas as usize)?,
        programmatic: i32::from(p.start == Start::Early),
        num_groups: int(num_groups)?,
        block_tokens: int(p.groups.map_or(0, |groups| groups.block_tokens))?,
    })
}

/// A warp of Gemv takes a gate and its up together.
fn block_n(p: &SkinnyGemmParams) -> usize {
    let block_n = p.plan.block_n as usize;
    if p.plan.kernel == SkinnyKernel::Gemv && p.epilogue == Epilogue::SiluMul { block_n.max(2) } else { block_n }
}

fn check_range(name: &str, range: DeviceBytes, needed: usize, alignment: u64) -> Result<()> {
    if range.len() < needed {
        return Err(invalid(format!("{name} holds {} bytes, needs {needed}", range.len())));
    }
    if !range.address().is_multiple_of(alignment) || range.address() == 0 {
        return Err(invalid(format!("{name} is at {:#x}, expected a multiple of {alignment}", range.address())));
    }
    Ok(())
}

fn invalid(reason: String) -> KernelError {
    KernelError::InvalidArgument { op: OP, reason }
}

fn unsupported(p: &SkinnyGemmParams) -> KernelError {
    let SkinnyShape { num_tokens, n, k } = p.shape;
    KernelError::Unsupported { op: OP, reason: format!("{num_tokens} x {n} x {k} to {:?}", p.out_dtype) }
}

#[cfg(have_cuda_kernels)]
fn launch(raw: &sys::pagoda_skinny_gemm_params, stream: Stream, shape: impl FnOnce() -> String) -> Result<()> {
    // SAFETY: `lower` checked shape, length and alignment; that ranges and stream are alive is the promise of their constructors.
    let status = unsafe { sys::pagoda_skinny_gemm(raw, stream.raw()) };
    crate::status::check(OP, status, shape)
}

#[cfg(not(have_cuda_kernels))]
fn launch(_raw: &sys::pagoda_skinny_gemm_params, _stream: Stream, _shape: impl FnOnce() -> String) -> Result<()> {
    Err(KernelError::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heuristics::{GpuClass, SumOrder, skinny_plan};

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    fn params() -> SkinnyGemmParams {
        let shape = SkinnyShape { num_tokens: 3, n: 32, k: 64 };
        let gpu = GpuClass { num_sms: 132, compute_capability: (9, 0) };
        SkinnyGemmParams {
            out: range(0x1000, (2 * 40 + 32) * 2),
            x: range(0x2000, 3 * 64 * 2),
            w: range(0x3000, 32 * 64 * 2),
            bias: Some(range(0x4000, 32 * 4)),
            residual: None,
            shape,
            ld_out: 40,
            out_dtype: DType::BF16,
            epilogue: Epilogue::Plain,
            plan: skinny_plan(shape, gpu, SumOrder::Fastest).expect("supported"),
            start: Start::Early,
            groups: None,
        }
    }

    #[test]
    fn a_valid_call_is_lowered() {
        let raw = lower(&params(), 2).expect("valid");
        assert_eq!((raw.num_tokens, raw.n, raw.k, raw.ld_out, raw.gated, raw.programmatic), (3, 32, 64, 40, 0, 1));
        assert_eq!((raw.kernel, raw.out_dtype, raw.residual.is_null()), (sys::PAGODA_SKINNY_SM90, sys::PAGODA_BF16, true));
    }

    #[test]
    fn wrong_arguments_are_named() {
        type Change = fn(&mut SkinnyGemmParams);
        let cases: [(Change, &str); 9] = [
            (|p| p.shape.num_tokens = 129, "unsupported: 129 x 32 x 64"),
            (|p| p.shape.num_tokens = 0, "unsupported: 0 x 32 x 64"),
            (|p| p.shape.k = 60, "unsupported: 3 x 32 x 60"),
            (|p| p.out_dtype = DType::F16, "to F16"),
            (|p| p.ld_out = 31, "ld_out 31, expected at least 32"),
            (|p| p.w = range(0x3000, 4095), "w holds 4095 bytes, needs 4096"),
            (|p| p.x = range(0x2008, 384), "x is at 0x2008"),
            (|p| p.residual = Some(range(0x5000, 223)), "residual holds 223 bytes, needs 224"),
            (|p| (p.shape.n, p.epilogue) = (31, Epilogue::SiluMul), "31 rows of gate and up"),
        ];
        for (change, expected) in cases {
            let mut p = params();
            change(&mut p);
            let message = lower(&p, 2).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message} does not say {expected}");
        }
    }
}
