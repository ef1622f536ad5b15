//! Sampling: parameters, one row's choice of a token, logprobs.

pub mod params;

pub use params::SamplingParams;

/// One token's logprob with its rank and the best alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Token the entry is about.
    pub token: u32,
    /// Its log probability (of the raw logits: before temperature and penalties, as OpenAI's API reports them).
    pub logprob: f32,
    /// 1 + number of tokens with a higher logit.
    pub rank: u32,
    /// The best `top` tokens, descending.
    pub top: Vec<(u32, f32)>,
}

/// One token to be sampled in a step. Built by the runner from its slot table.
pub struct SampleRow<'a> {
    /// Row of the logits tensor.
    pub logits_row: usize,
    /// Sampler slot of the sequence; the token is written to `last_tokens[slot]`.
    pub slot: usize,
    /// Parameters of the sequence.
    pub params: &'a SamplingParams,
    /// Index of the token to be sampled: 0 for the first output token. Seeds the counter-based generator.
    pub output_index: u32,
    /// Which of the request's `n` outputs this is; mixed into the seed.
    pub choice: u32,
    /// Occurrences of tokens so far, for penalties, bad words and min_tokens.
    pub history: &'a TokenHistory,
}

/// What the penalties need to know of a sequence.
#[derive(Clone, Debug, Default)]
pub struct TokenHistory {
    /// Tokens of the prompt, deduplicated and sorted; empty when no penalty needs it.
    pub prompt: Vec<u32>,
    /// Output token -> count. Empty when no penalty needs it.
    pub output_counts: std::collections::HashMap<u32, u32>,
    /// The last output tokens in order, at most the longest bad word; empty when there are no bad words.
    pub recent: Vec<u32>,
}

/// What was sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutput {
    /// The token.
    pub token: u32,
    /// Present when the parameters ask for logprobs.
    pub logprobs: Option<TokenLogprobs>,
}
