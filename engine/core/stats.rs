//! Live numbers of the engine, written by its thread after each step and read by anybody without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the classes of `StepSizes`, tokens; one more class takes what is larger.
pub const STEP_SIZE_BOUNDS: [usize; 13] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Steps since the start by their number of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSizes {
    /// Steps in each class of `STEP_SIZE_BOUNDS`, and above its last bound.
    pub counts: [u64; STEP_SIZE_BOUNDS.len() + 1],
    /// Tokens of all of them.
    pub num_tokens: u64,
}

impl StepSizes {
    /// Adds the steps of another engine.
    pub fn add(&mut self, other: &StepSizes) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.num_tokens += other.num_tokens;
    }

    /// Counts a step.
    pub(crate) fn note(&mut self, num_tokens: usize) {
        self.counts[STEP_SIZE_BOUNDS.partition_point(|&bound| bound < num_tokens)] += 1;
        self.num_tokens += num_tokens as u64;
    }
}

/// A snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences in the running batch.
    pub num_running: usize,
    /// Sequences waiting.
    pub num_waiting: usize,
    /// Blocks of the KV pool.
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Blocks held by sequences.
    pub num_used_blocks: usize,
    /// Slots allocated, summed over all steps.
    pub kv_slots_allocated: u64,
    /// Of these, slots that held a token.
    pub kv_slots_used: u64,
    /// Preemptions since start.
    pub num_preemptions: u64,
    /// Steps since start.
    pub num_steps: u64,
    /// Most sequences in one step.
    pub max_running: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Tokens computed (prompt and output) since start.
    pub num_tokens: u64,
    /// Microseconds the engine thread spent outside waiting for steps, summed.
    pub host_us: u64,
    /// Steps by size.
    pub step_sizes: StepSizes,
}

impl EngineStats {
    /// Share of allocated slots that held no token, over all steps so far.
    pub fn kv_waste(&self) -> f32 {
        if self.kv_slots_allocated == 0 {
            return 0.0;
        }
        1.0 - self.kv_slots_used as f32 / self.kv_slots_allocated as f32
    }
}

macro_rules! cells {
    ($($field:ident: $type:ty),* $(,)?) => {
        /// The shared cells behind `EngineStats`.
        #[derive(Default)]
        pub(crate) struct StatsCells {
            $($field: AtomicU64,)*
            step_sizes: [AtomicU64; STEP_SIZE_BOUNDS.len() + 1],
        }
        impl StatsCells {
            /// Publishes a snapshot.
            pub(crate) fn store(&self, stats: &EngineStats) {
                $(self.$field.store(stats.$field as u64, Relaxed);)*
                self.step_sizes.iter().zip(stats.step_sizes.counts).for_each(|(cell, count)| cell.store(count, Relaxed));
            }
            /// Reads one. Fields may stem from neighbouring steps.
            pub(crate) fn load(&self) -> EngineStats {
                let num_tokens = self.num_tokens.load(Relaxed);
                let step_sizes = StepSizes { counts: std::array::from_fn(|idx| self.step_sizes[idx].load(Relaxed)), num_tokens };
                EngineStats { $($field: self.$field.load(Relaxed) as $type,)* step_sizes }
            }
        }
    };
}

cells! {
    num_running: usize,
    num_waiting: usize,
    num_blocks: usize,
    block_size: usize,
    num_used_blocks: usize,
    kv_slots_allocated: u64,
    kv_slots_used: u64,
    num_preemptions: u64,
    num_steps: u64,
    max_running: usize,
    prefix_queries: u64,
    prefix_hits: u64,
    num_tokens: u64,
    host_us: u64,
}
