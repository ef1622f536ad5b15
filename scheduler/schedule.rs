//! `Scheduler::schedule`: makes the next step. Knows no model, no device and no clock.
//!
//! There are no phases. A sequence's `num_computed` catches up with its tokens; a step gives each running sequence some of the remaining
//! ones under one token budget, then admits waiting ones. Chunked prefill, prefix hits and recomputation after preemption are that one rule.
//!
//! Steps run on the device in the order in which they are made, and a step may be made while those before it still run. So a block freed
//! here may still be written by a queued step: whoever gets it next writes later. And a block may be found before the queued step that
//! fills it has run: whoever reads it runs after that step, even if the sequence that filled it is gone by then.
//!
//! The one rule and the token budget are ideas of vLLM V1 (Apache-2.0).

use crate::block_allocator::BlockId;
use crate::block_table::BlockTable;
use crate::scheduler::Scheduler;
use crate::sequence::{Sequence, SequenceId};
use crate::step::{Admission, Samples, ScheduledSequence, Step};

/// A step in the making.
struct StepBuilder {
    step: Step,
    /// Tokens that may still be scheduled.
    budget: usize,
    /// Running sequences, not visited yet, that need one token only. A chunk of a prompt leaves them room.
    num_decodes_ahead: usize,
    /// Sequences of the step with full blocks that are not findable yet.
    filled_blocks: Vec<SequenceId>,
}

impl Scheduler {
    /// What to compute next; the id of the step counts up from 0. An empty step while there is work means that everything waits for a commit.
    pub fn schedule(&mut self) -> Step {
        let step = Step { id: self.next_step, ..Step::default() };
        self.next_step += 1;
        let mut builder = StepBuilder { step, budget: self.config.max_num_batched_tokens, num_decodes_ahead: 0, filled_blocks: Vec::new() };
        self.schedule_running(&mut builder);
        // What a preemption has freed is for the sequences that run.
        if builder.step.preempted.is_empty() {
            self.admit_waiting(&mut builder);
        }
        // The copies of a step may be made in any order: a block that is copied from is not reused within the step. Those who share it come
        // one after another in order of service and write for the first time in the same step, so the last of them keeps it.
        let mut sources = builder.step.block_copies.iter().map(|copy| copy.src);
        assert!(sources.all(|block| self.allocator.ref_count(block) > 0), "a block that is copied from was freed");
        // Only now: within a step no sequence reads what another one writes.
        for id in &builder.filled_blocks {
            let sequence = self.sequences.get_mut(id).expect("a scheduled sequence exists");
            sequence.register_full_blocks(&mut self.allocator);
        }
        builder.step
    }

    /// Advances the running sequences in order of service. Whoever finds no free block takes those of the last in order.
    fn schedule_running(&mut self, builder: &mut StepBuilder) {
        let order: Vec<SequenceId> = self.running.iter().collect();
        builder.num_decodes_ahead = order.iter().filter(|id| self.is_decode(**id)).count();
        for id in order {
            let sequence = &self.sequences[&id];
            let was_preempted = !builder.step.preempted.is_empty() && !self.running.contains(sequence.rank);
            if was_preempted || sequence.ends_in_flight(self.config.max_model_len) {
                continue;
            }
            let num_tokens = if sequence.num_remaining() == 1 {
                builder.num_decodes_ahead -= 1;
                1
            } else {
                chunk_len(sequence.num_remaining(), builder.budget - builder.num_decodes_ahead, self.config.min_chunk)
            };
            let (start, end) = (sequence.num_computed, sequence.num_computed + num_tokens);
            let has_room = || sequence.table.num_missing(start, end, &self.allocator) <= self.allocator.num_free();
            if num_tokens > 0 && (has_room() || self.make_room(id, num_tokens, builder)) {
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
        std::mem::take(&mut sequence.table).release(&mut self.allocator);
        self.counters.num_preemptions += 1;
        builder.step.preempted.push(id);
    }

    /// Admits waiting sequences in order, as long as there is room for all tokens of all who run. Nobody overtakes the first in the queue.
    fn admit_waiting(&mut self, builder: &mut StepBuilder) {
        let Some(first) = self.waiting.first() else { return };
        let mut num_running: usize = self.running.iter().map(|id| self.sequences[&id].num_choices()).sum();
        if num_running + self.sequences[&first].num_choices() > self.config.max_num_seqs {
            return;
        }
        let mut num_promised: usize = self.running.iter().map(|id| self.num_blocks_to_come(&self.sequences[&id])).sum();
        while builder.budget > 0 {
            let Some(id) = self.waiting.first() else { return };
            let sequence = &self.sequences[&id];
            num_running += sequence.num_choices();
            if !sequence.in_flight.is_empty() || num_running > self.config.max_num_seqs {
                return;
            }
            // At least one token is computed: there has to be something to sample from. At least a chunk of a prompt that is longer.
            let num_findable = sequence.tokens.len() - self.config.min_chunk.min(sequence.tokens.len());
            let hits = if self.config.prefix_caching && sequence.use_prefix_cache {
                self.allocator.find(sequence.salt, &sequence.tokens[..num_findable])
            } else {
                Vec::new()
            };
            let num_remaining = sequence.tokens.len() - hits.len() * self.config.block_size;
            if chunk_len(num_remaining, builder.budget, self.config.min_chunk) == 0 {
                return;
            }
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
        let num_tokens = chunk_len(sequence.num_remaining(), builder.budget, self.config.min_chunk);
        self.advance(id, num_tokens, Some(admission), builder);
    }

    /// Puts the next `num_tokens` of a sequence into the step. When they reach its end a token is sampled, and children fork off.
    fn advance(&mut self, id: SequenceId, num_tokens: usize, admitted: Option<Admission>, builder: &mut StepBuilder) {
        let sequence = self.sequences.get_mut(&id).expect("a scheduled sequence exists");
        let start = sequence.num_computed;
        let copy = sequence.table.prepare_write(start, start + num_tokens, &mut self.allocator);
        let input_in_flight = !sequence.in_flight.is_empty();
        sequence.num_computed += num_tokens;
        if self.config.prefix_caching && sequence.has_full_blocks_to_register(self.config.block_size) {
            builder.filled_blocks.push(id);
        }
        let mut samples = Samples::None;
        if sequence.num_remaining() == 0 {
            sequence.in_flight.push_back(builder.step.id);
            samples = if sequence.children.is_empty() {
                Samples::One([id])
            } else {
                Samples::Several(std::iter::once(id).chain(sequence.children.drain(..)).collect())
            };
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
}

/// Tokens of the next chunk: all, or as many as leave at least `min` for the one after it; none if that would be fewer than `min`.
fn chunk_len(num_remaining: usize, budget: usize, min: usize) -> usize {
    if num_remaining <= budget {
        return num_remaining;
    }
    let len = budget.min(num_remaining - min.min(num_remaining));
    if len < min { 0 } else { len }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SchedulerConfig;
    use crate::scheduler::tests::{CONFIG, commit_all, scheduler, sequence, shares};
    use crate::sequence::NewSequence;
    use crate::step::BlockCopy;

    /// Schedules and commits one step; what was in it.
    fn run_step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize)> {
        let step = scheduler.schedule();
        commit_all(scheduler, &step, 7, false);
        shares(&step)
    }

    #[test]
    fn a_long_prompt_comes_in_chunks_that_leave_room_for_the_others() {
        let mut scheduler = scheduler(SchedulerConfig { max_num_batched_tokens: 8, ..CONFIG });
        scheduler.add(sequence(1, 0, 3)).expect("it can run");
        scheduler.add(sequence(2, 100, 20)).expect("it can run");
        scheduler.add(sequence(3, 200, 4)).expect("it can run");
        assert_eq!(run_step(&mut scheduler), [(1, 0, 3), (2, 0, 5)]);
        assert_eq!(run_step(&mut scheduler), [(1, 3, 1), (2, 5, 7)]);
        assert_eq!(run_step(&mut scheduler), [(1, 4, 1), (2, 12, 7)]);
        assert_eq!(run_step(&mut scheduler), [(1, 5, 1), (2, 19, 1), (3, 0, 4)]);
        assert_eq!(run_step(&mut scheduler), [(1, 6, 1), (2, 20, 1), (3, 4, 1)]);
    }

    #[test]
    fn chunks_are_never_too_small() {
        for (num_remaining, budget, min, expected) in
            [(1, 1, 2, 1), (5, 9, 2, 5), (5, 4, 2, 3), (5, 3, 2, 3), (3, 2, 2, 0), (9, 1, 2, 0), (9, 0, 1, 0), (9, 4, 1, 4), (9, 8, 1, 8)]
        {
            assert_eq!(chunk_len(num_remaining, budget, min), expected, "{num_remaining} {budget} {min}");
        }
        let mut scheduler = scheduler(SchedulerConfig { max_num_batched_tokens: 6, min_chunk: 2, max_num_seqs: 4, ..CONFIG });
        scheduler.add(sequence(1, 0, 7)).expect("it can run");
        scheduler.add(sequence(2, 100, 5)).expect("it can run");
        // Six would leave one.
        assert_eq!(run_step(&mut scheduler), [(1, 0, 5)]);
        assert_eq!(run_step(&mut scheduler), [(1, 5, 2), (2, 0, 3)]);
        // The cache holds four of the third prompt's five tokens, and a hit would leave one.
        scheduler.add(sequence(3, 100, 5)).expect("it can run");
        assert_eq!(run_step(&mut scheduler), [(1, 7, 1), (2, 3, 2), (3, 0, 3)]);
        assert_eq!(run_step(&mut scheduler), [(1, 8, 1), (2, 5, 1), (3, 3, 2)]);
    }

    #[test]
    fn an_older_chunk_leaves_room_for_younger_decodes() {
        let mut scheduler = scheduler(SchedulerConfig { max_num_batched_tokens: 4, ..CONFIG });
        scheduler.add(NewSequence { priority: 1, ..sequence(1, 0, 3) }).expect("it can run");
        run_step(&mut scheduler);
        scheduler.add(sequence(2, 100, 20)).expect("it can run");
        assert_eq!(run_step(&mut scheduler), [(1, 3, 1), (2, 0, 3)]);
        assert_eq!(run_step(&mut scheduler), [(2, 3, 3), (1, 4, 1)]);
    }

    #[test]
    fn lower_priorities_run_first_and_equal_ones_by_arrival() {
        let mut scheduler = scheduler(SchedulerConfig { max_num_seqs: 1, ..CONFIG });
        for (id, priority) in [(1, 0), (2, 5), (3, -1), (4, 0)] {
            scheduler.add(NewSequence { priority, max_tokens: 1, ..sequence(id, 0, 3) }).expect("it can run");
        }
        let order: Vec<u64> = (0..4).map(|_| run_step(&mut scheduler)[0].0).collect();
        assert_eq!(order, [3, 1, 4, 2]);
    }

    #[test]
    fn blocks_of_a_queued_step_are_hits_and_one_token_is_computed_at_least() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(sequence(1, 0, 8)).expect("it can run");
        let queued = scheduler.schedule();
        scheduler.add(sequence(2, 0, 8)).expect("it can run");
        scheduler.add(NewSequence { use_prefix_cache: false, ..sequence(3, 0, 5) }).expect("it can run");
        scheduler.add(NewSequence { salt: 1, ..sequence(4, 0, 4) }).expect("it can run");
        let step = scheduler.schedule();
        assert_eq!(shares(&step), [(1, 8, 1), (2, 4, 4), (3, 0, 5), (4, 0, 4)]);
        assert_eq!(step.sequences[1].admitted, Some(Admission { cached_tokens: 4, resumed: false }));
        commit_all(&mut scheduler, &queued, 7, false);
        commit_all(&mut scheduler, &step, 7, false);
        let stats = scheduler.stats();
        assert_eq!((stats.num_prefix_query_tokens, stats.num_prefix_hit_tokens), (8 + 8 + 4, 4));
    }

    #[test]
    fn the_head_of_an_old_prompt_outlives_its_tail() {
        let mut scheduler = scheduler(SchedulerConfig { num_blocks: 6, max_model_len: 24, max_num_batched_tokens: 32, ..CONFIG });
        for (id, first_token, prompt_len) in [(1, 0, 16), (2, 100, 15)] {
            scheduler.add(NewSequence { max_tokens: 1, ..sequence(id, first_token, prompt_len) }).expect("it can run");
            run_step(&mut scheduler);
        }
        assert_eq!(scheduler.stats().num_evictions, 2);
        scheduler.add(sequence(3, 0, 16)).expect("it can run");
        assert_eq!(run_step(&mut scheduler), [(3, 8, 8)]);
    }

    #[test]
    fn the_last_of_the_lowest_priority_is_preempted_and_comes_back_first() {
        let mut scheduler = scheduler(SchedulerConfig { num_blocks: 6, max_model_len: 24, prefix_caching: false, ..CONFIG });
        for (id, priority) in [(1, 0), (2, 1), (3, 1)] {
            scheduler.add(NewSequence { priority, max_tokens: 6, ..sequence(id, 100 * id as u32, 4) }).expect("it can run");
        }
        assert_eq!(run_step(&mut scheduler), [(1, 0, 4), (2, 0, 4), (3, 0, 4)]);
        scheduler.add(NewSequence { priority: 1, ..sequence(4, 0, 4) }).expect("it can run");
        for start in 4..8 {
            assert_eq!(run_step(&mut scheduler), [(1, start, 1), (2, start, 1), (3, start, 1)]);
        }
        // Two blocks each, and all six are taken: sequence 1 takes those of 3.
        let step = scheduler.schedule();
        assert_eq!((shares(&step), &step.preempted[..]), (vec![(1, 8, 1), (2, 8, 1)], &[SequenceId(3)][..]));
        assert_eq!(scheduler.tokens(SequenceId(3)).map(<[u32]>::len), Some(9));
        commit_all(&mut scheduler, &step, 7, false);
        let step = scheduler.schedule();
        assert_eq!(shares(&step), [(3, 0, 9), (4, 0, 4)]);
        assert_eq!(step.sequences[0].admitted, Some(Admission { cached_tokens: 0, resumed: true }));
        assert_eq!(scheduler.stats().num_preemptions, 1);
    }

    #[test]
    fn a_preempted_sequence_waits_for_its_token_in_flight() {
        let mut scheduler = scheduler(SchedulerConfig { num_blocks: 2, max_model_len: 8, ..CONFIG });
        for id in [1, 2] {
            scheduler.add(sequence(id, 100 * id as u32, 4)).expect("it can run");
        }
        let first = scheduler.schedule();
        let second = scheduler.schedule();
        assert_eq!((shares(&second), &second.preempted[..]), (vec![(1, 4, 1)], &[SequenceId(2)][..]));
        scheduler.abort(SequenceId(1));
        assert!(scheduler.schedule().is_empty());
        assert_eq!(commit_all(&mut scheduler, &first, 7, false).len(), 1);
        // Sequence 1 got its block, so all is computed again.
        assert_eq!(shares(&scheduler.schedule()), [(2, 0, 5)]);
        assert_eq!(scheduler.tokens(SequenceId(2)), Some(&[200, 201, 202, 203, 7][..]));
        commit_all(&mut scheduler, &second, 7, false);
    }

    #[test]
    fn choices_share_the_prompt_and_copy_what_they_write_into() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(NewSequence { children: vec![SequenceId(2), SequenceId(3)], ..sequence(1, 0, 6) }).expect("it can run");
        scheduler.add(sequence(4, 100, 4)).expect("it can run");
        scheduler.add(sequence(5, 200, 4)).expect("it can run");
        let step = scheduler.schedule();
        assert_eq!(shares(&step), [(1, 0, 6), (4, 0, 4)], "the fifth has to wait: children count");
        assert_eq!(step.sequences[0].samples, [SequenceId(1), SequenceId(2), SequenceId(3)]);
        assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (4, 1));
        let shared: Vec<BlockId> = scheduler.block_table(SequenceId(1)).expect("it runs").to_vec();
        commit_all(&mut scheduler, &step, 7, false);
        let step = scheduler.schedule();
        assert_eq!(shares(&step), [(1, 6, 1), (2, 6, 1), (3, 6, 1), (4, 4, 1)]);
        let tables = [1, 2, 3].map(|id| scheduler.block_table(SequenceId(id)).expect("it runs"));
        assert!(tables.iter().all(|table| table[0] == shared[0]) && tables[2] == shared);
        let copies = [tables[0][1], tables[1][1]].map(|dst| BlockCopy { src: shared[1], dst });
        assert_eq!(step.block_copies, copies, "the last one writes in place");
        commit_all(&mut scheduler, &step, 7, false);
    }
}
