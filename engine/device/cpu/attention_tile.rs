//! Attention of one tile of query rows over some partitions of its context: scores, online softmax, weighted sum of values.
//!
//! A row is (token, query head of the group), token-major. The state of a tile is `acc [rows, stride]`, then `(max, sum) [rows]`, with
//! stride = head_dim rounded up to 16. The bound is the f32 multiply-adds for a tile of many rows, reading the cache for a few.

use super::attention_keys::{KEYS, Keys};
use super::kv::CpuKv;
use super::math;
use super::simd::{Kernel, LANES, Simd, lanes, lanes_mut, unroll};
use crate::device::AttentionParams;

/// Keys of a partition: the unit of splitting, a multiple of `KEYS`.
pub const PARTITION: usize = 256;

/// Some tokens of one sequence at one kv head.
#[derive(Clone, Copy)]
pub struct RowTile<'a> {
    /// `[num_tokens, qkv_cols]`.
    pub qkv: &'a [f32],
    /// Columns of `qkv`.
    pub qkv_cols: usize,
    /// The cache.
    pub kv: &'a CpuKv,
    /// Physical blocks of the sequence.
    pub blocks: &'a [i32],
    /// The layer.
    pub params: &'a AttentionParams,
    /// Key and value head.
    pub kv_head: usize,
    /// Query heads of a kv head.
    pub group: usize,
    /// First row of `qkv`.
    pub token: usize,
    /// Rows of `qkv`.
    pub tokens: usize,
    /// Position of the first token.
    pub first_position: usize,
}

/// A `RowTile` over partitions; returns the state.
pub struct OverPartitions<'a, 'm> {
    tile: RowTile<'a>,
    partitions: (usize, usize),
    scratch: &'m mut [f32],
}

/// Merges the state of a later partition into that of the earlier ones.
pub struct Merge<'m> {
    rows: usize,
    into: &'m mut [f32],
    part: &'m [f32],
}

impl<'a> RowTile<'a> {
    fn rows(&self) -> usize {
        self.tokens * self.group
    }

    fn stride(&self) -> usize {
        self.params.head_dim.next_multiple_of(LANES)
    }

    /// Floats of a state.
    pub fn state_len(&self) -> usize {
        self.rows() * (self.stride() + 2)
    }

    /// Floats of scratch that `over` needs: two states, queries, scores, one tile of keys and one of values.
    pub fn scratch_len(&self) -> usize {
        2 * self.state_len() + self.rows() * (self.stride() + KEYS) + 2 * KEYS * self.stride()
    }

    /// The work over partitions `.0 .. .1`.
    pub fn over<'m>(self, partitions: (usize, usize), scratch: &'m mut [f32]) -> OverPartitions<'a, 'm> {
        OverPartitions { tile: self, partitions, scratch }
    }

    /// The work of merging `part` into `into`.
    pub fn merge<'m>(&self, into: &'m mut [f32], part: &'m [f32]) -> Merge<'m> {
        Merge { rows: self.rows(), into, part }
    }
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.rows;
        let stride = self.into.len() / rows - 2;
        let (acc, stats) = self.into.split_at_mut(rows * stride);
        let (part_acc, part_stats) = self.part.split_at(rows * stride);
        for row in 0..rows {
            let (max, part_max) = (stats[2 * row], part_stats[2 * row]);
            if part_max == f32::NEG_INFINITY {
                continue;
            }
            let new_max = if max > part_max { max } else { part_max };
            let (a, b) = ((max - new_max).exp(), (part_max - new_max).exp());
            stats[2 * row] = new_max;
            stats[2 * row + 1] = stats[2 * row + 1] * a + part_stats[2 * row + 1] * b;
            for i in (row * stride..(row + 1) * stride).step_by(LANES) {
                let scaled = s.mul(s.load(lanes(part_acc, i)), s.splat(b));
                let v = s.fma(s.load(lanes(acc, i)), s.splat(a), scaled);
                s.store(v, lanes_mut(acc, i));
            }
        }
    }
}

impl<'m> Kernel for OverPartitions<'_, 'm> {
    type Output = &'m [f32];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> &'m [f32] {
        let tile = self.tile;
        let (rows, stride, state_len) = (tile.rows(), tile.stride(), tile.state_len());
        let (total, rest) = self.scratch.split_at_mut(state_len);
        let (part, rest) = rest.split_at_mut(state_len);
        let (queries, rest) = rest.split_at_mut(rows * stride);
        let (scores, packed) = rest.split_at_mut(rows * KEYS);
        tile.copy_queries(queries);
        for partition in self.partitions.0..self.partitions.1 {
            let state = if partition == self.partitions.0 { &mut *total } else { &mut *part };
            let (acc, stats) = state.split_at_mut(rows * stride);
            acc.fill(0.0);
            stats.as_chunks_mut::<2>().0.fill([f32::NEG_INFINITY, 0.0]);
            let end = ((partition + 1) * PARTITION).min(tile.first_position + tile.tokens);
            for start in (partition * PARTITION..end).step_by(KEYS) {
                let keys = KEYS.min(end - start);
                if tile.sees(start, keys) {
                    let source = Keys::new(s, tile.kv, tile.blocks, tile.kv_head, start, keys, packed);
                    tile.scores(s, queries, &source, keys, scores);
                    tile.softmax(s, start, keys, scores, stats, acc);
                    tile.values(s, &source, keys, scores, acc);
                }
            }
            if partition > self.partitions.0 {
                Merge { rows, into: total, part }.run(s);
            }
        }
        total
    }
}

impl RowTile<'_> {
    /// Positions that the token at `position` sees: `.0 .. .1`.
    fn range(&self, position: usize) -> (usize, usize) {
        (self.params.window.map_or(0, |window| (position + 1).saturating_sub(window)), position + 1)
    }

    /// Whether any row sees one of the keys.
    fn sees(&self, start: usize, keys: usize) -> bool {
        self.range(self.first_position).0 < start + keys && self.first_position + self.tokens > start
    }

    fn copy_queries(&self, queries: &mut [f32]) {
        let dim = self.params.head_dim;
        for (row, out) in queries.chunks_exact_mut(self.stride()).enumerate() {
            let head = self.kv_head * self.group + row % self.group;
            let q = &self.qkv[(self.token + row / self.group) * self.qkv_cols + head * dim..][..dim];
            out[..dim].copy_from_slice(q);
            out[dim..].fill(0.0);
        }
    }

    /// scores[row, key] = q[row] · k[key].
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, queries: &[f32], source: &Keys<'_>, keys: usize, scores: &mut [f32]) {
        let rows = self.rows();
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            let (q, out) = (&queries[row * self.stride()..], &mut scores[row * KEYS..]);
            if left >= 4 {
                self.score_rows::<S, 4>(s, q, source, keys, out);
                row += 4;
            } else if left == 3 {
                self.score_rows::<S, 3>(s, q, source, keys, out);
                row += 3;
            } else if left == 2 {
                self.score_rows::<S, 2>(s, q, source, keys, out);
                row += 2;
            } else {
                self.score_rows::<S, 1>(s, q, source, keys, out);
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn score_rows<S: Simd, const R: usize>(&self, s: S, queries: &[f32], source: &Keys<'_>, keys: usize, out: &mut [f32]) {
        let groups = keys.div_ceil(LANES);
        let mut group = 0;
        if S::WIDE && groups == KEYS / LANES {
            self.score_groups::<S, R, 4>(s, queries, source, 0, out);
            group = 4;
        }
        while group < groups {
            self.score_groups::<S, R, 1>(s, queries, source, group, out);
            group += 1;
        }
    }

    /// R rows against G groups of 16 keys; the sum over dimensions is one chain an element, whatever R and G.
    #[inline(always)]
    fn score_groups<S: Simd, const R: usize, const G: usize>(
        &self,
        s: S,
        queries: &[f32],
        source: &Keys<'_>,
        group: usize,
        out: &mut [f32],
    ) {
        let stride = self.stride();
        let mut acc = [[s.splat(0.0); G]; R];
        let mut at = [0; G];
        at.copy_from_slice(&source.k_at[group..group + G]);
        for i in 0..self.params.head_dim {
            let mut k = [s.splat(0.0); G];
            unroll!(J < G => k[J] = s.load(lanes(source.k, at[J] + i * source.k_stride)));
            unroll!(I < R => {
                let q = s.splat(queries[I * stride + i]);
                unroll!(J < G => acc[I][J] = s.fma(q, k[J], acc[I][J]));
            });
        }
        unroll!(I < R => unroll!(J < G => s.store(acc[I][J], lanes_mut(out, I * KEYS + (group + J) * LANES))));
    }

    /// Turns scores into weights relative to the running maximum, and rescales sums and accumulators where that grew.
    #[inline(always)]
    fn softmax<S: Simd>(&self, s: S, start: usize, keys: usize, scores: &mut [f32], stats: &mut [f32], acc: &mut [f32]) {
        let stride = self.stride();
        for row in 0..self.rows() {
            let weights: &mut [f32; KEYS] = (&mut scores[row * KEYS..(row + 1) * KEYS]).try_into().expect("one row");
            let (oldest, end) = self.range(self.first_position + row / self.group);
            let (from, to) = (oldest.saturating_sub(start).min(keys), end.saturating_sub(start).min(keys));
            if from >= to {
                weights.fill(0.0);
                continue;
            }
            for i in (0..KEYS).step_by(LANES) {
                let v = s.mul(s.load(lanes(weights, i)), s.splat(self.params.scale));
                let v = if let Some(cap) = self.params.soft_cap { math::soft_cap(s, v, cap) } else { v };
                s.store(v, lanes_mut(weights, i));
            }
            let max = stats[2 * row];
            let tile_max = max_of(s, weights, from, to);
            let new_max = if tile_max > max { tile_max } else { max };
            weigh(s, weights, new_max, from, to);
            let mut sum = s.splat(0.0);
            for i in (0..KEYS).step_by(LANES) {
                sum = s.add(sum, s.load(lanes(weights, i)));
            }
            let rescale = (max - new_max).exp();
            stats[2 * row] = new_max;
            stats[2 * row + 1] = stats[2 * row + 1] * rescale + s.sum(sum);
            if rescale != 1.0 {
                for i in (row * stride..(row + 1) * stride).step_by(LANES) {
                    let v = s.mul(s.load(lanes(acc, i)), s.splat(rescale));
                    s.store(v, lanes_mut(acc, i));
                }
            }
        }
    }

    /// acc[row] += sum over keys of weight * value.
    #[inline(always)]
    fn values<S: Simd>(&self, s: S, source: &Keys<'_>, keys: usize, weights: &[f32], acc: &mut [f32]) {
        let (rows, stride) = (self.rows(), self.stride());
        for row in (0..rows).step_by(4) {
            let (w, out) = (&weights[row * KEYS..], &mut acc[row * stride..]);
            match rows - row {
                1 => self.value_rows::<S, 1>(s, source, keys, w, out),
                2 => self.value_rows::<S, 2>(s, source, keys, w, out),
                3 => self.value_rows::<S, 3>(s, source, keys, w, out),
                _ => self.value_rows::<S, 4>(s, source, keys, w, out),
            }
        }
    }

    #[inline(always)]
    fn value_rows<S: Simd, const R: usize>(&self, s: S, source: &Keys<'_>, keys: usize, weights: &[f32], acc: &mut [f32]) {
        let stride = self.stride();
        let mut i = 0;
        while S::WIDE && i + 4 * LANES <= stride {
            self.value_lanes::<S, R, 4>(s, source, keys, weights, i, acc);
            i += 4 * LANES;
        }
        while i < stride {
            self.value_lanes::<S, R, 1>(s, source, keys, weights, i, acc);
            i += LANES;
        }
    }

    #[inline(always)]
    fn value_lanes<S: Simd, const R: usize, const G: usize>(
        &self,
        s: S,
        source: &Keys<'_>,
        keys: usize,
        weights: &[f32],
        first: usize,
        acc: &mut [f32],
    ) {
        let stride = self.stride();
        let mut sums = [[s.splat(0.0); G]; R];
        unroll!(I < R => unroll!(J < G => sums[I][J] = s.load(lanes(acc, I * stride + first + J * LANES))));
        for (key, at) in source.v_at[..keys].iter().enumerate() {
            let mut v = [s.splat(0.0); G];
            unroll!(J < G => v[J] = s.load(lanes(source.v, at + first + J * LANES)));
            unroll!(I < R => {
                let w = s.splat(weights[I * KEYS + key]);
                unroll!(J < G => sums[I][J] = s.fma(w, v[J], sums[I][J]));
            });
        }
        unroll!(I < R => unroll!(J < G => s.store(sums[I][J], lanes_mut(acc, I * stride + first + J * LANES))));
    }
}

#[inline(always)]
fn max_of<S: Simd>(s: S, x: &[f32; KEYS], from: usize, to: usize) -> f32 {
    if (from, to) == (0, KEYS) {
        let a = s.max(s.load(lanes(x, 0)), s.load(lanes(x, LANES)));
        let b = s.max(s.load(lanes(x, 2 * LANES)), s.load(lanes(x, 3 * LANES)));
        return s.max_lane(s.max(a, b));
    }
    x[from..to].iter().fold(f32::NEG_INFINITY, |best, x| if *x > best { *x } else { best })
}

/// x = exp(x - max) inside `from .. to`, 0 outside.
#[inline(always)]
fn weigh<S: Simd>(s: S, x: &mut [f32; KEYS], max: f32, from: usize, to: usize) {
    for i in (0..KEYS).step_by(LANES) {
        let v = math::exp(s, s.sub(s.load(lanes(x, i)), s.splat(max)));
        s.store(v, lanes_mut(x, i));
    }
    x[..from].fill(0.0);
    x[to..].fill(0.0);
}
