//! Rotation, the paged KV cache and attention over it (cuda/rope_kv.cu, cuda/attention/prefill.cu; decode: attention_decode.rs). All are asynchronous on `stream`.

use super::{ALIGNMENT, DeviceBytes, Stream, check_range, int, invalid, launch};
use crate::status::Result;
use crate::sys;

/// Heads of a layer and the shape of its cache: `[num_blocks][k, v][num_kv_heads][block_size][head_dim]` bf16, or e4m3 with scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads, a divisor.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of a block.
    pub block_size: usize,
}

impl HeadShape {
    /// Elements of a qkv row.
    pub fn qkv_cols(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Elements of a block of the cache.
    fn block_elements(&self) -> usize {
        2 * self.num_kv_heads * self.block_size * self.head_dim
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let divides = self.num_kv_heads > 0 && self.num_heads > 0 && self.head_dim > 0 && self.num_heads.is_multiple_of(self.num_kv_heads);
        if divides && self.block_size > 0 { Ok(()) } else { Err(invalid(op, format!("{self:?}"))) }
    }
}

/// Operands of `rope_kv`.
#[derive(Clone, Copy, Debug)]
pub struct RopeKv {
    /// `[num_tokens, qkv_cols]` bf16.
    pub qkv: DeviceBytes,
    /// The layer's cache.
    pub kv: DeviceBytes,
    /// `[k, v][num_kv_heads]` f32: the cache is e4m3, of elements divided by them. None: it is bf16.
    pub kv_scales: Option<DeviceBytes>,
    /// `[num_tokens]` i32.
    pub positions: DeviceBytes,
    /// `[num_tokens]` i32.
    pub slot_mapping: DeviceBytes,
    /// `[max_positions, rotary_dim / 2]` f32.
    pub cos: DeviceBytes,
    /// The same.
    pub sin: DeviceBytes,
    /// `[head_dim]` f32.
    pub q_norm: Option<DeviceBytes>,
    /// `[head_dim]` f32.
    pub k_norm: Option<DeviceBytes>,
    /// Of the norms.
    pub eps: f32,
    /// Tokens of the step.
    pub num_tokens: usize,
    /// Heads and block size.
    pub shape: HeadShape,
    /// Dimensions that rotate, even.
    pub rotary_dim: usize,
    /// 2i pairs with 2i + 1 instead of i with i + rotary_dim / 2.
    pub interleaved: bool,
}

/// Norms and rotates q and k of every token in place, and stores k and v in their slots.
///
/// # Errors
/// `InvalidArgument` for a range too short, `Unsupported` for a head of more than 256, `NotBuilt`, `Cuda`.
pub fn rope_kv(p: &RopeKv, stream: Stream) -> Result<()> {
    const OP: &str = "rope_kv";
    p.shape.check(OP)?;
    check_range(OP, "qkv", p.qkv, p.num_tokens * p.shape.qkv_cols() * 2, ALIGNMENT)?;
    check_range(OP, "kv", p.kv, 0, ALIGNMENT)?;
    let kv_scales = lower_scales(OP, p.kv_scales, &p.shape)?;
    for (name, range, needed) in [
        ("positions", p.positions, p.num_tokens * 4),
        ("slot_mapping", p.slot_mapping, p.num_tokens * 4),
        ("cos", p.cos, p.rotary_dim * 2),
        ("sin", p.sin, p.rotary_dim * 2),
        ("q_norm", p.q_norm.unwrap_or(p.cos), p.q_norm.map_or(0, |_| p.shape.head_dim * 4)),
        ("k_norm", p.k_norm.unwrap_or(p.cos), p.k_norm.map_or(0, |_| p.shape.head_dim * 4)),
    ] {
        check_range(OP, name, range, needed, 4)?;
    }
    let optional = |range: Option<DeviceBytes>| range.map_or(std::ptr::null(), |r| r.as_ptr::<f32>().cast_const());
    let raw = sys::pagoda_rope_kv_params {
        qkv: p.qkv.as_ptr(),
        kv: p.kv.as_ptr(),
        kv_scales,
        positions: p.positions.as_ptr::<i32>(),
        slot_mapping: p.slot_mapping.as_ptr::<i32>(),
        cos: p.cos.as_ptr::<f32>(),
        sin: p.sin.as_ptr::<f32>(),
        q_norm: optional(p.q_norm),
        k_norm: optional(p.k_norm),
        num_tokens: int(OP, "num_tokens", p.num_tokens)?,
        num_heads: int(OP, "num_heads", p.shape.num_heads)?,
        num_kv_heads: int(OP, "num_kv_heads", p.shape.num_kv_heads)?,
        head_dim: int(OP, "head_dim", p.shape.head_dim)?,
        rotary_dim: int(OP, "rotary_dim", p.rotary_dim)?,
        interleaved: i32::from(p.interleaved),
        block_size: int(OP, "block_size", p.shape.block_size)?,
        eps: p.eps,
    };
    launch!(pagoda_rope_kv, raw, stream)
}

fn lower_scales(op: &'static str, scales: Option<DeviceBytes>, shape: &HeadShape) -> Result<*const f32> {
    scales.map_or(Ok(()), |scales| check_range(op, "kv_scales", scales, 2 * shape.num_kv_heads * 4, 4))?;
    Ok(scales.map_or(std::ptr::null(), |scales| scales.as_ptr::<f32>()))
}

/// Operands of `attention_prefill`, and of `attention_decode` with more.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// `[num_tokens, num_heads * head_dim]` bf16.
    pub out: DeviceBytes,
    /// `[num_tokens, qkv_cols]` bf16.
    pub qkv: DeviceBytes,
    /// The layer's cache.
    pub kv: DeviceBytes,
    /// As of `RopeKv`.
    pub kv_scales: Option<DeviceBytes>,
    /// `[num_seqs + 1]` i32.
    pub cu_seqlens_q: DeviceBytes,
    /// `[num_seqs]` i32.
    pub context_lens: DeviceBytes,
    /// `[num_seqs, max_blocks_per_seq]` i32.
    pub block_tables: DeviceBytes,
    /// Tokens of the step.
    pub num_tokens: usize,
    /// Sequences of the step.
    pub num_seqs: usize,
    /// Row stride of `block_tables`.
    pub max_blocks_per_seq: usize,
    /// Heads and block size.
    pub shape: HeadShape,
    /// Factor on q · k.
    pub scale: f32,
    /// A query at p sees keys > p - window.
    pub window: Option<usize>,
    /// cap * tanh(score / cap).
    pub soft_cap: Option<f32>,
}

/// Attention of the sequences with more than one query row. `tickets`: two i32, zero before and after, for one launch at a time.
///
/// # Errors
/// `InvalidArgument` for a range too short, `Unsupported` for a head_dim without kernel, `NotBuilt`, `Cuda`.
pub fn attention_prefill(p: &Attention, tickets: DeviceBytes, stream: Stream) -> Result<()> {
    const OP: &str = "attention_prefill";
    let mut raw = lower(OP, p)?;
    check_range(OP, "tickets", tickets, 8, 4)?;
    raw.tickets = tickets.as_ptr();
    launch!(pagoda_attention_prefill, raw, stream)
}

pub(super) fn lower(op: &'static str, p: &Attention) -> Result<sys::pagoda_attention_params> {
    p.shape.check(op)?;
    check_range(op, "out", p.out, p.num_tokens * p.shape.num_heads * p.shape.head_dim * 2, ALIGNMENT)?;
    check_range(op, "qkv", p.qkv, p.num_tokens * p.shape.qkv_cols() * 2, ALIGNMENT)?;
    check_range(op, "kv", p.kv, 0, ALIGNMENT)?;
    check_range(op, "cu_seqlens_q", p.cu_seqlens_q, (p.num_seqs + 1) * 4, 4)?;
    check_range(op, "context_lens", p.context_lens, p.num_seqs * 4, 4)?;
    check_range(op, "block_tables", p.block_tables, p.num_seqs * p.max_blocks_per_seq * 4, 4)?;
    if p.window == Some(0) || p.soft_cap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        return Err(invalid(op, format!("window {:?}, soft cap {:?}, expected none or more than 0", p.window, p.soft_cap)));
    }
    let element_bytes = if p.kv_scales.is_some() { 1 } else { 2 };
    Ok(sys::pagoda_attention_params {
        out: p.out.as_ptr(),
        qkv: p.qkv.as_ptr::<std::ffi::c_void>(),
        kv: p.kv.as_ptr(),
        kv_scales: lower_scales(op, p.kv_scales, &p.shape)?,
        cu_seqlens_q: p.cu_seqlens_q.as_ptr::<i32>(),
        context_lens: p.context_lens.as_ptr::<i32>(),
        block_tables: p.block_tables.as_ptr::<i32>(),
        num_tokens: int(op, "num_tokens", p.num_tokens)?,
        num_seqs: int(op, "num_seqs", p.num_seqs)?,
        num_heads: int(op, "num_heads", p.shape.num_heads)?,
        num_kv_heads: int(op, "num_kv_heads", p.shape.num_kv_heads)?,
        head_dim: int(op, "head_dim", p.shape.head_dim)?,
        block_size: int(op, "block_size", p.shape.block_size)?,
        max_blocks_per_seq: int(op, "max_blocks_per_seq", p.max_blocks_per_seq)?,
        window: int(op, "window", p.window.unwrap_or(0).min(1 << 30))?,
        scale: p.scale,
        soft_cap: p.soft_cap.unwrap_or(0.0),
        num_blocks: int(op, "num_blocks", p.kv.len() / (p.shape.block_elements() * element_bytes))?,
        tickets: std::ptr::null_mut(),
    })
}
