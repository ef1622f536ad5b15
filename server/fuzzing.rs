//! Entry points for fuzzers: every parser of an untrusted body, without a server. Not part of the public interface.

use pagoda_backends::GenerationConfig;

use crate::error::ApiError;
use crate::fields::Fields;
use crate::{anthropic, embed, limits, openai, rerank, score, tokenize};

/// Parses a `/v1/messages` body; Err holds the message a client would get.
pub fn parse_messages_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| anthropic::convert::parse_messages(fields, GenerationConfig::default()).map(drop))
}

/// Parses a `count_tokens` body.
pub fn parse_count_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| anthropic::convert::parse_count(fields).map(drop))
}

/// Parses a `/v1/chat/completions` body.
pub fn parse_chat_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| openai::convert::parse_chat(fields, GenerationConfig::default()).map(drop))
}

/// Parses a `/v1/completions` body.
pub fn parse_completion_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| openai::convert::parse_completion(fields, GenerationConfig::default()).map(drop))
}

/// Parses a `/tokenize` body.
pub fn parse_tokenize_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| tokenize::read_prompt(fields).map(drop))
}

/// Parses a `/v1/embeddings` body.
pub fn parse_embeddings_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| openai::parse_embeddings(fields).map(drop))
}

/// Parses an `/api/embed` body.
pub fn parse_embed_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| embed::parse_embed(fields).map(drop))
}

/// Parses a `/v1/rerank` body.
pub fn parse_rerank_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| rerank::parse_rerank(fields).map(drop))
}

/// Parses a `/score` body.
pub fn parse_score_body(bytes: &[u8]) -> Result<(), String> {
    parse(bytes, |fields| score::parse_pairs(fields).map(drop))
}

fn parse(bytes: &[u8], read: impl FnOnce(&Fields) -> Result<(), ApiError>) -> Result<(), String> {
    let check = || read(&Fields::of(&limits::parse_json(bytes)?, "")?);
    check().map_err(|error| error.message)
}
