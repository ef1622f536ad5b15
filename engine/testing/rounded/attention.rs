//! Rope, cache and attention of the rounding device, one query row at a time.

use rayon::prelude::*;

use super::RoundedDevice;
use super::product::dot;
use super::rounding::{Point, Rounding, rounded};
use crate::device::{AttentionParams, KvShape, RopeKvParams, RopeStyle, StepTensors};

/// Keys of a tile of online softmax: probabilities are rounded relative to the largest score so far.
fn tile_keys(head_dim: usize) -> usize {
    if head_dim <= 128 { 64 } else { 32 }
}

/// One layer's keys and values, `[slot][kv head][head_dim]`.
pub struct RoundedKv {
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
    /// Of the pool.
    pub shape: KvShape,
}

impl RoundedKv {
    fn offset(&self, slot: usize, kv_head: usize) -> usize {
        (slot * self.shape.num_kv_heads + kv_head) * self.shape.head_dim
    }
}

/// Norms and rotates the query and key heads of one row in place.
fn rotate_row(row: &mut [f32], position: usize, params: &RopeKvParams<'_, RoundedDevice>) {
    let half = params.rope.rotary_dim / 2;
    let (cos, sin) = (&params.rope.cos[position * half..], &params.rope.sin[position * half..]);
    for (head, values) in row.chunks_exact_mut(params.head_dim).take(params.num_heads + params.num_kv_heads).enumerate() {
        let norm = if head < params.num_heads { params.q_norm } else { params.k_norm };
        if let Some(weight) = norm {
            let scale = super::inverse_rms(values, params.eps);
            values.iter_mut().zip(weight).for_each(|(v, w)| *v *= scale * w);
        }
        for i in 0..half {
            let (a, b) = match params.rope.style {
                RopeStyle::HalfSplit => (i, i + half),
                RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            };
            (values[a], values[b]) = (values[a] * cos[i] - values[b] * sin[i], values[b] * cos[i] + values[a] * sin[i]);
        }
    }
}

/// Rounds q, k, v, rotates, rounds q and k, and stores k and v.
pub fn rope_kv(
    rounding: Rounding,
    qkv: &mut [f32],
    kv: &mut RoundedKv,
    step: &StepTensors<RoundedDevice>,
    params: &RopeKvParams<'_, RoundedDevice>,
) {
    rounding.apply(Point::Qkv, qkv);
    let (q_len, kv_len) = (params.num_heads * params.head_dim, params.num_kv_heads * params.head_dim);
    for (token, row) in qkv.chunks_exact_mut(q_len + 2 * kv_len).enumerate() {
        rotate_row(row, step.positions[token] as usize, params);
        rounding.apply(Point::Rope, &mut row[..q_len + kv_len]);
        let at = kv.offset(step.slot_mapping[token] as usize, 0);
        kv.k[at..at + kv_len].copy_from_slice(&row[q_len..q_len + kv_len]);
        kv.v[at..at + kv_len].copy_from_slice(&row[q_len + kv_len..]);
    }
}

/// out: `[num_tokens, num_heads * head_dim]`.
pub fn attend(
    rounding: Rounding,
    out: &mut [f32],
    qkv: &[f32],
    kv: &RoundedKv,
    step: &StepTensors<RoundedDevice>,
    params: &AttentionParams,
) {
    let (head_dim, group) = (params.head_dim, params.num_heads / params.num_kv_heads);
    let q_cols = (params.num_heads + 2 * params.num_kv_heads) * head_dim;
    let cu = &step.cu_seqlens_q[..=step.num_seqs];
    out.par_chunks_mut(head_dim).enumerate().for_each(|(index, out)| {
        let (token, head) = (index / params.num_heads, index % params.num_heads);
        let seq = cu.iter().rposition(|first| *first as usize <= token).expect("rows belong to sequences");
        let position = step.context_lens[seq] as usize - cu[seq + 1] as usize + token;
        let table = &step.block_tables[seq * step.max_blocks_per_seq..];
        let block_size = kv.shape.block_size;
        let slot = |key: usize| table[key / block_size] as usize * block_size + key % block_size;
        let q = &qkv[token * q_cols + head * head_dim..][..head_dim];
        attend_row(rounding, out, q, position, params, |key| {
            let at = kv.offset(slot(key), head / group);
            (&kv.k[at..at + head_dim], &kv.v[at..at + head_dim])
        });
    });
    rounding.apply(Point::Attention, out);
}

fn attend_row<'a>(
    rounding: Rounding,
    out: &mut [f32],
    q: &[f32],
    position: usize,
    params: &AttentionParams,
    key_value: impl Fn(usize) -> (&'a [f32], &'a [f32]),
) {
    let tile = tile_keys(params.head_dim);
    let begin = params.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    let mut first = begin / tile * tile;
    while first <= position {
        let keys = first.max(begin)..(first + tile).min(position + 1);
        let scores: Vec<f32> = keys
            .clone()
            .map(|key| {
                let score = dot(q, key_value(key).0) * params.scale;
                params.soft_cap.map_or(score, |cap| cap * (score / cap).tanh())
            })
            .collect();
        let largest = scores.iter().copied().fold(max, f32::max);
        let rescale = (max - largest).exp();
        max = largest;
        sum *= rescale;
        out.iter_mut().for_each(|o| *o *= rescale);
        for (key, score) in keys.zip(scores) {
            let p = (score - max).exp();
            sum += p;
            let p = if rounding.has(Point::Probabilities) { rounded(p) } else { p };
            out.iter_mut().zip(key_value(key).1).for_each(|(o, v)| *o += p * v);
        }
        first += tile;
    }
    out.iter_mut().for_each(|o| *o /= sum);
}
