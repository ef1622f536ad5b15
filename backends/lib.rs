//! The kinds of backend behind pagoda's server, and the one trait over them.
//!
//! Knows the engine; knows no wire format of a client (`server/`) and no sockets it listens on.
#![forbid(unsafe_code)]

mod backend;
mod channels;
pub mod config;
mod constraint;
mod dialect;
mod error;
pub mod factory;
mod huggingface;
pub mod options;
mod output;
pub mod pool;
mod pooling;
mod pooling_local;
mod reasoning;
pub mod registry;
pub mod remote;
mod remote_openai;
pub mod settings;
mod stats;
mod vllm_local;
mod vllm_remote;

pub use backend::*;
pub use constraint::{Constraint, ConstraintForm};
pub use dialect::ToolDialect;
pub use error::BackendError;
pub use huggingface::{HuggingFace, HuggingFaceError, HuggingFaceSettings, WorkerError};
pub use output::{Choice, FoundCall, GenerateOutput, collect};
pub use pooling::*;
pub use pooling_local::PoolingLocal;
pub use reasoning::{Part, ReasoningSplitter, ReasoningStyle, ReasoningTags};
pub use registry::ModelType;
pub use stats::*;
pub use vllm_local::{LocalText, Parts, VllmLocal};
