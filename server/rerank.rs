//! `POST /api/rerank` (and `/rerank`, `/v1/rerank`, `/v2/rerank`): one form for the clients of vLLM, Jina and Cohere; at `/rerank` also that
//! of text-embeddings-inference, told by its `texts`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use pagoda_backends::{ModelType, Overflow, ScoreRequest, ScoreScale, Scores};
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::SharedApp;
use crate::error::{ApiError, ErrorKind};
use crate::fields::{Fields, wrong};
use crate::ids::new_id;
use crate::limits;
use crate::model_source::Model;
use crate::usage::PromptUsage;

/// Documents of one request at most.
pub(crate) const MAX_DOCUMENTS: usize = 10_000;

/// A parsed body.
#[derive(Debug)]
pub(crate) struct RerankRequest {
    pub(crate) score: ScoreRequest,
    top_n: usize,
    /// Documents are part of the answer.
    return_documents: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: String,
    model: &'a str,
    results: Vec<Ranked<'a>>,
    usage: PromptUsage,
}

#[derive(Serialize)]
struct Ranked<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Serialize)]
struct Document<'a> {
    text: &'a str,
}

/// Answers with documents in the order of their scores.
pub(crate) async fn rerank(State(app): State<SharedApp>, request: Request) -> Result<Response, ApiError> {
    let is_tei_route = request.uri().path() == "/rerank";
    let body = limits::read_json(&app, request).await?;
    let fields = Fields::of(&body, "")?;
    if is_tei_route && fields.get("texts").is_some() {
        return rerank_texts(&app, &fields).await;
    }
    let model_id = fields.required_string("model")?;
    let model = app.models.find(model_id)?;
    let RerankRequest { score, top_n, return_documents } = parse_rerank(&fields)?;
    let documents: Vec<String> = score.pairs.iter().map(|(_, document)| document.clone()).collect();
    let Scores { scores, prompt_tokens } = scored(&app, &model, score).await?;
    let document = |index: usize| return_documents.then(|| Document { text: &documents[index] });
    let entry = |index: usize| Ranked { index, relevance_score: scores[index], document: document(index) };
    let results = order(&scores).into_iter().take(top_n).map(entry).collect();
    Ok(Json(Answer { id: new_id("rerank-"), model: model_id, results, usage: PromptUsage::new(prompt_tokens) }).into_response())
}

/// The form of text-embeddings-inference: it names no model, so the first reranker answers.
async fn rerank_texts(app: &SharedApp, fields: &Fields<'_>) -> Result<Response, ApiError> {
    let model = match fields.string("model")? {
        Some(id) => app.models.find(id)?,
        None => {
            let models = app.models.all()?;
            let first = models.iter().find(|model| model.backend.model_type() == ModelType::Reranker);
            first.cloned().ok_or_else(|| ApiError::new(ErrorKind::Model, "no reranker is served here"))?
        }
    };
    let (query, texts) = (read_query(fields)?, read_documents(fields, "texts")?);
    let return_text = fields.boolean("return_text")?.unwrap_or(false);
    let cuts = fields.boolean("truncate")?.unwrap_or(false);
    let score = ScoreRequest {
        pairs: texts.iter().map(|text| (query.to_owned(), text.clone())).collect(),
        overflow: if cuts { Overflow::Cut } else { Overflow::Refuse },
        scale: scale(fields.boolean("raw_scores")?),
        ..ScoreRequest::default()
    };
    let scores = scored(app, &model, score).await?.scores;
    let entry = |index: usize| {
        let mut entry = json!({"index": index, "score": scores[index]});
        if return_text {
            entry["text"] = texts[index].as_str().into();
        }
        entry
    };
    Ok(Json(order(&scores).into_iter().map(entry).collect::<Value>()).into_response())
}

/// Runs the pairs; every score is a number.
pub(crate) async fn scored(app: &SharedApp, model: &Model, request: ScoreRequest) -> Result<Scores, ApiError> {
    let _slot = app.slot()?;
    let scores = app.bounded(async { Ok(model.score(request).await?) }).await?;
    if scores.scores.iter().all(|score| score.is_finite()) {
        return Ok(scores);
    }
    Err(ApiError::new(ErrorKind::Internal, "the model gave a score that is no number"))
}

/// Parses a body.
pub(crate) fn parse_rerank(fields: &Fields) -> Result<RerankRequest, ApiError> {
    fields.refuse(&["rank_fields"])?;
    let query = read_query(fields)?;
    let documents = read_documents(fields, "documents")?;
    let count = |name: &str| Ok::<_, ApiError>(fields.integer(name, 1, i64::from(u32::MAX))?.map(|count| count as usize));
    let score = ScoreRequest {
        instruction: fields.string("instruction")?.map(str::to_owned),
        overflow: if fields.boolean("truncate")?.unwrap_or(true) { Overflow::Cut } else { Overflow::Refuse },
        max_tokens: limits::max_tokens_to_keep(fields)?,
        max_document_tokens: count("max_tokens_per_doc")?,
        scale: scale(fields.boolean("raw_scores")?),
        pairs: documents.into_iter().map(|document| (query.to_owned(), document)).collect(),
    };
    let return_documents = fields.boolean("return_documents")?.unwrap_or(false);
    Ok(RerankRequest { score, top_n: count("top_n")?.unwrap_or(usize::MAX), return_documents })
}

fn read_query<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    fields.require("query")?.as_str().ok_or_else(|| fields.wrong("query", "a string"))
}

/// Texts, each a string or an object with `text`.
fn read_documents(fields: &Fields, name: &str) -> Result<Vec<String>, ApiError> {
    fields.require(name)?;
    let items = fields.array(name)?.unwrap_or_default();
    match items.len() {
        0 => return Err(fields.error(name, "must not be empty")),
        len if len > MAX_DOCUMENTS => return Err(fields.error(name, format!("at most {MAX_DOCUMENTS} entries, got {len}"))),
        _ => {}
    }
    let one = |(idx, item): (usize, &Value)| {
        let path = format!("{}[{idx}]", fields.path(name));
        match item {
            Value::String(text) => Ok(text.clone()),
            Value::Object(_) => {
                let object = Fields::of(item, path)?;
                let text = object.require("text")?;
                text.as_str().map(str::to_owned).ok_or_else(|| object.wrong("text", "a string"))
            }
            other => Err(wrong(&path, "a string or an object with `text`", other)),
        }
    };
    items.iter().enumerate().map(one).collect()
}

fn scale(raw: Option<bool>) -> ScoreScale {
    if raw == Some(true) { ScoreScale::Logit } else { ScoreScale::Probability }
}

/// Places of the scores, the highest first; equal ones in the order they came.
fn order(scores: &[f32]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    places.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    places
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn higher_scores_come_first_and_ties_keep_their_order() {
        assert_eq!(order(&[0.25, 0.5, 0.25, 0.75, 0.5]), [3, 1, 4, 0, 2]);
        assert!(order(&[]).is_empty());
    }
}
