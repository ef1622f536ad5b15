//! `Meter`: what is counted of one model's requests. Prompt and generation tokens move when a request finishes, by exactly its usage.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagoda_backends::{BackendError, StopReason, Usage};

use super::histogram::{CHOICES, FIRST_TOKEN_S, Histogram, REQUEST_S, TOKEN_S, TOKENS};

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: usize) {
        self.0.fetch_add(amount as u64, Relaxed);
    }

    pub(crate) fn get(&self) -> f64 {
        self.0.load(Relaxed) as f64
    }
}

/// How a request ended: values of `finished_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself: an end token or a stop string.
    Stop,
    /// At `max_tokens` or at the end of the window.
    Length,
    /// The client went away, or the server stopped.
    Abort,
    /// The backend failed.
    Error,
}

impl Ending {
    pub(crate) const ALL: [Ending; 4] = [Ending::Stop, Ending::Length, Ending::Abort, Ending::Error];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Ending::Stop => "stop",
            Ending::Length => "length",
            Ending::Abort => "abort",
            Ending::Error => "error",
        }
    }

    pub(crate) fn of(reason: &StopReason) -> Ending {
        match reason {
            StopReason::EndOfTurn | StopReason::StopSequence(_) | StopReason::StopToken(_) => Ending::Stop,
            StopReason::MaxTokens | StopReason::ContextFull => Ending::Length,
            StopReason::Aborted => Ending::Abort,
        }
    }
}

/// Why a backend did not take a request: values of `reason`.
pub(crate) const REFUSALS: [&str; 5] = ["invalid", "too_long", "overloaded", "unavailable", "failed"];

/// Counts of one model.
pub(crate) struct Meter {
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    pub(crate) first_token_s: Histogram,
    pub(crate) inter_token_s: Histogram,
    pub(crate) request_s: Histogram,
    pub(crate) queue_s: Histogram,
    pub(crate) prefill_s: Histogram,
    pub(crate) decode_s: Histogram,
    pub(crate) prompt_lens: Histogram,
    pub(crate) generation_lens: Histogram,
    pub(crate) max_tokens: Histogram,
    pub(crate) choices: Histogram,
    endings: [Counter; Ending::ALL.len()],
    refusals: [Counter; REFUSALS.len()],
}

impl Default for Meter {
    fn default() -> Self {
        Meter {
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            first_token_s: Histogram::new(FIRST_TOKEN_S),
            inter_token_s: Histogram::new(TOKEN_S),
            request_s: Histogram::new(REQUEST_S),
            queue_s: Histogram::new(REQUEST_S),
            prefill_s: Histogram::new(REQUEST_S),
            decode_s: Histogram::new(REQUEST_S),
            prompt_lens: Histogram::new(TOKENS),
            generation_lens: Histogram::new(TOKENS),
            max_tokens: Histogram::new(TOKENS),
            choices: Histogram::new(CHOICES),
            endings: Default::default(),
            refusals: Default::default(),
        }
    }
}

impl Meter {
    /// A request ended.
    pub(crate) fn ended(&self, ending: Ending) {
        self.endings[ending as usize].add(1);
    }

    /// A request ended by itself and was told this usage.
    pub(crate) fn used(&self, usage: &Usage) {
        self.prompt_tokens.add(usage.prompt_tokens);
        self.cached_tokens.add(usage.cached_tokens);
        self.generation_tokens.add(usage.completion_tokens);
        self.prompt_lens.add(usage.prompt_tokens as f64);
        self.generation_lens.add(usage.completion_tokens as f64);
    }

    /// A backend did not take a request.
    pub(crate) fn refused(&self, error: &BackendError) {
        let idx = match error {
            BackendError::InvalidRequest { .. } | BackendError::Unsupported(_) => 0,
            BackendError::PromptTooLong { .. } => 1,
            BackendError::Overloaded { .. } | BackendError::RateLimited { .. } => 2,
            BackendError::Unavailable(_) | BackendError::ModelNotFound(_) => 3,
            BackendError::Internal(_) | BackendError::Upstream(_) | BackendError::TimedOut(_) => 4,
        };
        self.refusals[idx].add(1);
    }

    /// Requests by how they ended.
    pub(crate) fn endings(&self) -> impl Iterator<Item = (&'static str, f64)> {
        Ending::ALL.iter().zip(&self.endings).map(|(ending, count)| (ending.as_str(), count.get()))
    }

    /// Requests that were not taken, by why.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&'static str, f64)> {
        REFUSALS.iter().zip(&self.refusals).map(|(reason, count)| (*reason, count.get()))
    }
}
