//! Norm and rotation of the query and key heads of fused qkv rows, and the store of keys and values into their slots.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::CpuDevice;
use super::kv::{CpuKv, SharedElements};
use super::norm::norm_in_place;
use super::simd::{Kernel, Simd};
use super::threads::SharedMut;
use crate::device::{RopeKvParams, RopeStyle, RopeTable};
use crate::weights::quant::quantize::floats::to_e4m3;

/// Tokens a task.
const TASK_TOKENS: usize = 16;

impl CpuDevice {
    /// Every row of `qkv` at its position and slot; a slot of -1 stores nothing.
    pub(super) fn rope_kv_slices(
        &self,
        qkv: &mut [f32],
        kv: &mut CpuKv,
        positions: &[i32],
        slots: &[i32],
        params: &RopeKvParams<'_, CpuDevice>,
    ) {
        let cols = (params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
        assert_eq!(qkv.len(), positions.len() * cols, "qkv rows of {cols} columns");
        assert_eq!((params.num_kv_heads, params.head_dim), (kv.shape.num_kv_heads, kv.shape.head_dim), "heads of the kv cache");
        let (block_size, num_slots) = (kv.shape.block_size, kv.shape.num_blocks * kv.shape.block_size);
        let tokens = positions.len();
        let (k, v) = (kv.k.shared(), kv.v.shared());
        let qkv = SharedMut::new(qkv);
        self.pool.run(tokens.div_ceil(TASK_TOKENS), |task| {
            for token in task * TASK_TOKENS..tokens.min((task + 1) * TASK_TOKENS) {
                // SAFETY: every token has its own row, and is of one task.
                let row = unsafe { qkv.slice(token * cols, cols) };
                let position = usize::try_from(positions[token]).expect("a position is not negative");
                self.dispatch.run(RotateRow { row, position, params });
                if let Ok(slot) = usize::try_from(slots[token]) {
                    assert!(slot < num_slots, "slot {slot} of {num_slots}");
                    store_row(row, &k, &v, block_size, slot, params);
                }
            }
        });
    }
}

impl CpuDevice {
    /// Rotates heads of `head_dim` that lie side by side, all at one position.
    pub(super) fn rotate_heads(&self, heads: &mut [f32], head_dim: usize, position: usize, rope: &RopeTable<CpuDevice>) {
        let (cos, sin) = angles(rope, position);
        heads.chunks_exact_mut(head_dim).for_each(|head| rotate(&mut head[..rope.rotary_dim], cos, sin, rope.style));
    }
}

/// Norm and rotation of one row.
struct RotateRow<'a, 'b> {
    row: &'a mut [f32],
    position: usize,
    params: &'a RopeKvParams<'b, CpuDevice>,
}

impl Kernel for RotateRow<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let params = self.params;
        let (cos, sin) = angles(params.rope, self.position);
        let rotated = (params.num_heads + params.num_kv_heads) * params.head_dim;
        for (index, head) in self.row[..rotated].chunks_exact_mut(params.head_dim).enumerate() {
            let norm = if index < params.num_heads { params.q_norm } else { params.k_norm };
            if let Some(weight) = norm {
                norm_in_place(s, head, weight.values.as_slice(), params.eps);
            }
            rotate(&mut head[..params.rope.rotary_dim], cos, sin, params.rope.style);
        }
    }
}

fn angles(rope: &RopeTable<CpuDevice>, position: usize) -> (&[f32], &[f32]) {
    let half = rope.rotary_dim / 2;
    (&rope.cos.values.as_slice()[position * half..][..half], &rope.sin.values.as_slice()[position * half..][..half])
}

#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], style: RopeStyle) {
    match style {
        RopeStyle::HalfSplit => {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        RopeStyle::Interleaved => {
            for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
            }
        }
    }
}

fn store_row(
    row: &[f32],
    k: &SharedElements<'_>,
    v: &SharedElements<'_>,
    block_size: usize,
    slot: usize,
    params: &RopeKvParams<'_, CpuDevice>,
) {
    match (k, v) {
        (SharedElements::F32(k), SharedElements::F32(v)) => store_as(row, k, v, block_size, slot, params, |x, _| x),
        (SharedElements::F16(k), SharedElements::F16(v)) => store_as(row, k, v, block_size, slot, params, |x, _| f16::from_f32(x)),
        (SharedElements::BF16(k), SharedElements::BF16(v)) => store_as(row, k, v, block_size, slot, params, |x, _| bf16::from_f32(x)),
        (SharedElements::E4M3(k, k_scales), SharedElements::E4M3(v, v_scales)) => {
            let scale = |kind: Kind, head: usize| if kind == Kind::Key { k_scales[head] } else { v_scales[head] };
            store_as(row, k, v, block_size, slot, params, |x, (kind, head)| to_e4m3(x / scale(kind, head)));
        }
        _ => unreachable!("keys and values have one type"),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Key,
    Value,
}

/// `convert` gets an element, what it is and its head.
fn store_as<T>(
    row: &[f32],
    k: &SharedMut<'_, T>,
    v: &SharedMut<'_, T>,
    block_size: usize,
    slot: usize,
    params: &RopeKvParams<'_, CpuDevice>,
    convert: impl Fn(f32, (Kind, usize)) -> T,
) {
    let (dim, heads) = (params.head_dim, params.num_kv_heads);
    let (block, offset) = (slot / block_size, slot % block_size);
    let (keys, values) = row[params.num_heads * dim..].split_at(heads * dim);
    for head in 0..heads {
        let base = (block * heads + head) * dim * block_size;
        for (i, x) in keys[head * dim..][..dim].iter().enumerate() {
            // SAFETY: each token of a step has a slot of its own, so no other task writes this element.
            unsafe { k.set(base + i * block_size + offset, convert(*x, (Kind::Key, head))) };
        }
        // SAFETY: as above.
        let out = unsafe { v.slice(base + offset * dim, dim) };
        out.iter_mut().zip(&values[head * dim..][..dim]).for_each(|(out, x)| *out = convert(*x, (Kind::Value, head)));
    }
}
