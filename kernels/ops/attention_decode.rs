//! Attention of the sequences with one query row (cuda/attention/decode.cu).

use super::attention::{Attention, lower};
use super::{DeviceBytes, Stream, check_range, int, launch};
use crate::status::Result;
use crate::sys;

/// Sequences of one launch (`kMaxPlanSeqs` of cuda/attention/decode_work.cuh). Of more, the next launch uses the same scratch.
const MAX_LAUNCH_SEQS: usize = 512;

/// The rotation that `attention_decode` does on the way, instead of `rope_kv` before it. See `RopeKv` for the fields.
#[derive(Clone, Copy, Debug)]
pub struct DecodeRope {
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
    /// Dimensions that rotate: all of them, unless interleaved.
    pub rotary_dim: usize,
    /// 2i pairs with 2i + 1 instead of i with i + rotary_dim / 2.
    pub interleaved: bool,
}

impl DecodeRope {
    /// Whether there is a kernel for it: the two halves of a pair have to be in one lane.
    pub fn is_supported(&self, head_dim: usize) -> bool {
        self.interleaved || self.rotary_dim == head_dim
    }
}

/// Where split contexts meet: see `partials` and `counters` of pagoda.h.
#[derive(Clone, Copy, Debug)]
pub struct DecodeScratch {
    /// f32.
    pub partials: DeviceBytes,
    /// i32, zero.
    pub counters: DeviceBytes,
}

impl DecodeScratch {
    /// Bytes of `partials` that hold `rows` pieces of one query head.
    const fn partials_bytes(rows: usize, head_dim: usize) -> usize {
        rows * (head_dim + 4) * 4
    }

    /// Bytes of `counters` that serve `num_seqs` sequences.
    const fn counters_bytes(num_seqs: usize, num_heads: usize) -> usize {
        (2 + num_seqs * num_heads) * 4
    }
}

/// Groups of sequences that begin with the same blocks, as `pagoda_shared_prefixes` of pagoda.h says, and room for what the sequences of
/// a group have of their prefix.
#[derive(Clone, Copy, Debug)]
pub struct SharedPrefixes {
    /// i32.
    pub groups: DeviceBytes,
    /// i32.
    pub members: DeviceBytes,
    /// `[num_seqs]` i32.
    pub lens: DeviceBytes,
    /// f32.
    pub partials: DeviceBytes,
}

/// Operands of `attention_decode` beside those of all attention.
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// With it, q, k and v are fresh from their product: q and k are normed and rotated on the way in, k and v stored as the last of
    /// their sequence; qkv stays as it is.
    pub rope: Option<&'a DecodeRope>,
    /// With them, `attention_prefix` runs first, with the same operands.
    pub prefixes: Option<&'a SharedPrefixes>,
    /// Where split contexts meet.
    pub scratch: DecodeScratch,
    /// Keys of a piece of a context, or 0: `heuristics::decode_split_len`.
    pub split_len: usize,
    /// CTAs that share the work: `heuristics::decode_ctas`.
    pub num_ctas: usize,
}

/// Attention of the sequences with one query row, over all keys or, with `prefixes`, over those that a sequence does not share.
///
/// # Errors
/// `InvalidArgument` for a range too short, `Unsupported` for a head_dim, block size or rotation without kernel, `NotBuilt`, `Cuda`.
pub fn attention_decode(p: &Attention, decode: &Decode<'_>, stream: Stream) -> Result<()> {
    let raw = lower_decode("attention_decode", p, decode)?;
    launch!(pagoda_attention_decode, raw, stream)
}

/// Attention of the sequences with one query row over the keys that their groups share.
///
/// # Errors
/// As `attention_decode`. `Unsupported` where it has no kernel, and then `attention_decode` without prefixes does it all.
pub fn attention_prefix(p: &Attention, decode: &Decode<'_>, stream: Stream) -> Result<()> {
    let raw = lower_decode("attention_prefix", p, decode)?;
    launch!(pagoda_attention_prefix, raw, stream)
}

/// Rows of partial results, and whether they are enough for one a sequence and head.
fn partial_rows(op: &'static str, p: &Attention, partials: DeviceBytes) -> Result<i32> {
    let rows = partials.len() / DecodeScratch::partials_bytes(1, p.shape.head_dim);
    let needed = DecodeScratch::partials_bytes(p.num_seqs.min(MAX_LAUNCH_SEQS) * p.shape.num_heads, p.shape.head_dim);
    check_range(op, "partials", partials, needed, 16)?;
    Ok(i32::try_from(rows).unwrap_or(i32::MAX))
}

fn lower_prefixes(op: &'static str, p: &Attention, prefixes: Option<&SharedPrefixes>) -> Result<sys::pagoda_shared_prefixes> {
    let Some(prefixes) = prefixes else {
        let null = std::ptr::null();
        return Ok(sys::pagoda_shared_prefixes {
            groups: null,
            members: null,
            lens: null,
            partials: std::ptr::null_mut(),
            max_partials: 0,
        });
    };
    check_range(op, "groups", prefixes.groups, 12, 4)?;
    check_range(op, "members", prefixes.members, p.num_seqs * 4, 4)?;
    check_range(op, "lens", prefixes.lens, p.num_seqs * 4, 4)?;
    Ok(sys::pagoda_shared_prefixes {
        groups: prefixes.groups.as_ptr::<i32>(),
        members: prefixes.members.as_ptr::<i32>(),
        lens: prefixes.lens.as_ptr::<i32>(),
        partials: prefixes.partials.as_ptr(),
        max_partials: partial_rows(op, p, prefixes.partials)?,
    })
}

fn lower_decode(op: &'static str, p: &Attention, decode: &Decode<'_>) -> Result<sys::pagoda_attention_decode_params> {
    let Decode { rope, prefixes, scratch, split_len, num_ctas } = *decode;
    let head_dim = p.shape.head_dim;
    check_range(op, "counters", scratch.counters, DecodeScratch::counters_bytes(p.num_seqs.min(MAX_LAUNCH_SEQS), p.shape.num_heads), 4)?;
    if let Some(rope) = rope {
        for (name, range, needed) in [
            ("cos", rope.cos, rope.rotary_dim * 2),
            ("sin", rope.sin, rope.rotary_dim * 2),
            ("q_norm", rope.q_norm.unwrap_or(rope.cos), rope.q_norm.map_or(0, |_| head_dim * 4)),
            ("k_norm", rope.k_norm.unwrap_or(rope.cos), rope.k_norm.map_or(0, |_| head_dim * 4)),
        ] {
            check_range(op, name, range, needed, 8)?;
        }
    }
    let optional = |range: Option<DeviceBytes>| range.map_or(std::ptr::null(), |r| r.as_ptr::<f32>().cast_const());
    Ok(sys::pagoda_attention_decode_params {
        attention: lower(op, p)?,
        prefixes: lower_prefixes(op, p, prefixes)?,
        partials: scratch.partials.as_ptr(),
        counters: scratch.counters.as_ptr(),
        cos: optional(rope.map(|r| r.cos)),
        sin: optional(rope.map(|r| r.sin)),
        q_norm: optional(rope.and_then(|r| r.q_norm)),
        k_norm: optional(rope.and_then(|r| r.k_norm)),
        rotary_dim: int(op, "rotary_dim", rope.map_or(0, |r| r.rotary_dim))?,
        interleaved: i32::from(rope.is_some_and(|r| r.interleaved)),
        eps: rope.map_or(0.0, |r| r.eps),
        split_len: int(op, "split_len", split_len)?,
        max_partials: partial_rows(op, p, scratch.partials)?,
        num_ctas: int(op, "num_ctas", num_ctas)?,
    })
}
