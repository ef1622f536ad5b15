//! Step metadata: which tokens, of which sequences, at which places of the cache. Made by `runner/`, read by ops.

use super::Device;

/// What every op of a step may need to know about its batch. Built once a step by `runner/inputs.rs`.
///
/// Sequences are packed one after another: the tokens of sequence `s` are rows `cu_seqlens_q[s] .. cu_seqlens_q[s + 1]`. A step may end
/// with rows that only fill it up to a recorded shape: sequences of one token with slot -1 and context length 0. They write nothing to
/// the cache and read nothing from it; what ops compute for them is of no interest, as long as other rows do not depend on it.
pub struct StepTensors<D: Device> {
    /// Tokens of the step.
    pub num_tokens: usize,
    /// Sequences of the step.
    pub num_seqs: usize,
    /// Longest run of query tokens of one sequence.
    pub max_query_len: usize,
    /// Longest context (computed + this step's tokens) of one sequence, or a bound of it.
    pub max_context_len: usize,
    /// `[num_tokens]` token ids; an entry whose `token_source` is >= 0 is filled in by `resolve_tokens`.
    pub token_ids: D::Ints,
    /// `[num_tokens]` sampler slot that holds the token (sampled by the step before, perhaps still running), or -1.
    pub token_source: D::Ints,
    /// `[num_tokens]` position of each token in its sequence.
    pub positions: D::Ints,
    /// `[num_tokens]` slot = block * block_size + offset where the token's k and v go; -1: nowhere.
    pub slot_mapping: D::Ints,
    /// `[num_seqs + 1]` first row of each sequence.
    pub cu_seqlens_q: D::Ints,
    /// `[num_seqs]` context length including this step's tokens.
    pub context_lens: D::Ints,
    /// `[num_seqs, max_blocks_per_seq]` physical block of each logical block, padded with 0.
    pub block_tables: D::Ints,
    /// Row stride of `block_tables`.
    pub max_blocks_per_seq: usize,
    /// Groups of sequences with one query token that begin with the same blocks; 0 on a device that makes no use of them.
    pub num_prefix_groups: usize,
    /// `[3 + 3 * room]` number of groups, members of all, keys of the longest prefix; then of each group its first member, members, keys.
    pub prefix_groups: D::Ints,
    /// `[num_seqs]` sequences, group after group.
    pub prefix_members: D::Ints,
    /// `[num_seqs]` keys that a sequence shares with its group: whole blocks before its last key. 0: in no group.
    pub prefix_lens: D::Ints,
    /// Rows of the hidden state that get logits, of all groups.
    pub logit_rows: D::Ints,
    /// Where this group's rows begin in `logit_rows`.
    pub first_logit_row: usize,
    /// Number of this group's rows.
    pub num_logit_rows: usize,
    /// Where rows that get logits are gathered.
    pub gather: RowGather,
}

/// Where, on their way to the head, rows that get logits are taken out of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowGather {
    /// Nowhere: they are all rows of the step, in order.
    Never,
    /// In the last layer, behind its attention: they are one group, perhaps empty, and nothing is computed for other rows from there on.
    LastLayer,
    /// Behind the last layer, group after group.
    Head,
}

/// Bounds of the arrays.
#[derive(Clone, Copy, Debug)]
pub struct StepRoom {
    /// Tokens of a step.
    pub max_tokens: usize,
    /// Sequences of a step.
    pub max_seqs: usize,
    /// Blocks of a sequence.
    pub max_blocks_per_seq: usize,
}

impl StepRoom {
    /// Bytes of all arrays, without what a device puts between them.
    pub fn bytes(&self) -> usize {
        self.lens().iter().sum::<usize>() * 4
    }

    /// Lengths of the arrays of `StepTensors`, in their order.
    pub fn lens(&self) -> [usize; 11] {
        let (tokens, seqs) = (self.max_tokens, self.max_seqs);
        // A row may be wanted twice: for its sequence's next token and for a prompt logprob.
        [tokens, tokens, tokens, tokens, seqs + 1, seqs, seqs * self.max_blocks_per_seq, tokens + seqs, 3 + 3 * seqs, seqs, seqs]
    }
}

/// The arrays of `StepTensors` on the host, under the same names.
#[derive(Clone, Debug, Default)]
pub struct StepInts {
    /// See `StepTensors`, here and below.
    pub token_ids: Vec<i32>,
    /// Sampler slots or -1.
    pub token_source: Vec<i32>,
    /// Positions.
    pub positions: Vec<i32>,
    /// Slots or -1.
    pub slot_mapping: Vec<i32>,
    /// First rows.
    pub cu_seqlens_q: Vec<i32>,
    /// Context lengths.
    pub context_lens: Vec<i32>,
    /// Physical blocks.
    pub block_tables: Vec<i32>,
    /// Rows that get logits.
    pub logit_rows: Vec<i32>,
    /// Groups.
    pub prefix_groups: Vec<i32>,
    /// Their sequences.
    pub prefix_members: Vec<i32>,
    /// Shared keys.
    pub prefix_lens: Vec<i32>,
}

impl StepInts {
    /// The arrays in the order of `StepRoom::lens`.
    pub fn arrays(&self) -> [&[i32]; 11] {
        [
            &self.token_ids,
            &self.token_source,
            &self.positions,
            &self.slot_mapping,
            &self.cu_seqlens_q,
            &self.context_lens,
            &self.block_tables,
            &self.logit_rows,
            &self.prefix_groups,
            &self.prefix_members,
            &self.prefix_lens,
        ]
    }

    /// Empties all arrays and keeps their memory.
    pub fn clear(&mut self) {
        for array in [&mut self.token_ids, &mut self.token_source, &mut self.positions, &mut self.slot_mapping] {
            array.clear();
        }
        for array in [&mut self.cu_seqlens_q, &mut self.context_lens, &mut self.block_tables, &mut self.logit_rows] {
            array.clear();
        }
        for array in [&mut self.prefix_groups, &mut self.prefix_members, &mut self.prefix_lens] {
            array.clear();
        }
    }
}

impl<D: Device> StepTensors<D> {
    /// An empty step whose arrays `alloc` makes, in the order of `StepRoom::lens`.
    ///
    /// # Errors
    /// What `alloc` answers.
    pub fn alloc<E>(room: &StepRoom, alloc: impl Fn(usize) -> Result<D::Ints, E>) -> Result<StepTensors<D>, E> {
        let [token_ids, token_source, positions, slot_mapping, cu_seqlens_q, context_lens, block_tables, logit_rows, groups, members, lens] =
            room.lens();
        Ok(StepTensors {
            num_tokens: 0,
            num_seqs: 0,
            max_query_len: 0,
            max_context_len: 0,
            token_ids: alloc(token_ids)?,
            token_source: alloc(token_source)?,
            positions: alloc(positions)?,
            slot_mapping: alloc(slot_mapping)?,
            cu_seqlens_q: alloc(cu_seqlens_q)?,
            context_lens: alloc(context_lens)?,
            block_tables: alloc(block_tables)?,
            max_blocks_per_seq: room.max_blocks_per_seq,
            logit_rows: alloc(logit_rows)?,
            num_prefix_groups: 0,
            prefix_groups: alloc(groups)?,
            prefix_members: alloc(members)?,
            prefix_lens: alloc(lens)?,
            first_logit_row: 0,
            num_logit_rows: 0,
            gather: RowGather::Head,
        })
    }

    /// Calls `each` for every array with its namesake of `ints`, in the order of `StepRoom::lens`.
    ///
    /// # Errors
    /// What `each` answers.
    pub fn for_each<E>(&mut self, ints: &StepInts, mut each: impl FnMut(&mut D::Ints, &[i32]) -> Result<(), E>) -> Result<(), E> {
        let arrays = [
            &mut self.token_ids,
            &mut self.token_source,
            &mut self.positions,
            &mut self.slot_mapping,
            &mut self.cu_seqlens_q,
            &mut self.context_lens,
            &mut self.block_tables,
            &mut self.logit_rows,
            &mut self.prefix_groups,
            &mut self.prefix_members,
            &mut self.prefix_lens,
        ];
        arrays.into_iter().zip(ints.arrays()).try_for_each(|(dst, src)| each(dst, src))
    }
}
