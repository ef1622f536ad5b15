//! Backends over HTTP: what `vllm_remote` and `remote_openai` share.
//!
//! A request goes out as OpenAI's chat completions or completions, always streamed, and comes back as the backend's events, whatever
//! API the client speaks. Tool calls and reasoning that the service finds pass as they are; where it gives only text, that is read as the
//! native engine's is. Embeddings and scores are asked for as they are (`vectors`). What such a backend cannot do it says: no token masks,
//! no vocabulary in this process.

mod answer;
mod body;
mod breaker;
mod estimate;
mod exchange;
mod fault;
mod retry;
mod service;
pub mod serving;
mod sse;
mod tokens;
mod vectors;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use http::StatusCode;
use serde_json::{Map, json};

use crate::pooling::wrong_kind;
use crate::registry::{BackendKind, ModelType};
use crate::{
    BackendCapabilities, BackendError, BackendStats, EmbedRequest, Embeddings, GenerateRequest, GenerateStream, GenerationConfig,
    InferenceBackend, Json, Prompt, ReasoningStyle, ScoreRequest, Scores, ToolDialect,
};
use body::{Quirks, Shape};
pub use breaker::BreakerPolicy;
use exchange::Exchange;
use fault::Fault;
pub use retry::RetryPolicy;
use service::Service;

/// Models that a service may list.
const MAX_MODELS: usize = 1000;

/// How to reach a service.
#[derive(Clone)]
pub struct RemoteSettings {
    /// `VllmRemote` or `RemoteOpenai`.
    pub kind: BackendKind,
    /// Address, with or without `/v1`.
    pub url: String,
    /// Sent as a bearer token; never shown.
    pub api_key: Option<String>,
    /// Longest silence: before the first byte, and between two pieces of a stream.
    pub timeout: Duration,
    /// Retries and breaker.
    pub policy: RetryPolicy,
}

impl RemoteSettings {
    /// A service without a key, with the usual bounds.
    pub fn new(kind: BackendKind, url: impl Into<String>) -> RemoteSettings {
        RemoteSettings { kind, url: url.into(), api_key: None, timeout: Duration::from_secs(120), policy: RetryPolicy::default() }
    }

    /// The flag of one of its options.
    fn option(&self, name: &str) -> String {
        format!("--{}-{name}", self.kind.as_str()).replace('_', "-")
    }
}

impl std::fmt::Debug for RemoteSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let api_key = self.api_key.as_ref().map(|_| "***");
        let mut shown = f.debug_struct("RemoteSettings");
        shown.field("kind", &self.kind).field("url", &self.url).field("api_key", &api_key);
        shown.field("timeout", &self.timeout).field("policy", &self.policy).finish()
    }
}

/// What is wrong with `RemoteSettings`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The address.
    #[error("{option}: {reason}")]
    Address {
        /// The flag.
        option: String,
        /// What is wrong; never a key.
        reason: String,
    },
    /// The key holds what no header can.
    #[error("{option}: a key has no line breaks and no control characters")]
    Key {
        /// The flag.
        option: String,
    },
}

/// A model that a service lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    /// Its id there.
    pub id: String,
    /// Longest prompt plus answer, where the service says.
    pub max_model_len: Option<usize>,
    /// What it is for, where the service says (pagoda does).
    pub model_type: Option<ModelType>,
}

/// A service elsewhere. Clones share its connections.
#[derive(Clone)]
pub struct RemoteService(Service);

impl RemoteService {
    /// Prepares connections; opens none.
    ///
    /// # Errors
    /// An address or a key that cannot be used.
    pub fn new(settings: &RemoteSettings) -> Result<RemoteService, RemoteError> {
        Ok(RemoteService(Service::new(settings)?))
    }

    /// The models it lists.
    ///
    /// # Errors
    /// Why it did not answer.
    pub async fn models(&self) -> Result<Vec<ListedModel>, BackendError> {
        let list = self.0.get("models").await.map_err(|fault| fault.error)?;
        let window = |entry: &Json| {
            let keys = ["max_model_len", "context_length", "context_window"];
            keys.iter().find_map(|key| entry[key].as_u64()).and_then(|window| usize::try_from(window).ok()).filter(|&window| window > 0)
        };
        let model = |entry: &Json| {
            let model_type = entry["model_type"].as_str().and_then(ModelType::parse);
            Some(ListedModel { id: entry["id"].as_str()?.to_owned(), max_model_len: window(entry), model_type })
        };
        let entries = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(entries.iter().filter_map(model).take(MAX_MODELS).collect())
    }

    /// A backend over one of its models, whatever that is for: the service refuses what it is not.
    pub fn model(&self, id: impl Into<String>, max_model_len: Option<usize>) -> Remote {
        self.model_for(id, max_model_len, None, ToolDialect::default())
    }

    /// A backend over one of its models; `model_type` None: as of `model`. `dialect`: how it writes calls where the service gives only text.
    pub fn model_for(
        &self,
        id: impl Into<String>,
        max_model_len: Option<usize>,
        model_type: Option<ModelType>,
        dialect: ToolDialect,
    ) -> Remote {
        let of = |max_context_length: usize| capabilities(self.0.kind(), max_context_length, dialect);
        let model = RemoteModel {
            service: self.0.clone(),
            id: id.into(),
            model_type,
            dialect,
            quirks: Quirks::default(),
            capabilities: OnceLock::new(),
            without_window: of(0),
            is_asked: AtomicBool::new(false),
            no_tokenize: AtomicBool::new(false),
        };
        if let Some(window) = max_model_len {
            model.capabilities.get_or_init(|| of(window));
        }
        Remote { model: Arc::new(model) }
    }
}

/// One model of a service, behind `InferenceBackend`. Clones share it.
#[derive(Clone)]
pub struct Remote {
    model: Arc<RemoteModel>,
}

/// What all requests of a model share.
struct RemoteModel {
    service: Service,
    /// Its id there.
    id: String,
    /// What it is for; None: nobody said.
    model_type: Option<ModelType>,
    dialect: ToolDialect,
    quirks: Quirks,
    /// Set once the window is known.
    capabilities: OnceLock<BackendCapabilities>,
    without_window: BackendCapabilities,
    /// The window was asked for, or is being asked for.
    is_asked: AtomicBool,
    /// The service has no `/tokenize`.
    no_tokenize: AtomicBool,
}

fn capabilities(kind: BackendKind, max_context_length: usize, dialect: ToolDialect) -> BackendCapabilities {
    let is_vllm = kind == BackendKind::VllmRemote;
    BackendCapabilities {
        streaming: true,
        tool_calling: true,
        tool_dialect: Some(dialect),
        structured_output: true,
        batching: true,
        multi_gpu: false,
        quantization: Vec::new(),
        max_context_length,
        continuous_batching: is_vllm,
        paged_attention: is_vllm,
    }
}

impl RemoteModel {
    /// How its reasoning may stand in the text, where the service does not take it out.
    fn reasoning(&self) -> ReasoningStyle {
        match self.dialect {
            ToolDialect::Harmony => ReasoningStyle::Channels,
            _ => ReasoningStyle::ANY_TAGS,
        }
    }

    fn window(&self) -> Option<usize> {
        self.capabilities.get().map(|known| known.max_context_length)
    }

    /// Asks for the window in the background, once the service is known to answer.
    fn learn_window(self: &Arc<Self>) {
        if self.window().is_some() || self.is_asked.swap(true, Relaxed) {
            return;
        }
        let model = Arc::clone(self);
        tokio::spawn(async move {
            match RemoteService(model.service.clone()).models().await {
                Ok(list) => {
                    if let Some(window) = list.iter().find(|listed| listed.id == model.id).and_then(|listed| listed.max_model_len) {
                        model.capabilities.get_or_init(|| capabilities(model.service.kind(), window, model.dialect));
                    }
                }
                Err(_) => model.is_asked.store(false, Relaxed),
            }
        });
    }

    /// What `/tokenize` says about a prompt.
    async fn tokenized(&self, prompt: &Prompt, strings: bool) -> Result<Json, BackendError> {
        let unsupported = || BackendError::Unsupported("the service behind this model has no /tokenize".into());
        if self.no_tokenize.load(Relaxed) {
            return Err(unsupported());
        }
        let mut fields = Map::new();
        match prompt {
            Prompt::Chat(chat) => {
                let shape = Shape { kind: self.service.kind(), model: &self.id, quirks: &self.quirks, window: None, max_tokens: None };
                body::chat_fields(chat, &shape, &mut |key, value| fields.extend(value.map(|value| (key.to_owned(), value))));
                fields.remove("tool_choice");
                fields.remove("parallel_tool_calls");
            }
            Prompt::Text { text, add_special_tokens } => {
                fields.insert("prompt".into(), text.as_str().into());
                fields.insert("add_special_tokens".into(), (*add_special_tokens).into());
            }
            Prompt::Tokens(ids) => return Ok(json!({ "count": ids.len(), "tokens": ids })),
        }
        fields.insert("model".into(), self.id.as_str().into());
        if strings {
            fields.insert("return_token_strs".into(), true.into());
        }
        self.beside("tokenize", &fields.into()).await.map_err(|fault| match fault.status {
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => {
                self.no_tokenize.store(true, Relaxed);
                unsupported()
            }
            _ => fault.error,
        })
    }

    /// Refuses what a model of another type is asked.
    fn require(&self, wanted: ModelType, verb: &str) -> Result<(), BackendError> {
        match self.model_type {
            Some(other) if other != wanted => Err(wrong_kind(other, verb)),
            _ => Ok(()),
        }
    }

    async fn beside(&self, path: &str, body: &Json) -> Result<Json, Fault> {
        self.service.post_root(path, body).await
    }
}

fn wrong_answer() -> BackendError {
    BackendError::Upstream("the service behind this model sent an answer without the field that was asked for".into())
}

#[async_trait]
impl InferenceBackend for Remote {
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        self.model.require(ModelType::CausalLm, "generate text")?;
        let stream = Exchange::new(Arc::clone(&self.model), request).start().await?;
        self.model.learn_window();
        Ok(stream.boxed())
    }

    fn model_type(&self) -> ModelType {
        self.model.model_type.unwrap_or(ModelType::CausalLm)
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, BackendError> {
        self.model.require(ModelType::Embedding, "embed")?;
        self.model.embed(request).await
    }

    async fn score(&self, request: ScoreRequest) -> Result<Scores, BackendError> {
        self.model.require(ModelType::Reranker, "rerank")?;
        self.model.score(request).await
    }

    /// The service's own count, or an estimate where it has none (docs/backends.md).
    async fn count_tokens(&self, prompt: &Prompt) -> Result<usize, BackendError> {
        match self.model.tokenized(prompt, false).await {
            Ok(answer) => answer["count"].as_u64().and_then(|count| usize::try_from(count).ok()).ok_or_else(wrong_answer),
            Err(BackendError::Unsupported(_)) => Ok(estimate::num_tokens(prompt)),
            Err(error) => Err(error),
        }
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        let answer = self.model.tokenized(prompt, false).await?;
        let ids = answer["tokens"].as_array().ok_or_else(wrong_answer)?;
        ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect::<Option<_>>().ok_or_else(wrong_answer)
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        let body = json!({"model": self.model.id, "tokens": tokens});
        let answer = self.model.beside("detokenize", &body).await.map_err(|fault| match fault.status {
            Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                BackendError::Unsupported("the service behind this model has no /detokenize".into())
            }
            _ => fault.error,
        })?;
        answer["prompt"].as_str().map(str::to_owned).ok_or_else(wrong_answer)
    }

    fn token_str(&self, _token: u32) -> Option<String> {
        None
    }

    async fn token_strs(&self, prompt: &Prompt, tokens: &[u32]) -> Result<Vec<Option<String>>, BackendError> {
        let answer = self.model.tokenized(prompt, true).await?;
        let strings = answer["token_strs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let strings = strings.iter().map(|text| text.as_str().map(str::to_owned)).chain(std::iter::repeat(None));
        Ok(strings.take(tokens.len()).collect())
    }

    fn unknown_token(&self, _tokens: &[u32]) -> Option<usize> {
        None
    }

    /// Values that say "the service decides"; only what a client sets is sent.
    fn default_config(&self) -> GenerationConfig {
        body::default_config()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        self.model.capabilities.get().unwrap_or(&self.model.without_window)
    }

    fn stats(&self) -> BackendStats {
        BackendStats { num_running: self.model.service.num_running(), ..BackendStats::default() }
    }

    /// Always well: a service that is away may come back, and requests are told meanwhile.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}
