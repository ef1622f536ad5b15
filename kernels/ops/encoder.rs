//! Ops that encoders need beside those of decoders (cuda/encoder). All are asynchronous on `stream`; activations are bf16.

use super::step::Activation;
use super::{ALIGNMENT, DType, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::heuristics;
use crate::status::{KernelError, Result};
use crate::sys;

/// Sequences of a launch at most: a dimension of the grid.
pub const MAX_SEQS: usize = 65_535;
/// Head sizes that `encoder_attention` has kernels for.
pub const HEAD_DIMS: [usize; 5] = [16, 32, 64, 96, 128];

/// Operands of `layer_norm`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// `[num_tokens, hidden]`.
    pub out: DeviceBytes,
    /// `[num_tokens, hidden]`, becomes x + residual, which is then normed; None: x is.
    pub residual: Option<DeviceBytes>,
    /// `[num_tokens, hidden]`.
    pub x: DeviceBytes,
    /// `[hidden]` f32.
    pub weight: DeviceBytes,
    /// `[hidden]` f32.
    pub bias: DeviceBytes,
    /// Rows.
    pub num_tokens: usize,
    /// Columns, a multiple of 8.
    pub hidden: usize,
    /// Inside the root.
    pub eps: f32,
}

/// Layer norm of every row, in f32.
///
/// # Errors
/// `InvalidArgument` for a range too short or not aligned, `Unsupported` for a row length no kernel has, `NotBuilt`, `Cuda`; so for every
/// op here.
pub fn layer_norm(p: &LayerNorm, stream: Stream) -> Result<()> {
    const OP: &str = "layer_norm";
    let row_bytes = p.hidden.saturating_mul(2);
    let Some(num_threads) = heuristics::rms_norm_threads(row_bytes) else {
        return Err(KernelError::Unsupported { op: OP, reason: format!("rows of {}", p.hidden) });
    };
    if !(p.eps.is_finite() && p.eps >= 0.0) {
        return Err(invalid(OP, format!("eps {}, expected >= 0", p.eps)));
    }
    let bytes = p.num_tokens.saturating_mul(row_bytes);
    for (name, range) in [("out", Some(p.out)), ("residual", p.residual), ("x", Some(p.x))] {
        range.map_or(Ok(()), |range| check_range(OP, name, range, bytes, ALIGNMENT))?;
    }
    check_range(OP, "weight", p.weight, p.hidden * 4, ALIGNMENT)?;
    check_range(OP, "bias", p.bias, p.hidden * 4, ALIGNMENT)?;
    let raw = sys::pagoda_layer_norm_params {
        out: p.out.as_ptr(),
        residual: p.residual.map_or(std::ptr::null_mut(), |range| range.as_ptr()),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        weight: p.weight.as_ptr::<f32>(),
        bias: p.bias.as_ptr::<f32>(),
        num_tokens: int(OP, "num_tokens", p.num_tokens)?,
        hidden: int(OP, "hidden", p.hidden)?,
        num_threads: int(OP, "num_threads", num_threads as usize)?,
        eps: p.eps,
    };
    launch!(pagoda_layer_norm, raw, stream)
}

/// Operands of `add_rows`.
#[derive(Clone, Copy, Debug)]
pub struct AddRows {
    /// `[num_rows, cols]`.
    pub out: DeviceBytes,
    /// `[num_table_rows, cols]`.
    pub table: DeviceBytes,
    /// `[num_rows]` i32.
    pub index: DeviceBytes,
    /// Rows of `out`.
    pub num_rows: usize,
    /// Rows of the table.
    pub num_table_rows: usize,
    /// Elements of a row, a multiple of 8.
    pub cols: usize,
}

/// out[i, :] += table[index[i], :].
///
/// # Errors
/// See `layer_norm`.
pub fn add_rows(p: &AddRows, stream: Stream) -> Result<()> {
    const OP: &str = "add_rows";
    check_range(OP, "out", p.out, p.num_rows * p.cols * 2, ALIGNMENT)?;
    check_range(OP, "table", p.table, p.num_table_rows * p.cols * 2, ALIGNMENT)?;
    check_range(OP, "index", p.index, p.num_rows * 4, 4)?;
    let raw = sys::pagoda_add_rows_params {
        out: p.out.as_ptr(),
        table: p.table.as_ptr::<std::ffi::c_void>(),
        index: p.index.as_ptr::<i32>(),
        num_rows: int(OP, "num_rows", p.num_rows)?,
        num_table_rows: int(OP, "num_table_rows", p.num_table_rows)?,
        cols: int(OP, "cols", p.cols)?,
    };
    launch!(pagoda_add_rows, raw, stream)
}

/// x = act(x); x: `[count]`, a multiple of 8.
///
/// # Errors
/// See `layer_norm`.
pub fn activate(x: DeviceBytes, count: usize, activation: Activation, stream: Stream) -> Result<()> {
    const OP: &str = "activate";
    check_range(OP, "x", x, count * 2, ALIGNMENT)?;
    let count = i64::try_from(count).map_err(|_| invalid(OP, format!("count {count}")))?;
    let raw = sys::pagoda_activate_params { x: x.as_ptr(), count, activation: activation.code() };
    launch!(pagoda_activate, raw, stream)
}

/// Operands of `rotate`.
#[derive(Clone, Copy, Debug)]
pub struct Rotate {
    /// `[num_tokens, 3 * num_heads * head_dim]`.
    pub qkv: DeviceBytes,
    /// `[num_tokens]` i32, rows of the tables.
    pub positions: DeviceBytes,
    /// `[max_positions, head_dim / 2]` f32.
    pub cos: DeviceBytes,
    /// `[max_positions, head_dim / 2]` f32.
    pub sin: DeviceBytes,
    /// Rows.
    pub num_tokens: usize,
    /// Heads.
    pub num_heads: usize,
    /// Elements of a head, all of which rotate.
    pub head_dim: usize,
}

/// Rotates query and key heads in place; dimension i pairs with i + head_dim / 2.
///
/// # Errors
/// See `layer_norm`.
pub fn rotate(p: &Rotate, stream: Stream) -> Result<()> {
    const OP: &str = "rotate";
    check_range(OP, "qkv", p.qkv, p.num_tokens * 3 * p.num_heads * p.head_dim * 2, ALIGNMENT)?;
    check_range(OP, "positions", p.positions, p.num_tokens * 4, 4)?;
    check_range(OP, "cos", p.cos, p.head_dim / 2 * 4, 4)?;
    check_range(OP, "sin", p.sin, p.head_dim / 2 * 4, 4)?;
    let raw = sys::pagoda_rotate_params {
        qkv: p.qkv.as_ptr(),
        positions: p.positions.as_ptr::<i32>(),
        cos: p.cos.as_ptr::<f32>(),
        sin: p.sin.as_ptr::<f32>(),
        num_tokens: int(OP, "num_tokens", p.num_tokens)?,
        num_heads: int(OP, "num_heads", p.num_heads)?,
        head_dim: int(OP, "head_dim", p.head_dim)?,
    };
    launch!(pagoda_rotate, raw, stream)
}

/// Operands of `encoder_attention`.
#[derive(Clone, Copy, Debug)]
pub struct EncoderAttention {
    /// `[num_tokens, num_heads * head_dim]`.
    pub out: DeviceBytes,
    /// `[num_tokens, 3 * num_heads * head_dim]`.
    pub qkv: DeviceBytes,
    /// `[num_seqs + 1]` i32.
    pub cu_seqlens: DeviceBytes,
    /// Rows.
    pub num_tokens: usize,
    /// Sequences, at most `MAX_SEQS`.
    pub num_seqs: usize,
    /// Tokens of the longest.
    pub max_seq_len: usize,
    /// Heads.
    pub num_heads: usize,
    /// Elements of a head, one of `HEAD_DIMS`.
    pub head_dim: usize,
    /// Keys seen to both sides; None: all.
    pub radius: Option<usize>,
    /// Factor on q·k.
    pub scale: f32,
    /// `[num_heads, 2 * reach - 1]` f32 and reach, no less than `max_seq_len`: added to the scaled score of a key d positions behind its
    /// query, at `reach - 1 + d`.
    pub bias: Option<(DeviceBytes, usize)>,
}

/// Attention of every row over its own sequence, in both directions.
///
/// # Errors
/// See `layer_norm`; `Unsupported` also for a head size without a kernel.
pub fn encoder_attention(p: &EncoderAttention, stream: Stream) -> Result<()> {
    const OP: &str = "encoder_attention";
    if !HEAD_DIMS.contains(&p.head_dim) || p.num_seqs > MAX_SEQS {
        let reason =
            format!("heads of {}, {} sequences; expected heads of {HEAD_DIMS:?}, at most {MAX_SEQS} sequences", p.head_dim, p.num_seqs);
        return Err(KernelError::Unsupported { op: OP, reason });
    }
    let row_bytes = p.num_heads * p.head_dim * 2;
    check_range(OP, "out", p.out, p.num_tokens * row_bytes, ALIGNMENT)?;
    check_range(OP, "qkv", p.qkv, p.num_tokens * 3 * row_bytes, ALIGNMENT)?;
    check_range(OP, "cu_seqlens", p.cu_seqlens, (p.num_seqs + 1) * 4, 4)?;
    if let Some((bias, reach)) = p.bias {
        if reach < p.max_seq_len.max(1) {
            return Err(invalid(OP, format!("a bias that reaches {reach}, expected {}", p.max_seq_len)));
        }
        check_range(OP, "bias", bias, p.num_heads * (2 * reach - 1) * 4, 4)?;
    }
    let raw = sys::pagoda_encoder_attention_params {
        out: p.out.as_ptr(),
        qkv: p.qkv.as_ptr::<std::ffi::c_void>(),
        cu_seqlens: p.cu_seqlens.as_ptr::<i32>(),
        num_seqs: int(OP, "num_seqs", p.num_seqs)?,
        num_heads: int(OP, "num_heads", p.num_heads)?,
        head_dim: int(OP, "head_dim", p.head_dim)?,
        max_seq_len: int(OP, "max_seq_len", p.max_seq_len)?,
        radius: p.radius.map_or(Ok(-1), |radius| int(OP, "radius", radius))?,
        scale: p.scale,
        bias: p.bias.map_or(std::ptr::null(), |(bias, _)| bias.as_ptr::<f32>()),
        bias_reach: p.bias.map_or(Ok(0), |(_, reach)| int(OP, "reach", reach))?,
    };
    launch!(pagoda_encoder_attention, raw, stream)
}

/// How the rows of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolRowsBy {
    /// The first row.
    Cls,
    /// The last row.
    Last,
    /// Their mean.
    Mean,
    /// Their sum divided by the root of their number.
    MeanSqrtLen,
    /// The largest of each column.
    Max,
    /// The mean weighted by 1, 2, 3, ...
    WeightedMean,
}

/// Operands of `pool_rows`.
#[derive(Clone, Copy, Debug)]
pub struct PoolRows {
    /// `[num_seqs, cols]`.
    pub out: DeviceBytes,
    /// bf16 or f32.
    pub out_dtype: DType,
    /// `[num_tokens, cols]`.
    pub x: DeviceBytes,
    /// `[num_seqs + 1]` i32; no sequence is empty.
    pub cu_seqlens: DeviceBytes,
    /// Rows of `x`.
    pub num_tokens: usize,
    /// Sequences, at most `MAX_SEQS`.
    pub num_seqs: usize,
    /// Columns.
    pub cols: usize,
    /// How.
    pub by: PoolRowsBy,
}

/// One row a sequence.
///
/// # Errors
/// See `layer_norm`.
pub fn pool_rows(p: &PoolRows, stream: Stream) -> Result<()> {
    const OP: &str = "pool_rows";
    check_range(OP, "out", p.out, p.num_seqs * p.cols * p.out_dtype.size(), ALIGNMENT)?;
    check_range(OP, "x", p.x, p.num_tokens * p.cols * 2, ALIGNMENT)?;
    check_range(OP, "cu_seqlens", p.cu_seqlens, (p.num_seqs + 1) * 4, 4)?;
    let raw = sys::pagoda_pool_rows_params {
        out: p.out.as_ptr(),
        x: p.x.as_ptr::<std::ffi::c_void>(),
        cu_seqlens: p.cu_seqlens.as_ptr::<i32>(),
        num_seqs: int(OP, "num_seqs", p.num_seqs)?,
        cols: int(OP, "cols", p.cols)?,
        pooling: match p.by {
            PoolRowsBy::Cls => sys::PAGODA_POOL_CLS,
            PoolRowsBy::Last => sys::PAGODA_POOL_LAST,
            PoolRowsBy::Mean => sys::PAGODA_POOL_MEAN,
            PoolRowsBy::MeanSqrtLen => sys::PAGODA_POOL_MEAN_SQRT_LEN,
            PoolRowsBy::Max => sys::PAGODA_POOL_MAX,
            PoolRowsBy::WeightedMean => sys::PAGODA_POOL_WEIGHTED_MEAN,
        },
        out_dtype: p.out_dtype.code(),
    };
    launch!(pagoda_pool_rows, raw, stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(address: u64, len: usize) -> DeviceBytes {
        // SAFETY: the address is only checked, nothing is launched with it.
        unsafe { DeviceBytes::new(address, len) }
    }

    fn stream() -> Stream {
        // SAFETY: the default stream; wrong arguments are refused before anything is launched.
        unsafe { Stream::from_raw(std::ptr::null_mut()) }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let norm = LayerNorm {
            out: range(0x1000, 128),
            residual: Some(range(0x2000, 127)),
            x: range(0x3000, 128),
            weight: range(0x4000, 256),
            bias: range(0x5000, 256),
            num_tokens: 1,
            hidden: 64,
            eps: 1e-5,
        };
        let attention = EncoderAttention {
            out: range(0x1000, 2 * 64),
            qkv: range(0x2000, 6 * 64),
            cu_seqlens: range(0x3000, 8),
            num_tokens: 2,
            num_seqs: 2,
            max_seq_len: 1,
            num_heads: 1,
            head_dim: 32,
            radius: None,
            scale: 1.0,
            bias: None,
        };
        let cases = [
            (layer_norm(&norm, stream()), "residual holds 127 bytes, needs 128"),
            (layer_norm(&LayerNorm { hidden: 63, ..norm }, stream()), "rows of 63"),
            (layer_norm(&LayerNorm { eps: f32::NAN, ..norm }, stream()), "eps NaN"),
            (encoder_attention(&attention, stream()), "cu_seqlens holds 8 bytes, needs 12"),
            (
                encoder_attention(
                    &EncoderAttention { num_seqs: 1, max_seq_len: 2, bias: Some((range(0x4000, 8), 1)), ..attention },
                    stream(),
                ),
                "reaches 1, expected 2",
            ),
            (
                encoder_attention(
                    &EncoderAttention { num_seqs: 1, max_seq_len: 2, bias: Some((range(0x4000, 8), 2)), ..attention },
                    stream(),
                ),
                "bias holds 8 bytes, needs 12",
            ),
            (encoder_attention(&EncoderAttention { head_dim: 40, ..attention }, stream()), "heads of 40"),
            (activate(range(0x1008, 64), 32, Activation::Gelu, stream()), "x is at 0x1008"),
        ];
        for (outcome, expected) in cases {
            let message = outcome.expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
