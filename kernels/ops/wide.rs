//! Products of many tokens by our own kernel (cuda/gemm/wide.cu): compute capability 9.0. Asynchronous on `stream`, may be captured.

use super::gemm::{Epilogue, Start};
use super::{ALIGNMENT, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::heuristics::WidePlan;
use crate::status::Result;
use crate::sys;

/// Operands of `wide_gemm`: `out[t, i] = epilogue(sum_k x[t, k] * w[i, k] + bias[i])`; sums in f32.
#[derive(Clone, Copy, Debug)]
pub struct WideGemm {
    /// `[num_rows, columns]` bf16 of row stride `ld_out`.
    pub out: DeviceBytes,
    /// `[num_rows, k]` bf16.
    pub x: DeviceBytes,
    /// `[num_groups, n, k]` bf16.
    pub w: DeviceBytes,
    /// `[n]` f32.
    pub bias: Option<DeviceBytes>,
    /// `[num_groups + 1]` i32 and the number of groups: rows `offsets[g] .. offsets[g + 1]` use matrix g.
    pub groups: Option<(DeviceBytes, usize)>,
    /// Rows of x and out.
    pub num_rows: usize,
    /// Rows of a matrix.
    pub n: usize,
    /// Columns of x and w, a multiple of 8.
    pub k: usize,
    /// Elements from one row of `out` to the next, a multiple of 8.
    pub ld_out: usize,
    /// What is made of the sums.
    pub epilogue: Epilogue,
    /// From `heuristics`.
    pub plan: WidePlan,
    /// Relation to the kernel before it.
    pub start: Start,
}

/// The product.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `Unsupported` for a shape, plan or GPU without kernel, `NotBuilt`, `Cuda`.
pub fn wide_gemm(p: &WideGemm, stream: Stream) -> Result<()> {
    let raw = lower(p, 2)?;
    launch!(pagoda_wide_gemm, raw, stream)
}

/// Checks everything that pagoda.h asks for and fills its struct; elements of x and w have `element_bytes`.
pub(super) fn lower(p: &WideGemm, element_bytes: usize) -> Result<sys::pagoda_wide_gemm_params> {
    const OP: &str = "wide_gemm";
    let num_groups = p.groups.map_or(1, |(_, num_groups)| num_groups);
    let gated = p.epilogue == Epilogue::SiluMul;
    let num_cols = if gated { p.n / 2 } else { p.n };
    if p.n == 0 || num_groups == 0 || p.ld_out < num_cols || (gated && !p.n.is_multiple_of(2)) {
        return Err(invalid(OP, format!("{num_groups} groups of {} rows, row stride {}, {:?}", p.n, p.ld_out, p.epilogue)));
    }
    let out_elements = if p.num_rows == 0 { 0 } else { (p.num_rows - 1) * p.ld_out + num_cols };
    check_range(OP, "out", p.out, out_elements * 2, ALIGNMENT)?;
    check_range(OP, "x", p.x, p.num_rows * p.k * element_bytes, ALIGNMENT)?;
    check_range(OP, "w", p.w, num_groups * p.n * p.k * element_bytes, ALIGNMENT)?;
    p.bias.map_or(Ok(()), |bias| check_range(OP, "bias", bias, p.n * 4, 4))?;
    p.groups.map_or(Ok(()), |(offsets, _)| check_range(OP, "offsets", offsets, (num_groups + 1) * 4, 4))?;
    Ok(sys::pagoda_wide_gemm_params {
        out: p.out.as_ptr(),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        w: p.w.as_ptr::<std::ffi::c_void>(),
        bias: p.bias.map_or(std::ptr::null(), |bias| bias.as_ptr::<f32>()),
        offsets: p.groups.map_or(std::ptr::null(), |(offsets, _)| offsets.as_ptr::<i32>()),
        num_rows: int(OP, "num_rows", p.num_rows)?,
        num_groups: int(OP, "num_groups", num_groups)?,
        n: int(OP, "n", p.n)?,
        k: int(OP, "k", p.k)?,
        ld_out: int(OP, "ld_out", p.ld_out)?,
        gated: i32::from(gated),
        block_rows: int(OP, "block_rows", p.plan.block_rows as usize)?,
        block_cols: int(OP, "block_cols", p.plan.block_cols as usize)?,
        cluster: int(OP, "cluster", p.plan.cluster as usize)?,
        num_ranges: int(OP, "num_ranges", p.plan.num_ranges as usize)?,
        raster: int(OP, "raster", p.plan.raster as usize)?,
        max_ctas: int(OP, "max_ctas", p.plan.max_ctas as usize)?,
        programmatic: i32::from(p.start == Start::Early),
    })
}
