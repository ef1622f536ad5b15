//! Embeddings and scores of a service: OpenAI's `/v1/embeddings`, and `/v1/rerank` as vLLM, pagoda, Jina and Cohere have it.
//!
//! What a plain OpenAI-compatible service has no field for is refused by name, never left out in silence; vLLM and pagoda are told in their
//! own fields.

use http::StatusCode;
use serde_json::Map;

use super::fault::Fault;
use super::{RemoteModel, wrong_answer};
use crate::pooling::normalize;
use crate::registry::BackendKind;
use crate::{BackendError, EmbedInput, EmbedRequest, Embeddings, Json, Overflow, ScoreRequest, ScoreScale, Scores};

impl RemoteModel {
    pub(super) async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, BackendError> {
        if request.inputs.is_empty() {
            return Ok(Embeddings::default());
        }
        let (num_inputs, normalizes) = (request.inputs.len(), request.normalize == Some(true));
        let answer = self.post_counted("embeddings", &self.embed_body(request)?.into()).await?;
        let mut vectors = in_order(&answer["data"], num_inputs, |entry| vector(&entry["embedding"]))?;
        if normalizes {
            vectors.iter_mut().for_each(|vector| normalize(vector));
        }
        Ok(Embeddings { vectors, prompt_tokens: prompt_tokens(&answer) })
    }

    fn embed_body(&self, request: EmbedRequest) -> Result<Map<String, Json>, BackendError> {
        let mut body = Map::new();
        let input = |input: EmbedInput| match input {
            EmbedInput::Text(text) => Json::from(text),
            EmbedInput::Tokens(ids) => Json::from(ids),
        };
        body.insert("model".into(), self.id.as_str().into());
        body.insert("input".into(), request.inputs.into_iter().map(input).collect());
        body.insert("encoding_format".into(), "float".into());
        if let Some(dims) = request.dimensions {
            body.insert("dimensions".into(), dims.into());
        }
        if let Some(name) = request.prompt_name {
            self.set_own(&mut body, "prompt_name", name.into())?;
        }
        if request.normalize == Some(false) {
            self.set_own(&mut body, "normalize", false.into())?;
        }
        match (request.max_tokens, request.overflow) {
            (Some(max), _) => self.set_own(&mut body, "truncate_prompt_tokens", max.into())?,
            // A service without such a field refuses what is too long, or cuts it by itself.
            (None, Overflow::Cut) if self.is_vllm() => self.set_own(&mut body, "truncate_prompt_tokens", (-1).into())?,
            (None, _) => {}
        }
        Ok(body)
    }

    /// One request for each run of pairs with the same query.
    pub(super) async fn score(&self, request: ScoreRequest) -> Result<Scores, BackendError> {
        let mut all = Scores::default();
        for pairs in request.pairs.chunk_by(|a, b| a.0 == b.0) {
            let answer = self.post_counted("rerank", &self.rerank_body(pairs, &request)?.into()).await?;
            let score = |entry: &Json| entry["relevance_score"].as_f64().or_else(|| entry["score"].as_f64()).map(|score| score as f32);
            all.scores.extend(in_order(&answer["results"], pairs.len(), score)?);
            all.prompt_tokens += prompt_tokens(&answer);
        }
        Ok(all)
    }

    fn rerank_body(&self, pairs: &[(String, String)], request: &ScoreRequest) -> Result<Map<String, Json>, BackendError> {
        let mut body = Map::new();
        body.insert("model".into(), self.id.as_str().into());
        body.insert("query".into(), pairs[0].0.as_str().into());
        body.insert("documents".into(), pairs.iter().map(|(_, document)| Json::from(document.as_str())).collect());
        body.insert("top_n".into(), pairs.len().into());
        if let Some(instruction) = &request.instruction {
            self.set_own(&mut body, "instruction", instruction.as_str().into())?;
        }
        if let Some(max) = request.max_document_tokens {
            body.insert("max_tokens_per_doc".into(), max.into());
        }
        if request.scale == ScoreScale::Logit {
            self.set_own(&mut body, "raw_scores", true.into())?;
            // vLLM's name of the opposite.
            self.set_own(&mut body, "use_activation", false.into())?;
        }
        match (request.max_tokens, request.overflow) {
            (Some(max), _) => self.set_own(&mut body, "truncate_prompt_tokens", max.into())?,
            (None, Overflow::Cut) if self.is_vllm() => self.set_own(&mut body, "truncate_prompt_tokens", (-1).into())?,
            (None, Overflow::Refuse) if self.is_vllm() => self.set_own(&mut body, "truncate", false.into())?,
            (None, _) => {}
        }
        Ok(body)
    }

    fn is_vllm(&self) -> bool {
        self.service.kind() == BackendKind::VllmRemote
    }

    /// A field that vLLM or pagoda knows and OpenAI's API does not.
    fn set_own(&self, body: &mut Map<String, Json>, field: &str, value: Json) -> Result<(), BackendError> {
        if self.is_vllm() {
            body.insert(field.into(), value);
            return Ok(());
        }
        let message = format!("{field}: the service behind this model has no such field; leave it out");
        Err(BackendError::InvalidRequest { param: Some(field.into()), message })
    }

    async fn post_counted(&self, path: &str, body: &Json) -> Result<Json, BackendError> {
        let _running = self.service.start_running();
        let answer = match self.service.post(path, body, &mut 0).await {
            Ok(response) => self.service.json(response).await,
            Err(fault) => Err(fault),
        };
        answer.map_err(|fault| refused(fault, path))
    }
}

/// A service without the route says so by its status.
fn refused(fault: Fault, path: &str) -> BackendError {
    match fault.status {
        Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => {
            BackendError::Unsupported(format!("the service behind this model has no /v1/{path}, or not for this model"))
        }
        _ => fault.error,
    }
}

/// One value for each of `len` inputs, by the entries' `index`.
fn in_order<T>(entries: &Json, len: usize, read: impl Fn(&Json) -> Option<T>) -> Result<Vec<T>, BackendError> {
    let mut values: Vec<Option<T>> = (0..len).map(|_| None).collect();
    for entry in entries.as_array().ok_or_else(wrong_answer)? {
        let place = entry["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        let slot = place.and_then(|place| values.get_mut(place)).ok_or_else(wrong_answer)?;
        *slot = read(entry);
    }
    values.into_iter().collect::<Option<_>>().ok_or_else(wrong_answer)
}

fn vector(value: &Json) -> Option<Vec<f32>> {
    let vector: Vec<f32> = value.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<_>>()?;
    (!vector.is_empty()).then_some(vector)
}

/// 0 where the service does not tell.
fn prompt_tokens(answer: &Json) -> usize {
    let usage = &answer["usage"];
    let told = usage["prompt_tokens"].as_u64().or_else(|| usage["total_tokens"].as_u64());
    told.and_then(|tokens| usize::try_from(tokens).ok()).unwrap_or(0)
}
