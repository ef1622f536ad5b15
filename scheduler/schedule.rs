//! `Scheduler`: takes sequences in and makes steps. Knows no model, no device and no clock.
//!
//! There are no phases. A sequence's `num_computed` catches up with its tokens; a step gives each running sequence some of the remaining
//! ones under one token budget, then admits waiting ones. Chunked prefill, prefix hits and recomputation after preemption are that one rule.
//!
//! Steps run on the device in the order in which they are made, and a step may be made while those before it still run. So a block freed
//! here may still be written by a queued step: whoever gets it next writes later. And a block may be found before the queued step that
//! fills it has run: whoever reads it runs after that step, even if the sequence that filled it is gone by then.
//!
//! The one rule and the token budget are ideas of vLLM V1 (Apache-2.0).

use std::collections::BTreeMap;

use crate::block_allocator::{BlockAllocator, BlockId};
use crate::block_table::BlockTable;
use crate::config::SchedulerConfig;
use crate::error::{AddError, ConfigError};
use crate::queue::Queue;
use crate::sequence::{NewSequence, Sequence, SequenceId};
use crate::stats::Counters;
use crate::step::{Admission, ScheduledSequence, Step};

/// All sequences of an engine and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) sequences: BTreeMap<SequenceId, Sequence>,
    /// Children that are not forked yet, with their parents.
    pub(crate) unforked: BTreeMap<SequenceId, SequenceId>,
    pub(crate) waiting: Queue,
    pub(crate) running: Queue,
    pub(crate) allocator: BlockAllocator,
    pub(crate) counters: Counters,
    next_arrival: u64,
    next_step: u64,
    /// Id of the last committed step, plus one.
    pub(crate) next_commit: u64,
}

/// A step in the making.
struct StepBuilder {
    step: Step,
    /// Tokens that may still be scheduled.
    budget: usize,
    /// Running sequences, not visited yet, that need one token only. A chunk of a prompt leaves them room.
    num_decodes_ahead: usize,
    /// Blocks of preempted sequences that a copy of this step reads: handed out only after this step, since the copies have no order.
    copy_sources: Vec<BlockId>,
}

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Errors
    /// The configuration cannot work; see [`SchedulerConfig::validate`].
    pub fn new(config: SchedulerConfig) -> Result<Scheduler, ConfigError> {
        config.validate()?;
        Ok(Scheduler {
            sequences: BTreeMap::new(),
            unforked: BTreeMap::new(),
            waiting: Queue::default(),
            running: Queue::default(),
            allocator: BlockAllocator::new(config.num_blocks, config.block_size),
            counters: Counters::default(),
            next_arrival: 0,
            next_step: 0,
            next_commit: 0,
            config,
        })
    }

    /// Puts a sequence in the queue.
    ///
    /// # Errors
    /// The sequence could never run, its id or a child's is in use, or the queue is full. Nothing has changed then.
    pub fn add(&mut self, new: NewSequence) -> Result<(), AddError> {
        let max_prompt = self.config.max_model_len - 1;
        let choices = 1 + new.children.len();
        if new.prompt.is_empty() {
            return Err(AddError::EmptyPrompt);
        }
        if new.max_tokens == 0 {
            return Err(AddError::ZeroMaxTokens);
        }
        if new.prompt.len() > max_prompt {
            return Err(AddError::PromptTooLong { prompt_tokens: new.prompt.len(), max: max_prompt });
        }
        if choices > self.config.max_num_seqs {
            return Err(AddError::TooManyChoices { choices, max: self.config.max_num_seqs });
        }
        let mut ids: Vec<SequenceId> = std::iter::once(new.id).chain(new.children.iter().copied()).collect();
        ids.sort_unstable();
        let twice = ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        let in_use = || ids.iter().copied().find(|id| self.sequences.contains_key(id) || self.unforked.contains_key(id));
        if let Some(id) = twice.or_else(in_use) {
            return Err(AddError::DuplicateId(id));
        }
        if self.waiting.len() >= self.config.max_waiting {
            return Err(AddError::QueueFull { max: self.config.max_waiting });
        }
        self.unforked.extend(new.children.iter().map(|child| (*child, new.id)));
        let id = new.id;
        let sequence = Sequence::new(new, self.next_arrival);
        self.next_arrival += 1;
        self.waiting.insert(sequence.rank, id);
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Drops a sequence and frees its blocks at once; its tokens in flight are dropped at their commit. Children that are not forked yet
    /// go with their parent; after that each is on its own. False when there is no such sequence.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        if let Some(parent) = self.unforked.remove(&id) {
            let parent = self.sequences.get_mut(&parent).expect("an unforked child has a parent");
            parent.children.retain(|child| *child != id);
            return true;
        }
        self.remove(id)
    }

    /// What to compute next; the id of the step counts up from 0. An empty step while there is work means that everything waits for a commit.
    pub fn schedule(&mut self) -> Step {
        let step = Step { id: self.next_step, ..Step::default() };
        self.next_step += 1;
        let mut builder = StepBuilder { step, budget: self.config.max_num_batched_tokens, num_decodes_ahead: 0, copy_sources: Vec::new() };
        self.schedule_running(&mut builder);
        // What a preemption has freed is for the sequences that run.
        if builder.step.preempted.is_empty() {
            self.admit_waiting(&mut builder);
        }
        for block in builder.copy_sources {
            self.allocator.release(block);
        }
        // Only now: within a step no sequence reads what another one writes.
        for scheduled in &builder.step.sequences {
            self.register_full_blocks(scheduled.id);
        }
        builder.step
    }

    /// Advances the running sequences in order of service. Whoever finds no free block takes those of the last in order.
    fn schedule_running(&mut self, builder: &mut StepBuilder) {
        let order: Vec<SequenceId> = self.running.iter().collect();
        builder.num_decodes_ahead = order.iter().filter(|id| self.is_decode(**id)).count();
        for id in order {
            let sequence = &self.sequences[&id];
            if !self.running.contains(sequence.rank) || sequence.ends_in_flight(self.config.max_model_len) {
                continue;
            }
            let num_tokens = if self.is_decode(id) {
                builder.num_decodes_ahead -= 1;
                1
            } else {
                sequence.num_remaining().min(builder.budget - builder.num_decodes_ahead)
            };
            if num_tokens > 0 && self.make_room(id, num_tokens, builder) {
                self.advance(id, num_tokens, None, builder);
            }
        }
    }

    /// Preempts until sequence `id` finds blocks for `num_tokens` more. False if that took its own.
    ///
    /// Those preempted come after `id` in order, so they are not in the step yet. (Children forked in this step are: they come right
    /// after their parent, before all that still look for room.)
    fn make_room(&mut self, id: SequenceId, num_tokens: usize, builder: &mut StepBuilder) -> bool {
        loop {
            let sequence = &self.sequences[&id];
            let (start, end) = (sequence.num_computed, sequence.num_computed + num_tokens);
            if sequence.table.num_missing(start, end, &self.allocator) <= self.allocator.num_free() {
                return true;
            }
            let victim = self.running.last().expect("a sequence that looks for room is running");
            if victim != id && self.is_decode(victim) {
                builder.num_decodes_ahead -= 1;
            }
            self.preempt(victim, builder);
            if victim == id {
                return false;
            }
        }
    }

    /// From running to waiting. The tokens stay, those in flight too: until they are committed it is not admitted again.
    fn preempt(&mut self, id: SequenceId, builder: &mut StepBuilder) {
        let sequence = self.sequences.get_mut(&id).expect("a running sequence exists");
        self.running.remove(sequence.rank);
        self.waiting.insert(sequence.rank, id);
        sequence.num_computed = 0;
        let table = std::mem::take(&mut sequence.table);
        if let Some(tail) = table.blocks().last().filter(|tail| builder.step.block_copies.iter().any(|copy| copy.src == **tail)) {
            self.allocator.retain(*tail);
            builder.copy_sources.push(*tail);
        }
        table.release(&mut self.allocator);
        self.counters.num_preemptions += 1;
        builder.step.preempted.push(id);
    }

    /// Admits waiting sequences in order, as long as there is room for all tokens of all who run. Nobody overtakes the first in the queue.
    fn admit_waiting(&mut self, builder: &mut StepBuilder) {
        let mut num_running: usize = self.running.iter().map(|id| self.sequences[&id].num_choices()).sum();
        let mut num_promised: usize = self.running.iter().map(|id| self.num_blocks_to_come(&self.sequences[&id])).sum();
        while builder.budget > 0 {
            let Some(id) = self.waiting.first() else { return };
            let sequence = &self.sequences[&id];
            num_running += sequence.num_choices();
            if !sequence.in_flight.is_empty() || num_running > self.config.max_num_seqs {
                return;
            }
            // At least one token is computed: there has to be something to sample from.
            let hits = if self.config.prefix_caching && sequence.use_prefix_cache {
                self.allocator.find(sequence.salt, &sequence.tokens[..sequence.tokens.len() - 1])
            } else {
                Vec::new()
            };
            let num_free_hits = hits.iter().filter(|block| self.allocator.ref_count(**block) == 0).count();
            num_promised += self.num_blocks_to_come(sequence) - hits.len();
            // The first to run always has room: the pool holds a sequence of any length.
            if !self.running.is_empty() && num_promised + num_free_hits > self.allocator.num_free() {
                return;
            }
            let num_before = self.allocator.num_free();
            self.admit(id, hits, builder);
            num_promised -= num_before - self.allocator.num_free() - num_free_hits;
        }
    }

    /// Blocks that the tokens of a sequence take beyond those it holds, and one for each child.
    fn num_blocks_to_come(&self, sequence: &Sequence) -> usize {
        let num_blocks = sequence.num_total().div_ceil(self.config.block_size);
        (num_blocks + sequence.children.len()).saturating_sub(sequence.table.blocks().len())
    }

    /// From waiting to running, with the blocks that were found.
    fn admit(&mut self, id: SequenceId, hits: Vec<BlockId>, builder: &mut StepBuilder) {
        let sequence = self.sequences.get_mut(&id).expect("a waiting sequence exists");
        let cached_tokens = hits.len() * self.config.block_size;
        let admission = Admission { cached_tokens, resumed: sequence.was_admitted };
        if !sequence.was_admitted && self.config.prefix_caching && sequence.use_prefix_cache {
            self.counters.num_prefix_query_tokens += sequence.tokens.len() as u64;
            self.counters.num_prefix_hit_tokens += cached_tokens as u64;
        }
        self.waiting.remove(sequence.rank);
        self.running.insert(sequence.rank, id);
        sequence.was_admitted = true;
        sequence.num_computed = cached_tokens;
        sequence.table = BlockTable::from_hits(hits, &mut self.allocator);
        let num_tokens = sequence.num_remaining().min(builder.budget);
        self.advance(id, num_tokens, Some(admission), builder);
    }

    /// Puts the next `num_tokens` of a sequence into the step. When they reach its end a token is sampled, and children fork off.
    fn advance(&mut self, id: SequenceId, num_tokens: usize, admitted: Option<Admission>, builder: &mut StepBuilder) {
        let sequence = self.sequences.get_mut(&id).expect("a scheduled sequence exists");
        let start = sequence.num_computed;
        let copy = sequence.table.prepare_write(start, start + num_tokens, &mut self.allocator);
        let input_in_flight = !sequence.in_flight.is_empty();
        sequence.num_computed += num_tokens;
        let mut samples = Vec::new();
        if sequence.num_remaining() == 0 {
            sequence.in_flight.push_back(builder.step.id);
            samples.push(id);
            samples.append(&mut sequence.children);
        }
        for (branch, child_id) in samples.iter().copied().enumerate().skip(1) {
            let parent = &self.sequences[&id];
            let child = parent.fork(branch, parent.table.fork(&mut self.allocator));
            self.running.insert(child.rank, child_id);
            self.unforked.remove(&child_id);
            self.sequences.insert(child_id, child);
        }
        builder.budget -= num_tokens;
        builder.step.num_tokens += num_tokens;
        builder.step.block_copies.extend(copy);
        builder.step.sequences.push(ScheduledSequence { id, start, num_tokens, admitted, input_in_flight, samples });
    }

    /// Whether one token brings the running sequence to its end.
    fn is_decode(&self, id: SequenceId) -> bool {
        let sequence = &self.sequences[&id];
        sequence.num_remaining() == 1 && !sequence.ends_in_flight(self.config.max_model_len)
    }

    /// Makes blocks findable whose tokens are known and computed (or about to be, by a step that was made). A block that ends with a token in
    /// flight is registered when that token is committed.
    pub(crate) fn register_full_blocks(&mut self, id: SequenceId) {
        if !self.config.prefix_caching {
            return;
        }
        let sequence = self.sequences.get_mut(&id).expect("only sequences that exist are registered");
        let num_known = sequence.num_computed.min(sequence.tokens.len());
        sequence.table.register(sequence.salt, &sequence.tokens[..num_known], &mut self.allocator);
    }

    /// Takes a sequence out. Whether it was there.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.remove(&id) else { return false };
        let was_queued = self.running.remove(sequence.rank) || self.waiting.remove(sequence.rank);
        assert!(was_queued, "a sequence is waiting or running");
        for child in &sequence.children {
            self.unforked.remove(child);
        }
        sequence.table.release(&mut self.allocator);
        true
    }

    /// Known tokens of a sequence, prompt and output.
    pub fn tokens(&self, id: SequenceId) -> Option<&[u32]> {
        self.sequences.get(&id).map(|sequence| sequence.tokens.as_slice())
    }

    /// Blocks of a sequence in logical order. They are those of the last step that was made: take them before the next.
    pub fn block_table(&self, id: SequenceId) -> Option<&[BlockId]> {
        self.sequences.get(&id).map(|sequence| sequence.table.blocks())
    }

    /// Known output tokens of a sequence.
    pub fn num_output_tokens(&self, id: SequenceId) -> Option<usize> {
        self.sequences.get(&id).map(|sequence| sequence.tokens.len() - sequence.prompt_len)
    }

    /// Prompt tokens of a sequence.
    pub fn prompt_len(&self, id: SequenceId) -> Option<usize> {
        self.sequences.get(&id).map(|sequence| sequence.prompt_len)
    }

    /// Whether any sequence waits or runs.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Sequences that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Forgets all prefixes, also those of running sequences.
    pub fn clear_prefix_cache(&mut self) {
        self.allocator.clear_cache();
        for sequence in self.sequences.values_mut() {
            sequence.table.skip_registering();
        }
    }
}
