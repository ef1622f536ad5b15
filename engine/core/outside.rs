//! `OutsideModel`: the engine in front of a model that is computed elsewhere, which keeps its own memory of sequences.

use pagoda_scheduler::SchedulerConfig;

use super::EngineConfig;

/// What the engine thread has to know of such a model.
#[derive(Clone, Debug)]
pub struct OutsideModel {
    /// Logits of a row.
    pub vocab_size: usize,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// Longest prompt plus output.
    pub max_model_len: usize,
    /// Sequences at a time.
    pub max_seqs: usize,
    /// Tokens of a step, at least as many as sequences.
    pub max_step_tokens: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
}

impl OutsideModel {
    /// Tokens of a block of the scheduler's books, behind which there is no memory.
    pub const BLOCK_SIZE: usize = 16;

    /// Books with room for every sequence at its longest: nothing is ever preempted. No step is made before the last one's tokens are known,
    /// and a failed one ends its requests, not the
    /// engine. What the prefix cache finds, the one who computes may have forgotten, and computes again.
    pub fn engine_config(self) -> EngineConfig {
        EngineConfig {
            scheduler: SchedulerConfig {
                block_size: Self::BLOCK_SIZE,
                num_blocks: self.max_seqs * (self.max_model_len.div_ceil(Self::BLOCK_SIZE) + 1),
                max_num_seqs: self.max_seqs,
                max_num_batched_tokens: self.max_step_tokens,
                min_chunk: 1,
                max_model_len: self.max_model_len,
                prefix_caching: true,
                max_waiting: self.max_waiting,
            },
            vocab_size: self.vocab_size,
            eos_token_ids: self.eos_token_ids,
            step_ahead: false,
            restart_on_failure: true,
        }
    }
}
