//! Products of rows in groups, each group with a matrix of its own (cuda/gemm/grouped.cu). Asynchronous on `stream`.

use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Which rows use which matrix.
#[derive(Clone, Copy, Debug)]
pub struct RowGroups {
    /// `[num_groups + 1]` i32: rows `offsets[g] .. offsets[g + 1]` use matrix g.
    pub offsets: DeviceBytes,
    /// Matrices.
    pub num_groups: usize,
    /// Elements from one matrix to the next.
    pub w_stride: usize,
}

/// Row r of the product reads `x[map[r] / div]`.
#[derive(Clone, Copy, Debug)]
pub struct RowMap {
    /// `[num_rows]` i32.
    pub map: DeviceBytes,
    /// At least 1.
    pub div: usize,
}

/// Operands of `grouped_gemm`.
#[derive(Clone, Copy, Debug)]
pub struct GroupedGemm {
    /// `[num_rows, n]` of row stride `ld_out`, `out_dtype`.
    pub out: DeviceBytes,
    /// `[any, k]` bf16.
    pub x: DeviceBytes,
    /// `[n, k]` bf16, one a group.
    pub w: DeviceBytes,
    /// None: one group.
    pub groups: Option<RowGroups>,
    /// None: row r reads x[r].
    pub rows: Option<RowMap>,
    /// Rows of out.
    pub num_rows: usize,
    /// Rows of a matrix.
    pub n: usize,
    /// Columns of x and w, a multiple of 8.
    pub k: usize,
    /// Elements between two rows of out.
    pub ld_out: usize,
    /// F32 or BF16.
    pub out_dtype: DType,
}

/// The product of rows in groups, each with a matrix of its own (experts).
///
/// # Errors
/// `InvalidArgument` for a range too short, `Unsupported` for a shape without kernel, `NotBuilt`, `Cuda`.
pub fn grouped_gemm(p: &GroupedGemm, stream: Stream) -> Result<()> {
    const OP: &str = "grouped_gemm";
    let x_rows = if p.rows.is_some() { 0 } else { p.num_rows };
    check_range(OP, "x", p.x, x_rows * p.k * 2, ALIGNMENT)?;
    check_product(OP, (p.out, p.x, p.w), (p.num_rows, p.n, 0), p.ld_out, p.out_dtype)?;
    let (num_groups, w_stride) = p.groups.map_or((1, 0), |g| (g.num_groups, g.w_stride));
    if num_groups == 0 {
        return Err(invalid(OP, "0 groups".into()));
    }
    check_range(OP, "w", p.w, ((num_groups - 1) * w_stride + p.n * p.k) * 2, ALIGNMENT)?;
    if let Some(groups) = p.groups {
        check_range(OP, "offsets", groups.offsets, (groups.num_groups + 1) * 4, 4)?;
    }
    if let Some(rows) = p.rows {
        check_range(OP, "row map", rows.map, p.num_rows * 4, 4)?;
    }
    let pointer = |range: Option<DeviceBytes>| range.map_or(std::ptr::null(), |r| r.as_ptr::<i32>().cast_const());
    let raw = sys::pagoda_grouped_gemm_params {
        out: p.out.as_ptr(),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        w: p.w.as_ptr::<std::ffi::c_void>(),
        bias: std::ptr::null(),
        row_map: pointer(p.rows.map(|r| r.map)),
        offsets: pointer(p.groups.map(|g| g.offsets)),
        w_stride: w_stride as i64,
        num_rows: int(OP, "num_rows", p.num_rows)?,
        num_groups: int(OP, "num_groups", num_groups)?,
        n: int(OP, "n", p.n)?,
        k: int(OP, "k", p.k)?,
        ld_out: int(OP, "ld_out", p.ld_out)?,
        row_div: int(OP, "row_div", p.rows.map_or(1, |r| r.div))?,
        out_dtype: p.out_dtype.code(),
    };
    launch!(pagoda_grouped_gemm, raw, stream)
}

fn check_product(
    op: &'static str,
    (out, x, w): (DeviceBytes, DeviceBytes, DeviceBytes),
    (rows, n, k): (usize, usize, usize),
    ld_out: usize,
    out_dtype: DType,
) -> Result<()> {
    if n == 0 || ld_out < n {
        return Err(invalid(op, format!("n {n}, row stride {ld_out}")));
    }
    let out_elements = if rows == 0 { 0 } else { (rows - 1) * ld_out + n };
    check_range(op, "out", out, out_elements * out_dtype.size(), 4)?;
    check_range(op, "x", x, rows * k * 2, ALIGNMENT)?;
    check_range(op, "w", w, n * k * 2, ALIGNMENT)
}
