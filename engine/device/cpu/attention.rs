//! Causal attention over the paged cache: splits the step into tasks of (sequence, kv head, tile of query rows) and merges what they find.
//!
//! The query heads of one kv head and some neighbouring tokens form a tile of rows, so keys and values are read once for all of them.
//! Keys are taken in tiles of 64 positions and partitions of 256, both counted from position 0. Each partition has an online softmax of
//! its own and partitions are merged in order, whether one task does them all or, when there are few tasks (decode over a long context),
//! each is a task. So a query's result depends on its position alone: not on batch, chunking or number of threads.
//!
//! After FlashAttention and flash-decoding (Dao et al., BSD-3-Clause).
#![allow(unsafe_code)]

use super::CpuDevice;
use super::attention_tile::{PARTITION, RowTile};
use super::kv::CpuKv;
use super::scratch::with_scratch;
use super::threads::SharedMut;
use crate::device::AttentionParams;

/// Query rows of a tile, about.
const TILE_ROWS: usize = 32;

/// Operands of the op, on slices.
pub struct Attention<'a> {
    /// `[num_tokens, qkv_cols]`.
    pub qkv: &'a [f32],
    /// Columns of `qkv`.
    pub qkv_cols: usize,
    /// The cache.
    pub kv: &'a CpuKv,
    /// `[num_seqs + 1]`.
    pub cu_seqlens_q: &'a [i32],
    /// `[num_seqs]`.
    pub context_lens: &'a [i32],
    /// `[num_seqs, max_blocks_per_seq]`.
    pub block_tables: &'a [i32],
    /// Row stride of `block_tables`.
    pub max_blocks_per_seq: usize,
    /// The layer.
    pub params: &'a AttentionParams,
}

/// Tokens `token .. token + tokens` of sequence `seq` at one kv head, over partitions `partitions.0 .. partitions.1`.
#[derive(Clone, Copy)]
struct Task {
    seq: usize,
    kv_head: usize,
    token: usize,
    tokens: usize,
    partitions: (usize, usize),
}

impl CpuDevice {
    /// out `[num_tokens, num_heads * head_dim]`.
    pub(super) fn attention_slices(&self, out: &mut [f32], op: &Attention<'_>) {
        let params = op.params;
        let group = params.num_heads / params.num_kv_heads;
        assert_eq!(group * params.num_kv_heads, params.num_heads, "query heads are a multiple of kv heads");
        assert_eq!((params.num_kv_heads, params.head_dim), (op.kv.shape.num_kv_heads, op.kv.shape.head_dim), "heads of the kv cache");
        let tasks = op.tasks(group);
        let out = SharedMut::new(out);
        let split = tasks.len() < 4 * self.pool.threads() && tasks.iter().any(|task| task.partitions.1 - task.partitions.0 > 1);
        if split {
            return self.attention_split(&out, op, &tasks, group);
        }
        self.pool.run(tasks.len(), |index| {
            // The last tiles of a prompt see the most keys, so they go first.
            let task = &tasks[tasks.len() - 1 - index];
            let rows = op.row_tile(task, group);
            with_scratch(rows.scratch_len(), |scratch| {
                let state = self.dispatch.run(rows.over(task.partitions, scratch));
                op.write(&out, task, group, state);
            });
        });
    }

    /// Few tasks: each partition is a task of its own, then the partitions of each are merged in order.
    fn attention_split(&self, out: &SharedMut<'_, f32>, op: &Attention<'_>, tasks: &[Task], group: usize) {
        let mut parts = Vec::new();
        let mut offset = 0;
        for task in tasks {
            let len = op.row_tile(task, group).state_len();
            for p in task.partitions.0..task.partitions.1 {
                parts.push((Task { partitions: (p, p + 1), ..*task }, offset));
                offset += len;
            }
        }
        let mut states = self.attention_states.lock();
        if states.len() < offset {
            states.resize(offset, 0.0);
        }
        let shared = SharedMut::new(&mut states);
        self.pool.run(parts.len(), |index| {
            let (task, offset) = &parts[index];
            let rows = op.row_tile(task, group);
            with_scratch(rows.scratch_len(), |scratch| {
                let state = self.dispatch.run(rows.over(task.partitions, scratch));
                // SAFETY: every part has its own range.
                unsafe { shared.slice(*offset, state.len()) }.copy_from_slice(state);
            });
        });
        let mut offset = 0;
        for task in tasks {
            let rows = op.row_tile(task, group);
            let len = rows.state_len();
            let count = task.partitions.1 - task.partitions.0;
            let (first, rest) = states[offset..][..count * len].split_at_mut(len);
            rest.chunks_exact(len).for_each(|part| self.dispatch.run(rows.merge(first, part)));
            op.write(out, task, group, first);
            offset += count * len;
        }
    }
}

impl Attention<'_> {
    fn tasks(&self, group: usize) -> Vec<Task> {
        let tile = (TILE_ROWS / group).max(1);
        let mut tasks = Vec::with_capacity(self.context_lens.len() * self.params.num_kv_heads);
        for seq in 0..self.context_lens.len() {
            let (first, len, context) = self.sequence(seq);
            for start in (0..len).step_by(tile) {
                let tokens = tile.min(len - start);
                let first_position = context - len + start;
                let oldest = self.params.window.map_or(0, |window| (first_position + 1).saturating_sub(window));
                let partitions = (oldest / PARTITION, (first_position + tokens).div_ceil(PARTITION));
                let task = |kv_head| Task { seq, kv_head, token: first + start, tokens, partitions };
                tasks.extend((0..self.params.num_kv_heads).map(task));
            }
        }
        tasks
    }

    /// First row, query tokens and context of a sequence.
    fn sequence(&self, seq: usize) -> (usize, usize, usize) {
        let (first, last) = (self.cu_seqlens_q[seq] as usize, self.cu_seqlens_q[seq + 1] as usize);
        let context = self.context_lens[seq] as usize;
        assert!(first <= last && last - first <= context, "sequence {seq}: rows {first}..{last}, context {context}");
        (first, last - first, context)
    }

    fn row_tile(&self, task: &Task, group: usize) -> RowTile<'_> {
        let (first, len, context) = self.sequence(task.seq);
        RowTile {
            qkv: self.qkv,
            qkv_cols: self.qkv_cols,
            kv: self.kv,
            blocks: &self.block_tables[task.seq * self.max_blocks_per_seq..][..self.max_blocks_per_seq],
            params: self.params,
            kv_head: task.kv_head,
            group,
            token: task.token,
            tokens: task.tokens,
            first_position: context - len + (task.token - first),
        }
    }

    /// Divides by the sums and writes the rows of `task`.
    fn write(&self, out: &SharedMut<'_, f32>, task: &Task, group: usize, state: &[f32]) {
        let (dim, cols) = (self.params.head_dim, self.params.num_heads * self.params.head_dim);
        let rows = task.tokens * group;
        let (acc, stats) = state.split_at(state.len() - 2 * rows);
        let stride = acc.len() / rows;
        for row in 0..rows {
            let (token, head) = (task.token + row / group, task.kv_head * group + row % group);
            let sum = stats[2 * row + 1];
            let inverse = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            // SAFETY: (token, head) belongs to one task.
            let out = unsafe { out.slice(token * cols + head * dim, dim) };
            out.iter_mut().zip(&acc[row * stride..]).for_each(|(out, acc)| *out = acc * inverse);
        }
    }
}
