//! `SchedulerStats`: what the scheduler looks like right now, for metrics; and `check_integrity`, which looks at everything.

use std::collections::BTreeMap;

use crate::block_allocator::BlockId;
use crate::scheduler::Scheduler;

/// Sizes now, and counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that run.
    pub num_running: usize,
    /// Sequences that wait.
    pub num_waiting: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Blocks that running sequences hold.
    pub num_used_blocks: usize,
    /// Free blocks that are still findable by what they hold.
    pub num_evictable_blocks: usize,
    /// Preemptions so far.
    pub num_preemptions: u64,
    /// Findable blocks that were reused so far.
    pub num_evictions: u64,
    /// Tokens of sequences that looked into the prefix cache when they were first admitted, so far.
    pub num_prefix_query_tokens: u64,
    /// Those of them that were found.
    pub num_prefix_hit_tokens: u64,
}

/// Slots of the KV cache right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvSlots {
    /// Slots of the blocks in use; a shared block counts once.
    pub num_allocated: usize,
    /// Those of them that hold a computed token (or will, once the steps made so far have run).
    pub num_used: usize,
}

impl KvSlots {
    /// Share of the allocated slots that is not used, 0 to 1.
    pub fn waste(&self) -> f64 {
        (self.num_allocated - self.num_used) as f64 / self.num_allocated.max(1) as f64
    }
}

/// What cannot be read off the present state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub num_preemptions: u64,
    pub num_prefix_query_tokens: u64,
    pub num_prefix_hit_tokens: u64,
}

impl Scheduler {
    /// Blocks that running sequences hold.
    fn num_used_blocks(&self) -> usize {
        self.allocator.num_blocks() - self.allocator.num_free()
    }

    /// How full the blocks in use are. Looks at every running sequence.
    pub fn kv_slots(&self) -> KvSlots {
        let block_size = self.config.block_size;
        // Only the last block of a table can be partly used. Sequences that share it have not written into it since they forked.
        let (mut num_unused_slots, mut shared) = (0, Vec::new());
        for sequence in self.sequences.values() {
            let blocks = sequence.table.blocks();
            let Some(&last) = blocks.last() else { continue };
            let tail = blocks.len() * block_size - sequence.num_computed;
            if self.allocator.ref_count(last) == 1 {
                num_unused_slots += tail;
            } else {
                shared.push((last, tail));
            }
        }
        shared.sort_unstable();
        shared.dedup();
        num_unused_slots += shared.iter().map(|(_, tail)| tail).sum::<usize>();
        let num_allocated = self.num_used_blocks() * block_size;
        KvSlots { num_allocated, num_used: num_allocated - num_unused_slots }
    }

    /// Sizes and counts.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            num_running: self.num_running(),
            num_waiting: self.num_waiting(),
            num_blocks: self.allocator.num_blocks(),
            num_used_blocks: self.num_used_blocks(),
            num_evictable_blocks: self.allocator.num_evictable(),
            num_preemptions: self.counters.num_preemptions,
            num_evictions: self.allocator.num_evictions(),
            num_prefix_query_tokens: self.counters.num_prefix_query_tokens,
            num_prefix_hit_tokens: self.counters.num_prefix_hit_tokens,
        }
    }

    /// Panics unless sequences, queues, block tables and allocator agree. Looks at everything: for tests, and for debug builds when idle.
    pub fn check_integrity(&self) {
        self.allocator.check_integrity();
        let mut num_holders: BTreeMap<BlockId, u32> = BTreeMap::new();
        for (id, sequence) in &self.sequences {
            let is_running = self.running.contains(sequence.rank);
            assert!(is_running != self.waiting.contains(sequence.rank), "{id:?} is either waiting or running");
            assert!(is_running || sequence.num_computed == 0, "{id:?} waits and has computed tokens");
            assert!(sequence.num_computed < sequence.num_total(), "{id:?} has nothing to compute");
            assert!(sequence.num_total() <= self.config.max_model_len, "{id:?} is longer than max_model_len");
            assert!(sequence.tokens.len() - sequence.prompt_len < sequence.max_tokens, "{id:?} should have ended");
            assert!(sequence.in_flight.iter().is_sorted_by(|a, b| a < b), "tokens in flight of {id:?} are not in order");
            let num_blocks = sequence.num_computed.div_ceil(self.config.block_size);
            assert_eq!(sequence.table.blocks().len(), num_blocks, "blocks of {id:?}");
            for block in sequence.table.blocks() {
                *num_holders.entry(*block).or_default() += 1;
            }
            for child in &sequence.children {
                assert_eq!(self.unforked.get(child), Some(id), "parent of {child:?}");
            }
        }
        assert_eq!(self.waiting.len() + self.running.len(), self.sequences.len(), "a queue holds a sequence that is gone");
        assert_eq!(self.unforked.len(), self.sequences.values().map(|sequence| sequence.children.len()).sum(), "unforked children");
        let num_choices: usize = self.running.iter().map(|id| self.sequences[&id].num_choices()).sum();
        assert!(num_choices <= self.config.max_num_seqs, "{num_choices} sequences run");
        for (block, count) in &num_holders {
            assert_eq!(self.allocator.ref_count(*block), *count, "holders of {block:?}");
        }
        assert_eq!(self.num_used_blocks(), num_holders.len(), "a block in use is in no block table");
    }
}

#[cfg(test)]
mod tests {
    use super::KvSlots;
    use crate::config::SchedulerConfig;
    use crate::scheduler::tests::{CONFIG, commit_all, scheduler, sequence};
    use crate::sequence::{NewSequence, SequenceId};

    #[test]
    fn shared_blocks_count_once() {
        let mut scheduler = scheduler(CONFIG);
        scheduler.add(NewSequence { children: vec![SequenceId(2), SequenceId(3)], ..sequence(1, 0, 6) }).expect("it can run");
        let mut check = |num_used_blocks: usize, num_used_slots: usize| {
            let step = scheduler.schedule();
            assert_eq!(scheduler.stats().num_used_blocks, num_used_blocks);
            assert_eq!(scheduler.kv_slots(), KvSlots { num_allocated: num_used_blocks * 4, num_used: num_used_slots });
            commit_all(&mut scheduler, &step, 7, false);
        };
        // Together: 4 + 2 slots. Then each has a block of its own for 4 5 and the token after: 4 + 3 * 3; two steps later 4 + 3 * (4 + 1).
        check(2, 6);
        check(4, 13);
        check(4, 16);
        check(7, 19);
    }

    #[test]
    fn waste_is_below_4_percent_from_256_tokens_on() {
        let config = SchedulerConfig {
            block_size: 16,
            num_blocks: 2048,
            max_num_seqs: 64,
            max_num_batched_tokens: 1 << 16,
            min_chunk: 1,
            max_model_len: 512,
            max_waiting: 64,
            ..CONFIG
        };
        let mut scheduler = scheduler(config);
        for id in 0..64 {
            scheduler.add(NewSequence { max_tokens: 100, ..sequence(id, 1000 * id as u32, 256 + id as u32) }).expect("it can run");
        }
        for num_steps in 0..64 {
            let step = scheduler.schedule();
            let slots = scheduler.kv_slots();
            assert_eq!(slots.num_used, 64 * (256 + num_steps) + 63 * 64 / 2);
            assert!(slots.waste() > 0.0 && slots.waste() < 0.04, "{}", slots.waste());
            commit_all(&mut scheduler, &step, 7, false);
        }
    }
}
