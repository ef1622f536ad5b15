//! HTTP front end of pagoda: Anthropic's and OpenAI's APIs over any `InferenceBackend`.
//!
//! `run(listener, config, models, shutdown)` is all an embedder needs. Layers, outermost first: `listener` accepts connections,
//! `connection` watches one socket, `front` does what every request needs (ids, CORS, keys, error bodies), `app` routes, and the folders
//! `anthropic` and `openai` each know one wire dialect. Nothing below this crate sees a wire type.
#![forbid(unsafe_code)]

mod anthropic;
mod app;
mod auth;
mod base64;
mod body;
mod config;
mod connection;
mod cors;
mod embed;
mod error;
mod fields;
mod front;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod ids;
mod limits;
mod listener;
mod metrics;
mod model_source;
mod openai;
mod page;
mod rerank;
mod sampling;
mod score;
mod sse;
mod structured;
mod tokenize;
pub mod tools;
mod usage;

pub use config::{CorsOrigins, ServerConfig};
pub use listener::{ServerError, run};
pub use model_source::{ModelSource, ServedModel};
