//! The scheduler under arbitrary operations: sizes from the first bytes, then one operation a byte or a few. After each of them the
//! scheduler checks itself, and every step keeps the budget.
#![no_main]

use std::collections::{BTreeSet, VecDeque};

use libfuzzer_sys::fuzz_target;
use pagoda_scheduler::{NewSequence, SampledToken, Scheduler, SchedulerConfig, SequenceId, Step};

/// Steps that may be made before the first of them is committed.
const MAX_IN_FLIGHT: usize = 2;

/// Long inputs find nothing that short ones do not, and each operation checks everything.
const MAX_OPERATIONS: usize = 200;

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number in `low..=high`; low when the input is at its end.
    fn number(&mut self, low: usize, high: usize) -> usize {
        low + usize::from(self.next().unwrap_or(0)) % (high - low + 1)
    }
}

struct Run {
    scheduler: Scheduler,
    config: SchedulerConfig,
    in_flight: VecDeque<Step>,
    alive: BTreeSet<SequenceId>,
    next_id: u64,
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let config = config(&mut bytes);
    let Ok(scheduler) = Scheduler::new(config) else { return };
    let mut run = Run { scheduler, config, in_flight: VecDeque::new(), alive: BTreeSet::new(), next_id: 0 };
    for _ in 0..MAX_OPERATIONS {
        let Some(operation) = bytes.next() else { break };
        match operation % 8 {
            0 | 1 => run.add(&mut bytes),
            2 => run.abort(&mut bytes),
            3 => run.scheduler.clear_prefix_cache(),
            4 | 5 => run.schedule(),
            _ => run.commit(&mut bytes),
        }
        run.scheduler.check_integrity();
    }
    run.drain();
});

fn config(bytes: &mut Bytes<'_>) -> SchedulerConfig {
    let block_size = bytes.number(1, 8);
    let max_model_len = bytes.number(2, 40);
    let num_blocks = max_model_len.div_ceil(block_size) + bytes.number(0, 24);
    let max_num_seqs = bytes.number(1, 8);
    SchedulerConfig {
        block_size,
        num_blocks,
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + bytes.number(0, 32),
        min_chunk: 1,
        max_model_len,
        prefix_caching: bytes.number(0, 3) > 0,
        max_waiting: bytes.number(1, 16),
    }
}

impl Run {
    fn id(&mut self) -> SequenceId {
        self.next_id += 1;
        SequenceId(self.next_id)
    }

    /// Prompts from an alphabet of two, so that prefixes meet.
    fn add(&mut self, bytes: &mut Bytes<'_>) {
        let id = self.id();
        let len = bytes.number(0, self.config.max_model_len + 1);
        let shape = bytes.number(0, 255) as u32;
        let prompt = (0..len as u32).map(|i| (shape >> (i % 5)) & 1).collect();
        let children: Vec<SequenceId> = (0..bytes.number(0, 11).saturating_sub(8)).map(|_| self.id()).collect();
        let new = NewSequence {
            id,
            prompt,
            max_tokens: bytes.number(0, 12) as u32,
            priority: bytes.number(0, 2) as i32 - 1,
            salt: bytes.number(0, 1) as u64,
            use_prefix_cache: shape % 7 != 0,
            children: children.clone(),
        };
        if self.scheduler.add(new).is_ok() {
            self.alive.insert(id);
            self.alive.extend(children);
        }
    }

    fn abort(&mut self, bytes: &mut Bytes<'_>) {
        let nth = bytes.number(0, 15);
        if let Some(id) = self.alive.iter().nth(nth).copied() {
            self.scheduler.abort(id);
            self.alive.remove(&id);
        }
    }

    fn schedule(&mut self) {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return;
        }
        let step = self.scheduler.schedule();
        let total: usize = step.sequences.iter().map(|s| s.num_tokens).sum();
        assert_eq!(total, step.num_tokens, "tokens of step {}", step.id);
        assert!(total <= self.config.max_num_batched_tokens, "step {} has {total} tokens", step.id);
        assert!(step.sequences.len() <= self.config.max_num_seqs, "step {} has {} sequences", step.id, step.sequences.len());
        let ids: BTreeSet<SequenceId> = step.sequences.iter().map(|s| s.id).collect();
        assert_eq!(ids.len(), step.sequences.len(), "a sequence occurs twice in step {}", step.id);
        self.in_flight.push_back(step);
    }

    fn commit(&mut self, bytes: &mut Bytes<'_>) {
        let Some(step) = self.in_flight.pop_front() else { return };
        let salt = bytes.number(0, 63);
        let sampled: Vec<SampledToken> = step
            .sequences
            .iter()
            .flat_map(|s| &s.samples)
            .map(|id| SampledToken { id: *id, token: (salt as u32 ^ id.0 as u32) & 1, is_stop: (salt as u64 + id.0).is_multiple_of(16) })
            .collect();
        for committed in self.scheduler.commit(&step, &sampled) {
            if committed.finished.is_some() {
                self.alive.remove(&committed.id);
            }
        }
    }

    /// Everything that was accepted comes to its end, and every block comes back.
    fn drain(&mut self) {
        let bound = 4096;
        for _ in 0..bound {
            if !self.scheduler.has_work() && self.in_flight.is_empty() {
                break;
            }
            self.schedule();
            self.commit(&mut Bytes(&[1]));
        }
        self.scheduler.check_integrity();
        assert!(!self.scheduler.has_work(), "work is left after {bound} steps: {:?}", self.scheduler.stats());
        assert_eq!(self.scheduler.stats().num_used_blocks, 0, "{:?}", self.scheduler.stats());
    }
}
