//! `POST /v1/embeddings`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{EmbedInput, EmbedRequest, Overflow};
use serde::Serialize;
use serde_json::Value;

use crate::app::SharedApp;
use crate::base64;
use crate::error::ApiError;
use crate::fields::{Fields, token_ids, wrong};
use crate::limits;
use crate::usage::PromptUsage;

/// Inputs of one request at most.
pub(crate) const MAX_INPUTS: usize = 2048;
/// Token ids of one input at most.
const MAX_INPUT_TOKENS: usize = 1 << 20;

/// A parsed body.
#[derive(Debug)]
pub(crate) struct EmbeddingsRequest {
    pub(crate) embed: EmbedRequest,
    format: Format,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Float,
    /// Little-endian f32.
    Base64,
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: PromptUsage,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Embedding,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding {
    Float(Vec<f32>),
    Base64(String),
}

/// Answers with a vector for each input.
pub(crate) async fn embeddings(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let EmbeddingsRequest { embed, format } = parse_embeddings(&fields)?;
    let _slot = app.slot()?;
    let answer = app.bounded(async { Ok(model.embed(embed).await?) }).await?;
    let entry = |(index, vector): (usize, Vec<f32>)| Entry {
        object: "embedding",
        index,
        embedding: match format {
            Format::Float => Embedding::Float(vector),
            Format::Base64 => Embedding::Base64(base64::encode(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())),
        },
    };
    let data = answer.vectors.into_iter().enumerate().map(entry).collect();
    Ok(Json(Answer { object: "list", data, model: model_id, usage: PromptUsage::new(answer.prompt_tokens) }).into_response())
}

/// Parses a body.
pub(crate) fn parse_embeddings(fields: &Fields) -> Result<EmbeddingsRequest, ApiError> {
    let format = match fields.string("encoding_format")?.unwrap_or("float") {
        "float" => Format::Float,
        "base64" => Format::Base64,
        _ => return Err(fields.wrong("encoding_format", "\"float\" or \"base64\"")),
    };
    fields.string("user")?;
    let max_tokens = limits::max_tokens_to_keep(fields)?;
    let cuts = fields.boolean("truncate")?.unwrap_or(false) || fields.get("truncate_prompt_tokens").is_some();
    let embed = EmbedRequest {
        inputs: read_input(fields)?,
        prompt_name: fields.string("prompt_name")?.map(str::to_owned),
        dimensions: fields.integer("dimensions", 1, i64::from(u32::MAX))?.map(|dims| dims as usize),
        overflow: if cuts { Overflow::Cut } else { Overflow::Refuse },
        max_tokens,
        normalize: fields.boolean("normalize")?,
    };
    Ok(EmbeddingsRequest { embed, format })
}

/// A text, token ids, or several of one of them.
fn read_input(fields: &Fields) -> Result<Vec<EmbedInput>, ApiError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids or an array of such arrays";
    let items = match fields.require("input")? {
        Value::String(text) => return Ok(vec![EmbedInput::Text(text.clone())]),
        Value::Array(items) if !items.is_empty() => items,
        Value::Array(_) => return Err(fields.error("input", "must not be empty")),
        _ => return Err(fields.wrong("input", EXPECTED)),
    };
    let path = fields.path("input");
    if items[0].is_number() {
        check_len(fields, items.len(), MAX_INPUT_TOKENS)?;
        return Ok(vec![EmbedInput::Tokens(token_ids(items, &path)?)]);
    }
    check_len(fields, items.len(), MAX_INPUTS)?;
    let one = |(idx, item): (usize, &Value)| {
        let path = format!("{path}[{idx}]");
        match item {
            Value::String(text) if items[0].is_string() => Ok(EmbedInput::Text(text.clone())),
            Value::Array(ids) if items[0].is_array() && !ids.is_empty() => Ok(EmbedInput::Tokens(token_ids(ids, &path)?)),
            Value::Array(ids) if ids.is_empty() => Err(ApiError::field(path, "must not be empty")),
            other if items[0].is_string() => Err(wrong(&path, "a string, as the first one", other)),
            other if items[0].is_array() => Err(wrong(&path, "an array of token ids, as the first one", other)),
            other => Err(wrong(&path, "a string, a token id or an array of token ids", other)),
        }
    };
    items.iter().enumerate().map(one).collect()
}

fn check_len(fields: &Fields, len: usize, max: usize) -> Result<(), ApiError> {
    if len > max { Err(fields.error("input", format!("at most {max} entries, got {len}"))) } else { Ok(()) }
}
