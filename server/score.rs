//! `POST /score` (and `/v1/score`), as vLLM has it: a reranker scores pairs; for a model of embeddings the score is the cosine.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{EmbedInput, EmbedRequest, ModelType, Overflow, ScoreRequest, Scores};
use serde::Serialize;
use serde_json::Value;

use crate::app::SharedApp;
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::ids::{new_id, unix_time};
use crate::limits;
use crate::model_source::Model;
use crate::rerank::{MAX_DOCUMENTS, scored};
use crate::usage::PromptUsage;

#[derive(Serialize)]
struct Answer<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Entry>,
    usage: PromptUsage,
}

#[derive(Serialize)]
struct Entry {
    index: usize,
    object: &'static str,
    score: f32,
}

/// A parsed body.
#[derive(Debug)]
pub(crate) struct PairsRequest {
    pub(crate) pairs: Vec<(String, String)>,
    overflow: Overflow,
    max_tokens: Option<usize>,
}

/// Answers with a score for each pair.
pub(crate) async fn score(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let parsed = parse_pairs(&fields)?;
    let Scores { scores, prompt_tokens } = match model.backend.model_type() {
        ModelType::Embedding => cosines(&app, &model, parsed).await?,
        ModelType::CausalLm | ModelType::Reranker => {
            let PairsRequest { pairs, overflow, max_tokens } = parsed;
            scored(&app, &model, ScoreRequest { pairs, overflow, max_tokens, ..ScoreRequest::default() }).await?
        }
    };
    let entry = |(index, score)| Entry { index, object: "score", score };
    let data = scores.into_iter().enumerate().map(entry).collect();
    let usage = PromptUsage::new(prompt_tokens);
    Ok(Json(Answer { id: new_id("score-"), object: "list", created: unix_time(), model: model_id, data, usage }).into_response())
}

/// Parses a body.
pub(crate) fn parse_pairs(fields: &Fields) -> Result<PairsRequest, ApiError> {
    let (first, second) = (read_texts(fields, "text_1")?, read_texts(fields, "text_2")?);
    let pairs: Vec<(String, String)> = match (first.len(), second.len()) {
        (1, _) => second.into_iter().map(|text| (first[0].clone(), text)).collect(),
        (a, b) if a == b => first.into_iter().zip(second).collect(),
        (a, b) => return Err(fields.error("text_2", format!("must have as many entries as text_1 ({a}) where that has several, got {b}"))),
    };
    let cuts = fields.boolean("truncate")?.unwrap_or(false) || fields.get("truncate_prompt_tokens").is_some();
    let overflow = if cuts { Overflow::Cut } else { Overflow::Refuse };
    Ok(PairsRequest { pairs, overflow, max_tokens: limits::max_tokens_to_keep(fields)? })
}

fn read_texts(fields: &Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let items = match fields.require(name)? {
        Value::String(text) => return Ok(vec![text.clone()]),
        Value::Array(items) if items.is_empty() => return Err(fields.error(name, "must not be empty")),
        Value::Array(items) if items.len() > MAX_DOCUMENTS => {
            return Err(fields.error(name, format!("at most {MAX_DOCUMENTS} entries, got {}", items.len())));
        }
        Value::Array(items) => items,
        _ => return Err(fields.wrong(name, "a string or an array of strings")),
    };
    let one = |(idx, item): (usize, &Value)| match item.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong(&format!("{}[{idx}]", fields.path(name)), "a string", item)),
    };
    items.iter().enumerate().map(one).collect()
}

/// The cosine of each pair's vectors.
async fn cosines(app: &SharedApp, model: &Model, request: PairsRequest) -> Result<Scores, ApiError> {
    let texts = request.pairs.into_iter().flat_map(|(first, second)| [EmbedInput::Text(first), EmbedInput::Text(second)]);
    let (overflow, max_tokens) = (request.overflow, request.max_tokens);
    let embed = EmbedRequest { inputs: texts.collect(), overflow, max_tokens, normalize: Some(true), ..EmbedRequest::default() };
    let _slot = app.slot()?;
    let answer = app.bounded(async { Ok(model.embed(embed).await?) }).await?;
    let cosine = |pair: &[Vec<f32>]| pair[0].iter().zip(&pair[1]).map(|(a, b)| a * b).sum();
    Ok(Scores { scores: answer.vectors.chunks_exact(2).map(cosine).collect(), prompt_tokens: answer.prompt_tokens })
}
