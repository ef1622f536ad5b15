//! Sampling: parameters, one row's choice of a token, logprobs.

pub mod history;
pub mod logprobs;
pub mod params;
pub mod sampler;

mod choose;
mod vector;

pub use history::TokenHistory;
pub use logprobs::{TokenLogprobs, token_logprobs};
pub use params::SamplingParams;
pub use sampler::sample_row;

/// One token to be sampled in a step. Built by the runner from its slot table.
pub struct SampleRow<'a> {
    /// Row of the logits tensor.
    pub logits_row: usize,
    /// Sampler slot of the sequence; the token is written to `last_tokens[slot]`.
    pub slot: usize,
    /// Parameters of the sequence.
    pub params: &'a SamplingParams,
    /// The request's seed: `params.seed`, or the one drawn when the request was accepted.
    pub seed: u64,
    /// Tokens that end the sequence: EOS unless `ignore_eos`, and `stop_token_ids`. Not sampled before `min_tokens`.
    pub stop_ids: &'a [u32],
    /// Index of the token to be sampled: 0 for the first output token. Seeds the counter-based generator.
    pub output_index: u32,
    /// Which of the request's `n` outputs this is; mixed into the seed.
    pub choice: u32,
    /// Occurrences of tokens so far, for penalties and bad words.
    pub history: &'a TokenHistory,
    /// Tokens that may be sampled: bit `id % 32` of word `id / 32`, `[ceil(vocab / 32)]`. None: all.
    pub allowed: Option<&'a [u32]>,
}

/// What was sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutput {
    /// The token.
    pub token: u32,
    /// Present when the parameters ask for logprobs.
    pub logprobs: Option<TokenLogprobs>,
}
