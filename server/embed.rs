//! `POST /api/embed`, as Ollama has it.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{EmbedInput, EmbedRequest, Overflow};
use serde::Serialize;
use serde_json::Value;

use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::limits;
use crate::model_source::Model;
use crate::openai::MAX_INPUTS;

/// What Ollama's clients put behind the name of a model whose version they do not care about.
const LATEST: &str = ":latest";

#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    /// Nanoseconds; models stay loaded here.
    load_duration: u64,
    prompt_eval_count: usize,
}

/// Answers with a vector of length one for each input.
pub(crate) async fn embed(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let started = Instant::now();
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = find(&app, model_id)?;
    let parsed = parse_embed(&fields)?;
    let _slot = app.slot()?;
    let answer = app.bounded(async { Ok(model.embed(parsed).await?) }).await?;
    let total_duration = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let (embeddings, prompt_eval_count) = (answer.vectors, answer.prompt_tokens);
    Ok(Json(Answer { model: model_id, embeddings, total_duration, load_duration: 0, prompt_eval_count }).into_response())
}

fn find(app: &SharedApp, id: &str) -> Result<Arc<Model>, ApiError> {
    app.models.find(id).or_else(|error| id.strip_suffix(LATEST).map_or(Err(error), |name| app.models.find(name)))
}

/// Parses a body.
pub(crate) fn parse_embed(fields: &Fields) -> Result<EmbedRequest, ApiError> {
    fields.object("options")?;
    if fields.get("keep_alive").is_some_and(|value| !value.is_string() && !value.is_number()) {
        return Err(fields.wrong("keep_alive", "a duration: a string or a number of seconds"));
    }
    Ok(EmbedRequest {
        inputs: read_input(fields)?,
        prompt_name: fields.string("prompt_name")?.map(str::to_owned),
        dimensions: fields.integer("dimensions", 1, i64::from(u32::MAX))?.map(|dims| dims as usize),
        overflow: if fields.boolean("truncate")?.unwrap_or(true) { Overflow::Cut } else { Overflow::Refuse },
        max_tokens: None,
        normalize: Some(true),
    })
}

fn read_input(fields: &Fields) -> Result<Vec<EmbedInput>, ApiError> {
    let items = match fields.require("input")? {
        Value::String(text) => return Ok(vec![EmbedInput::Text(text.clone())]),
        Value::Array(items) => items,
        _ => return Err(fields.wrong("input", "a string or an array of strings")),
    };
    if items.len() > MAX_INPUTS {
        return Err(fields.error("input", format!("at most {MAX_INPUTS} entries, got {}", items.len())));
    }
    let one = |(idx, item): (usize, &Value)| match item {
        Value::String(text) => Ok(EmbedInput::Text(text.clone())),
        other => Err(wrong(&format!("{}[{idx}]", fields.path("input")), "a string", other)),
    };
    items.iter().enumerate().map(one).collect()
}
