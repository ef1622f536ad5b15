//! OpenAI's dialect, with vLLM's extras: chat completions, completions, responses and models. Nothing outside this folder knows its shapes.

mod chat;
mod chat_stream;
mod completions;
mod completions_stream;
pub(crate) mod convert;
mod embeddings;
mod logprobs;
mod messages;
mod models;
mod responses;
mod types;

pub(crate) use chat::chat;
pub(crate) use completions::completions;
pub(crate) use embeddings::{MAX_INPUTS, embeddings, parse_embeddings};
pub(crate) use messages::{read_chat_prompt, read_tools};
pub(crate) use models::{list_models, retrieve_model};
pub(crate) use responses::responses;
