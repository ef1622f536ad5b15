//! `Scheduler`: the sequences of an engine and their way in and out. `schedule.rs` makes its steps, `commit.rs` takes their results.

use std::collections::BTreeMap;

use crate::block_allocator::{BlockAllocator, BlockId};
use crate::config::SchedulerConfig;
use crate::error::{AddError, ConfigError};
use crate::queue::Queue;
use crate::sequence::{NewSequence, Sequence, SequenceId};
use crate::stats::Counters;

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
    pub(crate) next_step: u64,
    /// Id of the last committed step, plus one.
    pub(crate) next_commit: u64,
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
