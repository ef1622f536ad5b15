//! Attention in both directions over whole sequences: one task a (sequence, head, block of queries).
//!
//! A task packs the keys it can see, transposed and 16 positions side by side, and the values, dimensions side by side; then it takes four
//! queries at a time: all their scores, a softmax over the whole row, the weighted sum. A block begins at a multiple of `BLOCK` of its
//! sequence, so a row's result depends on its sequence alone. Rows of scores are as long as the sequence, which an encoder bounds.
#![allow(unsafe_code)]

use super::CpuDevice;
use super::math;
use super::scratch::with_scratch;
use super::simd::{Kernel, LANES, Simd, lanes, lanes_mut, unroll};
use super::threads::SharedMut;
use crate::device::encoder::EncoderAttention;

/// Queries of a task.
const BLOCK: usize = 128;
/// Queries that are computed together.
const ROWS: usize = 4;

/// What is added to scores: `[num_heads, 2 * reach - 1]`, see `RelativeBias`.
#[derive(Clone, Copy)]
pub struct BiasRows<'a> {
    pub values: &'a [f32],
    pub reach: usize,
}

/// Queries `first .. first + rows` of one sequence at one head, and the keys they can see.
struct Task {
    /// First row of the sequence.
    start: usize,
    /// Tokens of the sequence.
    len: usize,
    head: usize,
    first: usize,
    rows: usize,
}

impl CpuDevice {
    /// out `[num_tokens, num_heads * head_dim]`, qkv `[num_tokens, 3 * num_heads * head_dim]`, cu_seqlens `[num_seqs + 1]`.
    pub(super) fn bidirectional_slices(
        &self,
        out: &mut [f32],
        qkv: &[f32],
        cu_seqlens: &[i32],
        params: &EncoderAttention,
        bias: Option<BiasRows<'_>>,
    ) {
        let cols = params.num_heads * params.head_dim;
        assert_eq!(qkv.len(), 3 * out.len(), "rows of q, k, v");
        let mut tasks = Vec::new();
        for pair in cu_seqlens.windows(2) {
            let (start, end) = (pair[0] as usize, pair[1] as usize);
            assert!(start <= end && end * cols <= out.len(), "sequence {start}..{end}");
            assert!(bias.is_none_or(|bias| end - start <= bias.reach), "a bias for {} tokens", end - start);
            for first in (0..end - start).step_by(BLOCK) {
                let rows = BLOCK.min(end - start - first);
                tasks.extend((0..params.num_heads).map(|head| Task { start, len: end - start, head, first, rows }));
            }
        }
        let out = SharedMut::new(out);
        self.pool.run(tasks.len(), |index| {
            let task = &tasks[index];
            let (oldest, keys) = task.keys(params.radius);
            let (padded, stride) = (keys.next_multiple_of(LANES), params.head_dim.next_multiple_of(LANES));
            with_scratch((2 * stride + ROWS) * padded + 2 * ROWS * stride, |scratch| {
                let (packed_keys, rest) = scratch.split_at_mut(stride * padded);
                let (values, rest) = rest.split_at_mut(padded * stride);
                let (scores, rest) = rest.split_at_mut(ROWS * padded);
                let (queries, sums) = rest.split_at_mut(ROWS * stride);
                let block = QueryBlock { task, params, bias, qkv, oldest, keys, packed_keys, values, scores, queries, sums, out: &out };
                self.dispatch.run(block);
            });
        });
    }
}

impl Task {
    /// First position and number of the keys that any of its queries sees.
    fn keys(&self, radius: Option<usize>) -> (usize, usize) {
        let Some(radius) = radius else { return (0, self.len) };
        let oldest = self.first.saturating_sub(radius);
        (oldest, (self.first + self.rows + radius).min(self.len) - oldest)
    }
}

/// The work of a task, with its scratch.
struct QueryBlock<'a, 'o> {
    task: &'a Task,
    params: &'a EncoderAttention,
    bias: Option<BiasRows<'a>>,
    qkv: &'a [f32],
    /// Position of the first key.
    oldest: usize,
    keys: usize,
    /// `[stride, padded keys]`.
    packed_keys: &'a mut [f32],
    /// `[padded keys, stride]`.
    values: &'a mut [f32],
    /// `[ROWS, padded keys]`.
    scores: &'a mut [f32],
    /// `[ROWS, stride]`.
    queries: &'a mut [f32],
    /// `[ROWS, stride]`.
    sums: &'a mut [f32],
    out: &'a SharedMut<'o, f32>,
}

impl Kernel for QueryBlock<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.pack();
        for row in (0..self.task.rows).step_by(ROWS) {
            let rows = ROWS.min(self.task.rows - row);
            self.copy_queries(row, rows);
            self.score(s);
            let inverses = self.softmax(s, row, rows);
            self.weigh(s);
            self.write(row, rows, inverses);
        }
    }
}

impl QueryBlock<'_, '_> {
    fn stride(&self) -> usize {
        self.params.head_dim.next_multiple_of(LANES)
    }

    fn padded(&self) -> usize {
        self.keys.next_multiple_of(LANES)
    }

    #[inline(always)]
    fn pack(&mut self) {
        let (stride, padded, dim) = (self.stride(), self.padded(), self.params.head_dim);
        for key in 0..padded {
            let (k, v) = (&mut *self.packed_keys, &mut self.values[key * stride..][..stride]);
            if key >= self.keys {
                v.fill(0.0);
                (0..dim).for_each(|i| k[i * padded + key] = 0.0);
                continue;
            }
            let (heads, head) = (self.params.num_heads, self.task.head);
            let row = &self.qkv[(self.task.start + self.oldest + key) * 3 * heads * dim..][..3 * heads * dim];
            row[(heads + head) * dim..][..dim].iter().enumerate().for_each(|(i, x)| k[i * padded + key] = *x);
            v[..dim].copy_from_slice(&row[(2 * heads + head) * dim..][..dim]);
            v[dim..].fill(0.0);
        }
    }

    /// Rows that are not there repeat the last one; nothing of them is written.
    #[inline(always)]
    fn copy_queries(&mut self, row: usize, rows: usize) {
        let (stride, dim) = (self.stride(), self.params.head_dim);
        for i in 0..ROWS {
            let position = self.task.first + row + i.min(rows - 1);
            let (heads, head) = (self.params.num_heads, self.task.head);
            let q = &self.qkv[(self.task.start + position) * 3 * heads * dim + head * dim..][..dim];
            self.queries[i * stride..][..dim].copy_from_slice(q);
        }
    }

    /// scores[row, key] = q[row] · k[key].
    #[inline(always)]
    fn score<S: Simd>(&mut self, s: S) {
        let groups = self.padded() / LANES;
        let mut group = 0;
        while S::WIDE && group + 4 <= groups {
            self.score_groups::<S, ROWS, 4>(s, group);
            group += 4;
        }
        while group < groups {
            self.score_groups::<S, ROWS, 1>(s, group);
            group += 1;
        }
    }

    #[inline(always)]
    fn score_groups<S: Simd, const R: usize, const G: usize>(&mut self, s: S, group: usize) {
        let (stride, padded) = (self.stride(), self.padded());
        let mut acc = [[s.splat(0.0); G]; R];
        for i in 0..self.params.head_dim {
            let mut k = [s.splat(0.0); G];
            unroll!(J < G => k[J] = s.load(lanes(self.packed_keys, i * padded + (group + J) * LANES)));
            unroll!(I < R => {
                let q = s.splat(self.queries[I * stride + i]);
                unroll!(J < G => acc[I][J] = s.fma(q, k[J], acc[I][J]));
            });
        }
        unroll!(I < R => unroll!(J < G => s.store(acc[I][J], lanes_mut(self.scores, I * padded + (group + J) * LANES))));
    }

    /// Scores, with their bias, become exp(scale * (score - max)); returns 1 / their sums.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, s: S, row: usize, rows: usize) -> [f32; ROWS] {
        let padded = self.padded();
        let scale = s.splat(self.params.scale);
        let mut inverses = [0.0; ROWS];
        for (i, inverse) in inverses.iter_mut().enumerate().take(rows) {
            let position = self.task.first + row + i;
            let (from, to) = match self.params.radius {
                Some(radius) => (position.saturating_sub(radius) - self.oldest, position + radius + 1 - self.oldest),
                None => (0, self.keys),
            };
            let (from, to) = (from.min(self.keys), to.min(self.keys));
            let weights = &mut self.scores[i * padded..][..padded];
            if let Some(bias) = &self.bias {
                let first = self.task.head * (2 * bias.reach - 1) + bias.reach - 1 + self.oldest - position;
                let inverse = 1.0 / self.params.scale;
                weights.iter_mut().zip(&bias.values[first..][..self.keys]).for_each(|(score, bias)| *score += bias * inverse);
            }
            weights[..from].fill(f32::NEG_INFINITY);
            weights[to..].fill(f32::NEG_INFINITY);
            let mut max = s.splat(f32::NEG_INFINITY);
            for k in (0..padded).step_by(LANES) {
                max = s.max(max, s.load(lanes(weights, k)));
            }
            let shift = s.splat(s.max_lane(max));
            let mut sum = s.splat(0.0);
            for k in (0..padded).step_by(LANES) {
                let v = math::exp(s, s.mul(s.sub(s.load(lanes(weights, k)), shift), scale));
                s.store(v, lanes_mut(weights, k));
                sum = s.add(sum, v);
            }
            *inverse = 1.0 / s.sum(sum);
        }
        inverses
    }

    /// sums[row] = sum over keys of weight * value.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, s: S) {
        let stride = self.stride();
        let mut i = 0;
        while S::WIDE && i + 4 * LANES <= stride {
            self.weigh_lanes::<S, ROWS, 4>(s, i);
            i += 4 * LANES;
        }
        while i + 2 * LANES <= stride {
            self.weigh_lanes::<S, ROWS, 2>(s, i);
            i += 2 * LANES;
        }
        while i < stride {
            self.weigh_lanes::<S, ROWS, 1>(s, i);
            i += LANES;
        }
    }

    #[inline(always)]
    fn weigh_lanes<S: Simd, const R: usize, const G: usize>(&mut self, s: S, first: usize) {
        let (stride, padded) = (self.stride(), self.padded());
        let mut acc = [[s.splat(0.0); G]; R];
        for key in 0..self.keys {
            let mut v = [s.splat(0.0); G];
            unroll!(J < G => v[J] = s.load(lanes(self.values, key * stride + first + J * LANES)));
            unroll!(I < R => {
                let w = s.splat(self.scores[I * padded + key]);
                unroll!(J < G => acc[I][J] = s.fma(w, v[J], acc[I][J]));
            });
        }
        unroll!(I < R => unroll!(J < G => s.store(acc[I][J], lanes_mut(self.sums, I * stride + first + J * LANES))));
    }

    #[inline(always)]
    fn write(&mut self, row: usize, rows: usize, inverses: [f32; ROWS]) {
        let (stride, dim) = (self.stride(), self.params.head_dim);
        let cols = self.params.num_heads * dim;
        for (i, inverse) in inverses.iter().enumerate().take(rows) {
            let token = self.task.start + self.task.first + row + i;
            // SAFETY: (token, head) belongs to one task.
            let out = unsafe { self.out.slice(token * cols + self.task.head * dim, dim) };
            out.iter_mut().zip(&self.sums[i * stride..]).for_each(|(out, sum)| *out = sum * inverse);
        }
    }
}
