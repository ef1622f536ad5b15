//! `Sequence`: tokens of one choice and how far they are computed. Owned by the scheduler; decides nothing.
//!
//! ```text
//! 0         prompt_len      tokens.len()         num_total
//! [ prompt ][ known output ][ tokens in flight ]
//! [ computed, maybe in flight ][ remaining: what the next steps compute ]
//! 0                       num_computed
//! ```

use std::collections::VecDeque;

use crate::block_allocator::BlockAllocator;
use crate::block_table::BlockTable;
use crate::queue::Rank;

/// Number of a sequence, given by the caller; free to be used again once the sequence is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A sequence as it is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSequence {
    /// Its number.
    pub id: SequenceId,
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Most output tokens, at least one; for each child as well.
    pub max_tokens: u32,
    /// Lower is served first.
    pub priority: i32,
    /// Only sequences of the same salt share blocks.
    pub salt: u64,
    /// False to have every prompt token computed (prompt logprobs need that): the sequence takes no hits.
    pub use_prefix_cache: bool,
    /// The other choices of the request: forked off when the prompt is computed.
    pub children: Vec<SequenceId>,
}

/// A sequence in the scheduler, waiting or running.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub rank: Rank,
    /// Known tokens; those in flight come after them.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    pub max_tokens: usize,
    pub salt: u64,
    pub use_prefix_cache: bool,
    /// Not forked yet.
    pub children: Vec<SequenceId>,
    /// Positions `0..num_computed` are in the blocks of `table` once the steps made so far have run. 0 while waiting.
    pub num_computed: usize,
    pub table: BlockTable,
    /// The steps that sample a token of this sequence and are not committed, in order.
    pub in_flight: VecDeque<u64>,
    /// It has run before: the next admission is a resumption.
    pub was_admitted: bool,
}

impl Sequence {
    pub(crate) fn new(new: NewSequence, arrival: u64) -> Sequence {
        Sequence {
            rank: Rank { priority: new.priority, arrival, branch: 0 },
            prompt_len: new.prompt.len(),
            tokens: new.prompt,
            max_tokens: new.max_tokens as usize,
            salt: new.salt,
            use_prefix_cache: new.use_prefix_cache,
            children: new.children,
            num_computed: 0,
            table: BlockTable::default(),
            in_flight: VecDeque::new(),
            was_admitted: false,
        }
    }

    /// Child number `branch`, of a sequence whose prompt is computed: the same in all but rank, over the blocks of `table`.
    pub(crate) fn fork(&self, branch: usize, table: BlockTable) -> Sequence {
        Sequence {
            rank: Rank { branch, ..self.rank },
            tokens: self.tokens.clone(),
            children: Vec::new(),
            in_flight: self.in_flight.clone(),
            table,
            ..*self
        }
    }

    /// Known tokens and tokens in flight.
    pub(crate) fn num_total(&self) -> usize {
        self.tokens.len() + self.in_flight.len()
    }

    /// Tokens to compute. At least one: sampling a token adds it here.
    pub(crate) fn num_remaining(&self) -> usize {
        self.num_total() - self.num_computed
    }

    /// Sequences that this one stands for when `max_num_seqs` is kept.
    pub(crate) fn num_choices(&self) -> usize {
        1 + self.children.len()
    }

    /// Tokens that are known and computed (or about to be, by a step that was made). A token in flight comes to them when it is committed.
    fn num_known(&self) -> usize {
        self.num_computed.min(self.tokens.len())
    }

    /// Whether known tokens fill blocks that were not made findable yet.
    pub(crate) fn has_full_blocks_to_register(&self, block_size: usize) -> bool {
        self.table.end_of_next_registered(block_size) <= self.num_known()
    }

    /// Makes them findable.
    pub(crate) fn register_full_blocks(&mut self, allocator: &mut BlockAllocator) {
        let num_known = self.num_known();
        self.table.register(self.salt, &self.tokens[..num_known], allocator);
    }

    /// Whether it ends with the tokens in flight at the latest: nothing is left to compute.
    pub(crate) fn ends_in_flight(&self, max_model_len: usize) -> bool {
        !self.in_flight.is_empty() && (self.num_total() - self.prompt_len >= self.max_tokens || self.num_total() >= max_model_len)
    }
}
