//! Anthropic's dialect: `/v1/messages`, its batches, and `/v1/messages/count_tokens`. Nothing outside this folder knows its shapes.

pub(crate) mod batches;
mod blocks;
pub(crate) mod convert;
mod count_tokens;
mod messages;
mod stream;
mod tools;
mod types;

pub(crate) use count_tokens::count_tokens;
pub(crate) use messages::messages;
