//! The server's wire, seen by clients: over real sockets and a scripted backend.

mod chat;
mod client;
mod completions;
mod http;
mod lifecycle;
mod messages;
mod models;
mod scripted;
mod validation;
