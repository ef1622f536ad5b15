//! One error type of the engine. Messages: lower case, what + value + what was expected.

use std::path::PathBuf;

/// What can go wrong below the server.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A checkpoint file is damaged or inconsistent.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the tensor or key.
        reason: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An architecture that no family covers.
    #[error("unknown architecture `{name}`; known: {known}")]
    UnknownArchitecture {
        /// What the checkpoint says.
        name: String,
        /// Comma-separated list.
        known: String,
    },
    /// A feature of the checkpoint that is not supported.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An option is out of range.
    #[error("option {option}: {reason}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Value and allowed range.
        reason: String,
    },
    /// Not enough memory; computed before anything is taken.
    #[error("out of memory: {what} needs {needed_bytes} bytes, {available_bytes} available; {hint}")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        needed_bytes: usize,
        /// What is there.
        available_bytes: usize,
        /// What to do.
        hint: String,
    },
    /// A request is invalid: the caller's fault.
    #[error("{0}")]
    InvalidRequest(String),
    /// A device operation failed.
    #[error("device: {0}")]
    Device(String),
    /// The device answers nothing but errors from now on: only a new process can use it.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// The engine thread is gone.
    #[error("engine is not running: {0}")]
    EngineDead(String),
    /// The command queue is full.
    #[error("engine queue is full ({0} requests); try again later")]
    QueueFull(usize),
    /// Text could not be tokenised or rendered.
    #[error("text: {0}")]
    Text(String),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, EngineError>;
