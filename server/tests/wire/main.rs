//! The server's wire, seen by clients: over real sockets and a scripted backend.
#![allow(clippy::unwrap_used, reason = "tests may stop at a surprise")]

mod batches;
mod chat;
mod claude_code;
mod client;
mod completions;
mod embeddings;
mod exposition;
mod http;
mod lifecycle;
mod messages;
mod metrics;
mod models;
mod pooling;
mod remote;
mod rerank;
mod responses;
mod scripted;
mod structured;
mod tools;
mod validation;
