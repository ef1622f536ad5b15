//! `SchedulerConfig`: the sizes and bounds of the scheduler, checked once at start.

use crate::error::ConfigError;

/// Sizes and bounds. Every field is a decision of the caller; there is no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens a block holds.
    pub block_size: usize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
    /// Most sequences that run at a time; the choices of one request count each.
    pub max_num_seqs: usize,
    /// Most tokens computed in one step. At least `max_num_seqs`, so that every sequence can advance in every step.
    pub max_num_batched_tokens: usize,
    /// Fewest tokens of a chunk; 1: any. With 2, a single token is never a part of a prompt of several, so that a device whose kernels for one
    /// and for several tokens differ in the last bits treats every token alike, however prompts are cut and whatever is cached.
    pub min_chunk: usize,
    /// Most tokens of a sequence, prompt and output together.
    pub max_model_len: usize,
    /// Whether full blocks are kept findable by their tokens.
    pub prefix_caching: bool,
    /// Most sequences that wait; one more is refused.
    pub max_waiting: usize,
}

impl SchedulerConfig {
    /// Checks the fields against each other.
    ///
    /// # Errors
    /// Names the option that is out of range, or that the pool of blocks cannot hold one sequence of `max_model_len`.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("min_chunk", self.min_chunk),
            ("max_waiting", self.max_waiting),
        ];
        if let Some((option, _)) = sizes.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { option });
        }
        if u32::try_from(self.num_blocks).is_err() {
            return Err(ConfigError::TooManyBlocks { num_blocks: self.num_blocks });
        }
        if self.max_model_len < 2 {
            return Err(ConfigError::ModelLenTooShort { max_model_len: self.max_model_len });
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            let (max_num_batched_tokens, max_num_seqs) = (self.max_num_batched_tokens, self.max_num_seqs);
            return Err(ConfigError::BatchTooSmall { max_num_batched_tokens, max_num_seqs });
        }
        // All but one decode, and the last one always finds a chunk that leaves none too small.
        let needed = self.max_num_seqs - 1 + 2 * self.min_chunk - 1;
        if self.max_num_batched_tokens < needed {
            let (max_num_batched_tokens, min_chunk) = (self.max_num_batched_tokens, self.min_chunk);
            return Err(ConfigError::ChunksTooSmall { max_num_batched_tokens, min_chunk, needed });
        }
        if self.max_model_len.div_ceil(self.block_size) > self.num_blocks {
            let (num_blocks, block_size, max_model_len) = (self.num_blocks, self.block_size, self.max_model_len);
            return Err(ConfigError::PoolTooSmall { num_blocks, block_size, max_model_len });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_on_both_sides() {
        let good = SchedulerConfig {
            block_size: 4,
            num_blocks: 3,
            max_num_seqs: 2,
            max_num_batched_tokens: 2,
            min_chunk: 1,
            max_model_len: 12,
            prefix_caching: true,
            max_waiting: 1,
        };
        assert_eq!(good.validate(), Ok(()));
        let check = |config: SchedulerConfig, message: &str| {
            assert_eq!(config.validate().expect_err("config is out of range").to_string(), message);
        };
        check(SchedulerConfig { block_size: 0, ..good }, "block_size is 0, expected at least 1");
        check(SchedulerConfig { max_waiting: 0, ..good }, "max_waiting is 0, expected at least 1");
        check(SchedulerConfig { max_model_len: 1, ..good }, "max_model_len is 1, expected at least 2 (one prompt token, one output token)");
        check(
            SchedulerConfig { max_num_batched_tokens: 1, ..good },
            "max_num_batched_tokens is 1, expected at least max_num_seqs, which is 2",
        );
        assert_eq!(SchedulerConfig { max_num_batched_tokens: 4, min_chunk: 2, ..good }.validate(), Ok(()));
        check(
            SchedulerConfig { max_num_batched_tokens: 3, min_chunk: 2, ..good },
            "max_num_batched_tokens is 3, expected at least 4 with chunks of at least 2 tokens",
        );
        check(
            SchedulerConfig { max_model_len: 13, ..good },
            "a KV cache of 3 blocks of 4 tokens holds 12 tokens, expected at least max_model_len, which is 13",
        );
    }
}
