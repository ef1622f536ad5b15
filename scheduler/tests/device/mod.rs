//! A device that computes hashes instead of keys and values, and a model whose next token is a hash of all it reads.

use std::collections::BTreeMap;

use pagoda_scheduler::{BlockId, SampledToken, Scheduler, SequenceId, Step};

use crate::workload::Rng;

/// What a slot holds in place of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Of the sequence that wrote it. No part of the hash: equal prefixes of other salts would give equal outputs.
    pub salt: u64,
    pub token: u32,
    pub position: usize,
    /// Hash of this token and of everything that was read when it was computed.
    pub prefix_hash: u64,
}

/// A step with its inputs, as an engine hands it to the device: later changes on the host do not reach it.
pub struct QueuedStep {
    pub step: Step,
    inputs: Vec<SequenceInputs>,
}

struct SequenceInputs {
    /// Known tokens of the step; the last one is missing when it is in flight.
    tokens: Vec<u32>,
    block_table: Vec<BlockId>,
}

pub struct Device {
    block_size: usize,
    slots: Vec<Option<Slot>>,
    /// The sampler's slots: the last token sampled for a sequence.
    sampled: BTreeMap<SequenceId, u32>,
}

impl Device {
    pub fn new(num_blocks: usize, block_size: usize) -> Device {
        Device { block_size, slots: vec![None; num_blocks * block_size], sampled: BTreeMap::new() }
    }

    pub fn prepare(&self, step: Step, scheduler: &Scheduler) -> QueuedStep {
        let prepare_one = |scheduled: &pagoda_scheduler::ScheduledSequence| {
            let known = scheduler.tokens(scheduled.id).expect("a scheduled sequence exists");
            let num_known = scheduled.num_tokens - usize::from(scheduled.input_in_flight);
            let tokens = known.iter().copied().skip(scheduled.start).take(num_known).collect();
            let block_table = scheduler.block_table(scheduled.id).expect("a scheduled sequence exists").to_vec();
            SequenceInputs { tokens, block_table }
        };
        QueuedStep { inputs: step.sequences.iter().map(prepare_one).collect(), step }
    }

    pub fn execute(&mut self, queued: &QueuedStep, rng: &mut Rng, salt_and_seed: impl Fn(SequenceId) -> (u64, u64)) -> Vec<SampledToken> {
        for copy in &queued.step.block_copies {
            for offset in 0..self.block_size {
                self.slots[copy.dst.0 as usize * self.block_size + offset] = self.slots[copy.src.0 as usize * self.block_size + offset];
            }
        }
        let mut order: Vec<usize> = (0..queued.inputs.len()).collect();
        rng.shuffle(&mut order);
        let mut all_sampled = Vec::new();
        for index in order {
            let (scheduled, inputs) = (&queued.step.sequences[index], &queued.inputs[index]);
            let mut tokens = inputs.tokens.clone();
            if scheduled.input_in_flight {
                tokens.push(self.sampled[&scheduled.id]);
            }
            assert_eq!(tokens.len(), scheduled.num_tokens, "inputs of {:?}", scheduled.id);
            let (salt, _) = salt_and_seed(scheduled.id);
            let mut last_hash = 0;
            for (position, token) in (scheduled.start..).zip(tokens) {
                last_hash = self.compute(&inputs.block_table, salt, position, token);
            }
            for id in &scheduled.samples {
                let (token, is_stop) = sample(last_hash, salt_and_seed(*id).1);
                self.sampled.insert(*id, token);
                all_sampled.push(SampledToken { id: *id, token, is_stop });
            }
        }
        all_sampled
    }

    /// "Attention": reads all slots before `position`, writes its own.
    fn compute(&mut self, block_table: &[BlockId], salt: u64, position: usize, token: u32) -> u64 {
        let slot_of = |position: usize| block_table[position / self.block_size].0 as usize * self.block_size + position % self.block_size;
        let context = (0..position).map(|before| {
            let slot = self.slots[slot_of(before)].expect("a slot is written before it is read");
            assert_eq!((slot.position, slot.salt), (before, salt), "position and salt of a slot that is read");
            slot
        });
        let prefix_hash = attend(context, token, position);
        self.slots[slot_of(position)] = Some(Slot { salt, token, position, prefix_hash });
        prefix_hash
    }
}

/// Hash of a token and all that is before it.
pub fn attend(context: impl Iterator<Item = Slot>, token: u32, position: usize) -> u64 {
    let read = context.fold(1, |hash, slot| mix(hash, slot.prefix_hash ^ (slot.position as u64) << 32 ^ u64::from(slot.token)));
    mix(mix(read, u64::from(token)), position as u64)
}

/// The next token, out of three, and whether it ends the sequence.
pub fn sample(prefix_hash: u64, choice_seed: u64) -> (u32, bool) {
    let hash = mix(prefix_hash, choice_seed);
    ((hash % 3) as u32, (hash >> 32).is_multiple_of(12))
}

pub fn mix(a: u64, b: u64) -> u64 {
    let mut hash = (a.rotate_left(23) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^ (hash >> 32)
}
