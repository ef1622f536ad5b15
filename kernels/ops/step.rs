//! Ops on step metadata and on whole rows (cuda/step.cu, cuda/activation.cu). All are asynchronous on `stream`.

use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, launch};
use crate::status::Result;
use crate::sys;

/// token_ids[i] = last_tokens[token_source[i]] where token_source[i] >= 0; i < num_tokens.
///
/// # Errors
/// `InvalidArgument` for a range too short, `NotBuilt`, `Cuda`; so for every op here.
pub fn resolve_tokens(
    token_ids: DeviceBytes,
    token_source: DeviceBytes,
    last_tokens: DeviceBytes,
    num_tokens: usize,
    stream: Stream,
) -> Result<()> {
    const OP: &str = "resolve_tokens";
    check_range(OP, "token_ids", token_ids, num_tokens * 4, 4)?;
    check_range(OP, "token_source", token_source, num_tokens * 4, 4)?;
    check_range(OP, "last_tokens", last_tokens, 0, 4)?;
    let raw = sys::pagoda_resolve_tokens_params {
        token_ids: token_ids.as_ptr(),
        token_source: token_source.as_ptr::<i32>(),
        last_tokens: last_tokens.as_ptr::<i32>(),
        num_tokens: int(OP, "num_tokens", num_tokens)?,
    };
    launch!(pagoda_resolve_tokens, raw, stream)
}

/// dst[index[i]] = values[i] of i32; i < count; the indices are distinct and inside `dst`.
///
/// # Errors
/// See `resolve_tokens`.
pub fn scatter_ints(dst: DeviceBytes, index: DeviceBytes, values: DeviceBytes, count: usize, stream: Stream) -> Result<()> {
    const OP: &str = "scatter_ints";
    check_range(OP, "dst", dst, 0, 4)?;
    check_range(OP, "index", index, count * 4, 4)?;
    check_range(OP, "values", values, count * 4, 4)?;
    let raw = sys::pagoda_scatter_ints_params {
        dst: dst.as_ptr(),
        index: index.as_ptr::<i32>(),
        values: values.as_ptr::<i32>(),
        count: int(OP, "count", count)?,
    };
    launch!(pagoda_scatter_ints, raw, stream)
}

/// Operands of `gather_rows`.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows {
    /// `[num_rows, cols]`.
    pub out: DeviceBytes,
    /// bf16 or f32, at least as wide as the table's.
    pub out_dtype: DType,
    /// `[num_table_rows, cols]`.
    pub table: DeviceBytes,
    /// bf16 or f32.
    pub table_dtype: DType,
    /// `[num_rows]` i32.
    pub index: DeviceBytes,
    /// Rows to fetch.
    pub num_rows: usize,
    /// Rows there are.
    pub num_table_rows: usize,
    /// Elements of a row, a multiple of 8.
    pub cols: usize,
    /// Factor on every element.
    pub scale: f32,
}

/// out[i, :] = table[index[i], :] * scale; an index outside the table gives zeros.
///
/// # Errors
/// See `resolve_tokens`; `Unsupported` for a row that is no whole number of vectors.
pub fn gather_rows(p: &GatherRows, stream: Stream) -> Result<()> {
    const OP: &str = "gather_rows";
    check_range(OP, "out", p.out, p.num_rows * p.cols * p.out_dtype.size(), ALIGNMENT)?;
    check_range(OP, "table", p.table, p.num_table_rows * p.cols * p.table_dtype.size(), ALIGNMENT)?;
    check_range(OP, "index", p.index, p.num_rows * 4, 4)?;
    let raw = sys::pagoda_gather_rows_params {
        out: p.out.as_ptr(),
        table: p.table.as_ptr::<std::ffi::c_void>(),
        index: p.index.as_ptr::<i32>(),
        num_rows: int(OP, "num_rows", p.num_rows)?,
        num_table_rows: int(OP, "num_table_rows", p.num_table_rows)?,
        cols: int(OP, "cols", p.cols)?,
        scale: p.scale,
        out_dtype: p.out_dtype.code(),
        table_dtype: p.table_dtype.code(),
    };
    launch!(pagoda_gather_rows, raw, stream)
}

/// Function between gate and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// GELU with the error function.
    Gelu,
}

impl Activation {
    /// The value of pagoda.h.
    pub(super) const fn code(self) -> sys::pagoda_activation {
        match self {
            Activation::Silu => sys::PAGODA_SILU,
            Activation::GeluTanh => sys::PAGODA_GELU_TANH,
            Activation::Gelu => sys::PAGODA_GELU,
        }
    }
}

/// out[t, i] = act(gate_up[t, i]) * gate_up[t, cols + i]; out: `[num_tokens, cols]`, gate_up: `[num_tokens, 2 * cols]` bf16.
///
/// # Errors
/// See `gather_rows`.
pub fn gated_activation(
    out: DeviceBytes,
    gate_up: DeviceBytes,
    num_tokens: usize,
    cols: usize,
    activation: Activation,
    stream: Stream,
) -> Result<()> {
    const OP: &str = "gated_activation";
    check_range(OP, "out", out, num_tokens * cols * 2, ALIGNMENT)?;
    check_range(OP, "gate_up", gate_up, num_tokens * cols * 4, ALIGNMENT)?;
    let raw = sys::pagoda_gated_activation_params {
        out: out.as_ptr(),
        gate_up: gate_up.as_ptr::<std::ffi::c_void>(),
        num_tokens: int(OP, "num_tokens", num_tokens)?,
        cols: int(OP, "cols", cols)?,
        activation: activation.code(),
    };
    launch!(pagoda_gated_activation, raw, stream)
}

/// x = cap * tanh(x / cap); x: `[count]` f32.
///
/// # Errors
/// See `resolve_tokens`; `InvalidArgument` also for a cap that is not positive.
pub fn soft_cap(x: DeviceBytes, count: usize, cap: f32, stream: Stream) -> Result<()> {
    const OP: &str = "soft_cap";
    check_range(OP, "x", x, count * 4, 4)?;
    let raw = sys::pagoda_soft_cap_params { x: x.as_ptr(), count: i64::from(int(OP, "count", count)?), cap };
    launch!(pagoda_soft_cap, raw, stream)
}

/// out[t, i] += bias[i]; out: `[num_tokens, cols]` F32 or BF16, bias: `[cols]` f32.
///
/// # Errors
/// See `resolve_tokens`; `Unsupported` for other types.
pub fn add_bias(out: DeviceBytes, bias: DeviceBytes, num_tokens: usize, cols: usize, dtype: DType, stream: Stream) -> Result<()> {
    const OP: &str = "add_bias";
    check_range(OP, "out", out, num_tokens * cols * dtype.size(), ALIGNMENT)?;
    check_range(OP, "bias", bias, cols * 4, 4)?;
    let raw = sys::pagoda_add_bias_params {
        out: out.as_ptr(),
        bias: bias.as_ptr::<f32>(),
        num_tokens: int(OP, "num_tokens", num_tokens)?,
        cols: int(OP, "cols", cols)?,
        dtype: dtype.code(),
    };
    launch!(pagoda_add_bias, raw, stream)
}

/// Block dst = block src for every (src, dst) of `pairs` (`[num_pairs, 2]` i32); no block is both.
///
/// # Errors
/// See `resolve_tokens`; `Unsupported` for blocks that are no whole number of vectors.
pub fn copy_blocks(kv: DeviceBytes, pairs: DeviceBytes, num_pairs: usize, block_bytes: usize, stream: Stream) -> Result<()> {
    const OP: &str = "copy_blocks";
    check_range(OP, "kv", kv, block_bytes, ALIGNMENT)?;
    check_range(OP, "pairs", pairs, num_pairs * 8, 4)?;
    let raw = sys::pagoda_copy_blocks_params {
        kv: kv.as_ptr(),
        pairs: pairs.as_ptr::<i32>(),
        block_bytes: i64::from(int(OP, "block_bytes", block_bytes)?),
        num_pairs: int(OP, "num_pairs", num_pairs)?,
    };
    launch!(pagoda_copy_blocks, raw, stream)
}

/// out ^= all 32-bit words of `data`, read once by `num_ctas` CTAs as fast as memory can be read. `data`: a multiple of 16 bytes.
///
/// # Errors
/// See `resolve_tokens`.
pub fn xor_words(out: DeviceBytes, data: DeviceBytes, num_ctas: usize, stream: Stream) -> Result<()> {
    const OP: &str = "xor_words";
    check_range(OP, "out", out, 4, 4)?;
    check_range(OP, "data", data, data.len().next_multiple_of(ALIGNMENT as usize), ALIGNMENT)?;
    let num_bytes = data.len() as i64;
    let raw = sys::pagoda_xor_words_params { out: out.as_ptr(), data: data.as_ptr(), num_bytes, num_ctas: int(OP, "num_ctas", num_ctas)? };
    launch!(pagoda_xor_words, raw, stream)
}
