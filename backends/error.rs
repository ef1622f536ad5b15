//! `BackendError`: what can go wrong with a request, by whose fault it is.

/// Errors of a backend by whose fault they are. The server maps them to statuses in one table.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum BackendError {
    /// The request is wrong; 400.
    #[error("{message}")]
    InvalidRequest {
        /// Field that is wrong, when one is.
        param: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// The prompt does not fit; 400 with the wording clients match.
    #[error("prompt is too long: {prompt_tokens} tokens > {max_tokens} maximum")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Largest prompt.
        max_tokens: usize,
    },
    /// The queue is full; 429 or 529 with retry-after.
    #[error("overloaded: {message}")]
    Overloaded {
        /// Why.
        message: String,
        /// Seconds after which to try again.
        retry_after_s: u32,
    },
    /// The service behind the backend refuses so many requests of ours; 429 with retry-after.
    #[error("{message}")]
    RateLimited {
        /// Why.
        message: String,
        /// Seconds after which to try again.
        retry_after_s: u32,
    },
    /// The service behind the backend did not answer in time; 504.
    #[error("{0}")]
    TimedOut(String),
    /// The service behind the backend failed or cannot be reached; 502.
    #[error("{0}")]
    Upstream(String),
    /// The backend is ending or has ended, and ran nothing of the request; 503: another server may take it.
    #[error("{0}")]
    Unavailable(String),
    /// The model is not served here; 404.
    #[error("model `{0}` not found")]
    ModelNotFound(String),
    /// The backend cannot do this; 400.
    #[error("not supported by this backend: {0}")]
    Unsupported(String),
    /// The backend failed; 500.
    #[error("{0}")]
    Internal(String),
}
