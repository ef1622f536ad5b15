//! The scheduler of pagoda: which sequence computes which tokens in the next step, in which blocks of the KV cache.
//!
//! Pure: no IO, clock, thread, randomness or dependency. The engine drives it: `add` and `abort` as requests come and go, then
//! `schedule` -> run the [`Step`] -> `commit`, over and over; [`Scheduler::schedule`] may be called again before the commit.
//!
//! # Glossary
//! - **request**: what a client sends; asks for one choice or for n. **sequence**: one choice's tokens in the engine.
//! - **step**: one schedule-execute-commit; one forward pass over some tokens of some sequences.
//! - **token in flight**: sampled by a step that is not committed yet: it is counted, its value is known to the device alone.
//! - **computed token**: its keys and values are in the KV cache, or will be once the steps made so far have run.
//! - **prefill**, **decode**: words for kernels and docs. The scheduler has only `num_computed` that catches up with the tokens.
//! - **chunk**: the part of a long prompt that one step computes.
//! - **KV cache**: keys and values of all computed tokens on the device. **block**: `block_size` tokens of it.
//! - **block table**: logical to physical blocks of one sequence. **slot**: `block * block_size + offset`, the place of one token.
//! - **prefix cache**: full blocks that can be found by the tokens they hold and all tokens before them.
//!   **hit**: such a block is shared instead of computed again. **evict**: a free block that could be found is reused.
//!   **salt**: number that keeps the prefix caches of tenants apart.
//! - **waiting**: holds no blocks, is to be admitted. **running**: holds blocks. **admit**: from waiting to running.
//! - **preempt**: from running back to waiting, because no block is free; the blocks are given up and computed again later.
//! - **fork**: n sequences go on from one computed prompt and share its blocks.
//!   **copy on write**: the first that writes into a shared block gets its own copy.
//! - **KV waste**: slots allocated and unused / slots allocated.
//!
//! # Layers
//! `schedule`, `commit` -> `scheduler` -> `sequence`, `queue`, `block_table` -> `block_allocator` -> `prefix_cache`
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod block_allocator;
mod block_table;
mod commit;
mod config;
mod error;
mod id_map;
mod prefix_cache;
mod queue;
mod schedule;
mod scheduler;
mod sequence;
mod stats;
mod step;

pub use block_allocator::{BlockAllocator, BlockId};
pub use config::SchedulerConfig;
pub use error::{AddError, ConfigError};
pub use id_map::{IdHasher, IdMap};
pub use scheduler::Scheduler;
pub use sequence::{NewSequence, SequenceId};
pub use stats::{KvSlots, SchedulerStats};
pub use step::{Admission, BlockCopy, Committed, Finish, SampledToken, Samples, ScheduledSequence, Step};
