//! What a caller asks of the engine and what comes back. Token ids only: text is `text/`'s business.

use crate::sampling::{SamplingParams, TokenLogprobs};

/// One request: a prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// Sampling and ending.
    pub sampling: SamplingParams,
    /// Lower runs earlier; 0 is the default class.
    pub priority: i32,
    /// Separates prefix caches of tenants; 0 is shared.
    pub cache_salt: u64,
}

/// Why an output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token.
    Eos,
    /// One of the request's stop_token_ids.
    StopToken(u32),
    /// max_tokens reached.
    MaxTokens,
    /// The context window is full.
    ContextFull,
    /// Aborted by the caller.
    Aborted,
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, found in the prefix cache when the request was first scheduled.
    pub cached_tokens: usize,
    /// Sampled tokens over all choices, including EOS.
    pub completion_tokens: usize,
}

/// What a request's stream carries, in order; exactly one `Done`, `Failed` or `Refused` comes, last.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt is scheduled for the first time. Sent once, before the first token.
    Started {
        /// Prompt tokens found in the prefix cache.
        cached_tokens: usize,
    },
    /// Logprobs of prompt tokens 1.. (the first has none); only when asked for, before the first token.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// One sampled token.
    Token {
        /// Which of the `n` outputs.
        choice: u32,
        /// The token.
        token: u32,
        /// Its logprobs when asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// One output ended.
    Finished {
        /// Which of the `n` outputs.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// All outputs ended.
    Done(Usage),
    /// The request failed; no more events.
    Failed {
        /// Message without internals.
        message: String,
        /// Whether the request itself is to blame.
        caller_fault: bool,
    },
    /// The request was not run, because the engine is ending; no more events. Another engine may take it.
    Refused {
        /// Why.
        message: String,
    },
}
