//! `Pooling`: a model of embeddings or a reranker without a model. Tokens are characters, with two more around every input.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use pagoda_backends::{
    BackendCapabilities, BackendError, BackendStats, EmbedInput, EmbedRequest, Embeddings, GenerateRequest, GenerateStream,
    GenerationConfig, InferenceBackend, ModelType, Overflow, Prompt, ScoreRequest, ScoreScale, Scores,
};
use pagoda_server::{ModelSource, ServedModel, ServerConfig};
use serde_json::Value;

use crate::client::{Server, served};
use crate::scripted::Scripted;

/// Tokens of an input at most.
pub const MAX_LEN: usize = 32;
/// Numbers of a vector.
pub const DIMS: usize = 4;

/// A backend that embeds or reranks.
pub struct Pooling {
    model_type: ModelType,
    capabilities: BackendCapabilities,
    /// Requests so far.
    pub embeds: Mutex<Vec<EmbedRequest>>,
    /// Requests so far.
    pub scores: Mutex<Vec<ScoreRequest>>,
}

impl Pooling {
    pub fn new(model_type: ModelType) -> Arc<Pooling> {
        let capabilities = BackendCapabilities {
            streaming: false,
            tool_calling: false,
            tool_dialect: None,
            structured_output: false,
            batching: true,
            multi_gpu: false,
            quantization: Vec::new(),
            max_context_length: MAX_LEN,
            continuous_batching: true,
            paged_attention: false,
        };
        Arc::new(Pooling { model_type, capabilities, embeds: Mutex::default(), scores: Mutex::default() })
    }
}

/// Tokens of an input of `len` characters, cut or refused.
fn counted(len: usize, overflow: Overflow, max_tokens: Option<usize>) -> Result<usize, BackendError> {
    let (tokens, max) = (len + 2, max_tokens.unwrap_or(MAX_LEN).min(MAX_LEN));
    match overflow {
        Overflow::Refuse if tokens > max => Err(BackendError::PromptTooLong { prompt_tokens: tokens, max_tokens: MAX_LEN }),
        _ => Ok(tokens.min(max)),
    }
}

#[async_trait]
impl InferenceBackend for Pooling {
    async fn generate_stream(&self, _request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        Err(BackendError::InvalidRequest { param: Some("model".into()), message: "model: it does not generate".into() })
    }

    fn model_type(&self) -> ModelType {
        self.model_type
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, BackendError> {
        self.embeds.lock().unwrap().push(request.clone());
        if self.model_type != ModelType::Embedding {
            return Err(BackendError::InvalidRequest { param: Some("model".into()), message: "model: it does not embed".into() });
        }
        let dims = request.dimensions.unwrap_or(DIMS);
        if dims > DIMS {
            let message = format!("dimensions: must be an integer between 1 and {DIMS}, got {dims}");
            return Err(BackendError::InvalidRequest { param: Some("dimensions".into()), message });
        }
        let mut answer = Embeddings::default();
        for input in &request.inputs {
            let len = match input {
                EmbedInput::Text(text) => text.chars().count(),
                EmbedInput::Tokens(ids) => ids.len() - 2.min(ids.len()),
            };
            answer.prompt_tokens += counted(len, request.overflow, request.max_tokens)?;
            let vector = [len as f32, 0.5, -0.25, 1e-7];
            answer.vectors.push(vector[..dims].to_vec());
        }
        Ok(answer)
    }

    async fn score(&self, request: ScoreRequest) -> Result<Scores, BackendError> {
        self.scores.lock().unwrap().push(request.clone());
        if self.model_type != ModelType::Reranker {
            return Err(BackendError::InvalidRequest { param: Some("model".into()), message: "model: it does not rerank".into() });
        }
        let mut answer = Scores::default();
        for (query, document) in &request.pairs {
            let len = query.chars().count() + document.chars().count() + 1;
            answer.prompt_tokens += counted(len, request.overflow, request.max_tokens)?;
            // The more the document says of the query's first letter, the better.
            let wanted = query.chars().next().unwrap_or(' ');
            let logit = document.chars().filter(|letter| *letter == wanted).count() as f32 - 1.0;
            let probability = 1.0 / (1.0 + (-logit).exp());
            answer.scores.push(if request.scale == ScoreScale::Logit { logit } else { probability });
        }
        Ok(answer)
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        match prompt {
            Prompt::Text { text, .. } => Ok(text.chars().map(u32::from).collect()),
            _ => Ok(Vec::new()),
        }
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        Ok(tokens.iter().filter_map(|&id| char::from_u32(id)).collect())
    }

    fn token_str(&self, token: u32) -> Option<String> {
        char::from_u32(token).map(String::from)
    }

    fn default_config(&self) -> GenerationConfig {
        GenerationConfig::default()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.capabilities
    }

    fn stats(&self) -> BackendStats {
        BackendStats::default()
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A server over the chat models of `served`, `e` that embeds and `r` that reranks.
pub struct PoolingServer {
    pub server: Server,
    pub embedder: Arc<Pooling>,
    pub reranker: Arc<Pooling>,
}

impl PoolingServer {
    pub async fn start() -> PoolingServer {
        let (embedder, reranker) = (Pooling::new(ModelType::Embedding), Pooling::new(ModelType::Reranker));
        let scripted = Arc::new(Scripted::default());
        let mut models = served(&scripted);
        for (name, backend) in [("e", &embedder), ("r", &reranker)] {
            models.push(ServedModel { name: name.into(), aliases: Vec::new(), backend: backend.clone(), created: 1_704_067_202 });
        }
        let server = Server::over(ServerConfig::default(), ModelSource::ready(models), scripted).await;
        PoolingServer { server, embedder, reranker }
    }

    /// Checks that each body, made of `good` with one field changed, is a 400 whose message begins as said.
    pub async fn refuses(&self, route: &str, good: &Value, rows: Vec<(&str, Value, &str)>) {
        let mut faults = Vec::new();
        for (field, value, expected) in rows {
            let mut body = good.clone();
            body[field] = value;
            let answer = self.server.post(route, &body).await;
            let json = answer.json();
            let error = &json["error"];
            let message = error["message"].as_str().or(error.as_str()).unwrap_or_default();
            let param_fits = error.is_string() || error["param"].as_str().is_some_and(|param| param.starts_with(field));
            if answer.status != 400 || !message.starts_with(expected) || !param_fits {
                faults.push(format!("{route} {field} {}: {} {}", body[field], answer.status, answer.text()));
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
