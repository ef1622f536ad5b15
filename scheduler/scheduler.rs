//! `Scheduler`: the sequences of an engine and their way in and out. `schedule.rs` makes its steps, `commit.rs` takes their results.

use crate::block_allocator::{BlockAllocator, BlockId};
use crate::config::SchedulerConfig;
use crate::error::{AddError, ConfigError};
use crate::id_map::IdMap;
use crate::queue::Queue;
use crate::sequence::{NewSequence, Sequence, SequenceId};
use crate::stats::Counters;

/// All sequences of an engine and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) sequences: IdMap<SequenceId, Sequence>,
    /// Children that are not forked yet, with their parents.
    pub(crate) unforked: IdMap<SequenceId, SequenceId>,
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
            sequences: IdMap::default(),
            unforked: IdMap::default(),
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

    /// Both of a sequence: its known tokens and its blocks.
    pub fn tokens_and_blocks(&self, id: SequenceId) -> Option<(&[u32], &[BlockId])> {
        self.sequences.get(&id).map(|sequence| (sequence.tokens.as_slice(), sequence.table.blocks()))
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::step::{Committed, SampledToken, Step};

    /// Blocks of 4 tokens, 16 of them; 4 sequences, 16 tokens a step.
    pub(crate) const CONFIG: SchedulerConfig = SchedulerConfig {
        block_size: 4,
        num_blocks: 16,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        min_chunk: 1,
        max_model_len: 64,
        prefix_caching: true,
        max_waiting: 4,
    };

    pub(crate) fn scheduler(config: SchedulerConfig) -> Scheduler {
        Scheduler::new(config).expect("the config of a test is valid")
    }

    /// A sequence with tokens `first_token..` as its prompt.
    pub(crate) fn sequence(id: u64, first_token: u32, prompt_len: u32) -> NewSequence {
        NewSequence {
            id: SequenceId(id),
            prompt: (first_token..first_token + prompt_len).collect(),
            max_tokens: 50,
            priority: 0,
            salt: 0,
            use_prefix_cache: true,
            children: Vec::new(),
        }
    }

    /// Id, start and number of tokens of everything in the step.
    pub(crate) fn shares(step: &Step) -> Vec<(u64, usize, usize)> {
        step.sequences.iter().map(|scheduled| (scheduled.id.0, scheduled.start, scheduled.num_tokens)).collect()
    }

    /// Commits the same token for every sample of the step.
    pub(crate) fn commit_all(scheduler: &mut Scheduler, step: &Step, token: u32, is_stop: bool) -> Vec<Committed> {
        let ids = step.sequences.iter().flat_map(|scheduled| &scheduled.samples);
        let sampled: Vec<SampledToken> = ids.map(|id| SampledToken { id: *id, token, is_stop }).collect();
        let committed = scheduler.commit(step, &sampled);
        scheduler.check_integrity();
        committed
    }

    #[test]
    fn what_can_never_run_is_refused() {
        let mut scheduler = scheduler(CONFIG);
        let children = |ids: &[u64]| ids.iter().copied().map(SequenceId).collect();
        scheduler.add(NewSequence { children: children(&[2, 3]), ..sequence(1, 0, 5) }).expect("it can run");
        let mut check = |new: NewSequence, error: AddError| assert_eq!(scheduler.add(new), Err(error));
        check(sequence(9, 0, 0), AddError::EmptyPrompt);
        check(NewSequence { max_tokens: 0, ..sequence(9, 0, 5) }, AddError::ZeroMaxTokens);
        check(sequence(9, 0, 64), AddError::PromptTooLong { prompt_tokens: 64, max: 63 });
        check(NewSequence { children: children(&[4, 5, 6, 7]), ..sequence(9, 0, 5) }, AddError::TooManyChoices { choices: 5, max: 4 });
        check(sequence(1, 0, 5), AddError::DuplicateId(SequenceId(1)));
        check(sequence(3, 0, 5), AddError::DuplicateId(SequenceId(3)));
        check(NewSequence { children: children(&[2]), ..sequence(9, 0, 5) }, AddError::DuplicateId(SequenceId(2)));
        check(NewSequence { children: children(&[9]), ..sequence(9, 0, 5) }, AddError::DuplicateId(SequenceId(9)));
        for id in 10..13 {
            scheduler.add(sequence(id, 0, 63)).expect("four may wait");
        }
        assert_eq!(scheduler.add(sequence(9, 0, 5)), Err(AddError::QueueFull { max: 4 }));
        scheduler.check_integrity();
    }

    #[test]
    fn abort_takes_unforked_children_along_and_no_others() {
        let mut scheduler = scheduler(CONFIG);
        let new = NewSequence { children: vec![SequenceId(2), SequenceId(3)], ..sequence(1, 0, 20) };
        scheduler.add(new.clone()).expect("it can run");
        let first_chunk = scheduler.schedule();
        assert!(scheduler.abort(SequenceId(2)), "one choice less");
        assert!(scheduler.abort(SequenceId(1)), "the parent and the other choice");
        assert!(!scheduler.abort(SequenceId(3)) && !scheduler.has_work());
        assert_eq!(scheduler.stats().num_used_blocks, 0);
        assert_eq!(commit_all(&mut scheduler, &first_chunk, 7, false), []);

        scheduler.add(new).expect("the ids are free again");
        let last_chunk = scheduler.schedule();
        assert_eq!(last_chunk.sequences[0].samples, [SequenceId(1), SequenceId(2), SequenceId(3)]);
        assert!(scheduler.abort(SequenceId(1)));
        let ids: Vec<u64> = commit_all(&mut scheduler, &last_chunk, 7, false).iter().map(|committed| committed.id.0).collect();
        assert_eq!(ids, [2, 3]);
        assert_eq!(scheduler.num_output_tokens(SequenceId(3)), Some(1));
    }

    #[test]
    fn clearing_forgets_running_sequences_too() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(sequence(1, 0, 10)).expect("it can run");
        let step = scheduler.schedule();
        scheduler.clear_prefix_cache();
        commit_all(&mut scheduler, &step, 7, false);
        for _ in 0..8 {
            let step = scheduler.schedule();
            commit_all(&mut scheduler, &step, 7, false);
        }
        scheduler.abort(SequenceId(1));
        assert_eq!(scheduler.stats().num_evictable_blocks, 0);
        scheduler.add(sequence(2, 0, 10)).expect("it can run");
        assert_eq!(shares(&scheduler.schedule()), [(2, 0, 10)]);
    }
}
