//! What can be wrong with a configuration or with a sequence that is added. Written by hand: the crate has no dependencies.

use std::fmt;

use crate::sequence::SequenceId;

/// A configuration that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A size is zero.
    Zero {
        /// Name of the option.
        option: &'static str,
    },
    /// Block ids are 32 bits.
    TooManyBlocks {
        /// The option's value.
        num_blocks: usize,
    },
    /// No room for a prompt token and an output token.
    ModelLenTooShort {
        /// The option's value.
        max_model_len: usize,
    },
    /// A step could not give every running sequence a token.
    BatchTooSmall {
        /// The option's value.
        max_num_batched_tokens: usize,
        /// The bound below.
        max_num_seqs: usize,
    },
    /// A step of decodes could leave no room for a chunk.
    ChunksTooSmall {
        /// The option's value.
        max_num_batched_tokens: usize,
        /// Fewest tokens of a chunk.
        min_chunk: usize,
        /// What it has to be.
        needed: usize,
    },
    /// The pool cannot hold one sequence of full length, which could then never finish.
    PoolTooSmall {
        /// Blocks of the pool.
        num_blocks: usize,
        /// Tokens of a block.
        block_size: usize,
        /// What has to fit.
        max_model_len: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ConfigError::Zero { option } => write!(f, "{option} is 0, expected at least 1"),
            ConfigError::TooManyBlocks { num_blocks } => write!(f, "num_blocks is {num_blocks}, expected at most {}", u32::MAX),
            ConfigError::ModelLenTooShort { max_model_len } => {
                write!(f, "max_model_len is {max_model_len}, expected at least 2 (one prompt token, one output token)")
            }
            ConfigError::BatchTooSmall { max_num_batched_tokens, max_num_seqs } => {
                write!(f, "max_num_batched_tokens is {max_num_batched_tokens}, expected at least max_num_seqs, which is {max_num_seqs}")
            }
            ConfigError::ChunksTooSmall { max_num_batched_tokens, min_chunk, needed } => write!(
                f,
                "max_num_batched_tokens is {max_num_batched_tokens}, expected at least {needed} with chunks of at least {min_chunk} tokens"
            ),
            ConfigError::PoolTooSmall { num_blocks, block_size, max_model_len } => write!(
                f,
                "a KV cache of {num_blocks} blocks of {block_size} tokens holds {} tokens, expected at least max_model_len, which is {max_model_len}",
                num_blocks.saturating_mul(block_size)
            ),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A sequence that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// A prompt has at least one token.
    EmptyPrompt,
    /// `max_tokens` is at least one.
    ZeroMaxTokens,
    /// The prompt leaves no room for an output token.
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The most it may have.
        max: usize,
    },
    /// The sequence and its children can never run at the same time.
    TooManyChoices {
        /// The sequence and its children.
        choices: usize,
        /// `max_num_seqs`.
        max: usize,
    },
    /// The id is in use, by a sequence or by a child that is not forked yet.
    DuplicateId(SequenceId),
    /// `max_waiting` sequences wait already; try again later.
    QueueFull {
        /// `max_waiting`.
        max: usize,
    },
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AddError::EmptyPrompt => write!(f, "prompt has 0 tokens, expected at least 1"),
            AddError::ZeroMaxTokens => write!(f, "max_tokens is 0, expected at least 1"),
            AddError::PromptTooLong { prompt_tokens, max } => write!(f, "prompt has {prompt_tokens} tokens, expected at most {max}"),
            AddError::TooManyChoices { choices, max } => write!(f, "request asks for {choices} choices, expected at most {max}"),
            AddError::DuplicateId(id) => write!(f, "sequence id {} is in use", id.0),
            AddError::QueueFull { max } => write!(f, "queue is full, {max} sequences are waiting"),
        }
    }
}

impl std::error::Error for AddError {}
