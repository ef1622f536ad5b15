//! `PoolingLocal`: models of embeddings and rerankers on pagoda's own engine, behind `InferenceBackend`.
//!
//! Tokenises on the blocking pool, hands sequences to the model's thread, and turns pooled rows into vectors and scores. Knows no wire format.

use std::sync::Arc;

use async_trait::async_trait;
use pagoda_engine::EngineError;
use pagoda_engine::pooling::{Encoded, LoadedPooling, PoolingDescription, PoolingHandle, PoolingKind, Scoring, Sequence, template};

use crate::pooling::{normalize, wrong_kind};
use crate::vllm_local::engine_error;
use crate::{
    BackendCapabilities, BackendError, BackendStats, EmbedInput, EmbedRequest, Embeddings, GenerateRequest, GenerateStream,
    GenerationConfig, InferenceBackend, ModelType, Overflow, Prompt, ScoreRequest, ScoreScale, Scores,
};

/// One pooling model. Clones share it.
#[derive(Clone)]
pub struct PoolingLocal {
    inner: Arc<Inner>,
    /// None: it is not loaded, reads and counts texts, and refuses to run.
    handle: Option<PoolingHandle>,
}

struct Inner {
    model: PoolingDescription,
    capabilities: BackendCapabilities,
}

impl PoolingLocal {
    /// Wraps a loaded model.
    pub fn new(model: LoadedPooling) -> PoolingLocal {
        PoolingLocal::without_engine(model.description).with_engine(model.handle)
    }

    /// The model with an engine that runs it.
    pub fn with_engine(&self, handle: PoolingHandle) -> PoolingLocal {
        PoolingLocal { inner: self.inner.clone(), handle: Some(handle) }
    }

    /// A model whose weights are not loaded.
    pub fn without_engine(model: PoolingDescription) -> PoolingLocal {
        let capabilities = BackendCapabilities {
            streaming: false,
            tool_calling: false,
            tool_dialect: None,
            structured_output: false,
            batching: true,
            multi_gpu: false,
            quantization: Vec::new(),
            max_context_length: model.text.max_seq_len(),
            continuous_batching: true,
            paged_attention: model.scoring == Scoring::Question,
        };
        PoolingLocal { inner: Arc::new(Inner { model, capabilities }), handle: None }
    }

    /// Numbers of a vector.
    pub fn dims(&self) -> usize {
        self.inner.model.dims
    }

    async fn on_blocking_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = self.inner.clone();
        let outcome = tokio::task::spawn_blocking(move || work(&inner)).await;
        outcome.unwrap_or_else(|error| Err(BackendError::Internal(format!("text processing failed: {error}"))))
    }

    async fn run(&self, sequences: Vec<Sequence>) -> Result<Vec<Vec<f32>>, BackendError> {
        match &self.handle {
            Some(handle) => handle.run(sequences).await.map_err(engine_error),
            None => Err(BackendError::Unavailable("the model is not loaded".into())),
        }
    }

    fn require(&self, kind: PoolingKind, wanted: &str) -> Result<(), BackendError> {
        if self.inner.model.config.kind == kind { Ok(()) } else { Err(wrong_kind(self.model_type(), wanted)) }
    }
}

#[async_trait]
impl InferenceBackend for PoolingLocal {
    async fn generate_stream(&self, _request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        Err(wrong_kind(self.model_type(), "generate text"))
    }

    fn model_type(&self) -> ModelType {
        match self.inner.model.config.kind {
            PoolingKind::Embedding => ModelType::Embedding,
            PoolingKind::Reranker => ModelType::Reranker,
        }
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, BackendError> {
        self.require(PoolingKind::Embedding, "embed")?;
        let inner = &self.inner;
        let dims = inner.dimensions(request.dimensions)?;
        let normalizes = request.normalize.unwrap_or(inner.model.config.normalize);
        let sequences = self.on_blocking_pool(move |inner| inner.sequences(&request)).await?;
        let prompt_tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let mut vectors = self.run(sequences).await?;
        vectors.iter_mut().for_each(|vector| shape(vector, dims, normalizes));
        Ok(Embeddings { vectors, prompt_tokens })
    }

    async fn score(&self, request: ScoreRequest) -> Result<Scores, BackendError> {
        self.require(PoolingKind::Reranker, "rerank")?;
        let scale = request.scale;
        let sequences = self.on_blocking_pool(move |inner| inner.pairs(&request)).await?;
        let prompt_tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let rows = self.run(sequences).await?;
        let score = |row: Vec<f32>| {
            let logit = row.first().copied().unwrap_or(f32::NAN);
            match scale {
                ScoreScale::Probability => sigmoid(logit),
                ScoreScale::Logit => logit,
            }
        };
        Ok(Scores { scores: rows.into_iter().map(score).collect(), prompt_tokens })
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        let prompt = prompt.clone();
        self.on_blocking_pool(move |inner| match prompt {
            Prompt::Chat(_) => Err(wrong_kind(inner.model_type(), "read chat messages")),
            Prompt::Text { text, add_special_tokens } => {
                inner.model.text.tokenizer().encode(&text, add_special_tokens).map_err(engine_error)
            }
            Prompt::Tokens(tokens) => Ok(tokens),
        })
        .await
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        let tokens = tokens.to_vec();
        self.on_blocking_pool(move |inner| inner.model.text.tokenizer().decode(&tokens, false).map_err(engine_error)).await
    }

    fn token_str(&self, token: u32) -> Option<String> {
        self.inner.model.text.tokenizer().token_str(token)
    }

    fn default_config(&self) -> GenerationConfig {
        GenerationConfig::default()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.inner.capabilities
    }

    fn stats(&self) -> BackendStats {
        let stats = self.handle.as_ref().map(PoolingHandle::stats).unwrap_or_default();
        BackendStats {
            num_running: stats.num_running,
            num_waiting: stats.num_waiting,
            num_steps: stats.num_batches,
            max_running: stats.max_running,
            ..BackendStats::default()
        }
    }

    fn health(&self) -> Result<(), String> {
        self.handle.as_ref().map_or(Ok(()), PoolingHandle::health)
    }

    fn sleep(&self) -> Result<(), BackendError> {
        self.handle.as_ref().map_or(Ok(()), PoolingHandle::sleep).map_err(engine_error)
    }

    fn wake(&self) -> Result<(), BackendError> {
        self.handle.as_ref().map_or(Ok(()), PoolingHandle::wake).map_err(engine_error)
    }

    fn unload(&self) {
        if let Some(handle) = &self.handle {
            handle.unload();
        }
    }
}

impl Inner {
    fn model_type(&self) -> ModelType {
        match self.model.config.kind {
            PoolingKind::Embedding => ModelType::Embedding,
            PoolingKind::Reranker => ModelType::Reranker,
        }
    }

    fn dimensions(&self, wanted: Option<usize>) -> Result<usize, BackendError> {
        match wanted {
            Some(dims) if dims == 0 || dims > self.model.dims => {
                let message = format!("dimensions: must be an integer between 1 and {}, got {dims}", self.model.dims);
                Err(BackendError::InvalidRequest { param: Some("dimensions".into()), message })
            }
            Some(dims) => Ok(dims),
            None => Ok(self.model.dims),
        }
    }

    fn prompt(&self, name: Option<&str>) -> Result<&str, BackendError> {
        let config = &self.model.config;
        let Some(name) = name.or(config.default_prompt.as_deref()) else { return Ok("") };
        config.prompts.get(name).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = config.prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("prompt_name: the model has no prompt `{name}`; it has {known}");
            BackendError::InvalidRequest { param: Some("prompt_name".into()), message }
        })
    }

    fn sequences(&self, request: &EmbedRequest) -> Result<Vec<Sequence>, BackendError> {
        let prompt = self.prompt(request.prompt_name.as_deref())?;
        let one = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => {
                let text = if prompt.is_empty() { text } else { &format!("{prompt}{text}") };
                let encoded = self.model.text.single(text, request.max_tokens).map_err(engine_error)?;
                self.checked(encoded, request.overflow, request.max_tokens)
            }
            EmbedInput::Tokens(ids) => {
                let (mut ids, full_len) = (ids.clone(), ids.len());
                ids.truncate(request.max_tokens.unwrap_or(usize::MAX).min(self.model.text.max_seq_len()));
                let sequence = Sequence { ids, token_types: Vec::new() };
                self.checked(Encoded { sequence, full_len }, request.overflow, request.max_tokens)
            }
        };
        request.inputs.iter().map(one).collect()
    }

    fn pairs(&self, request: &ScoreRequest) -> Result<Vec<Sequence>, BackendError> {
        let text = &self.model.text;
        let instruction = request.instruction.as_deref().unwrap_or(template::DEFAULT_INSTRUCTION);
        let one = |(query, document): &(String, String)| {
            let document = match request.max_document_tokens {
                Some(max) => text.beginning(document, max).map_err(engine_error)?,
                None => document.as_str(),
            };
            let encoded = match self.model.scoring {
                Scoring::Pair => text.pair(query, document, request.max_tokens),
                Scoring::Question => template::question(text, instruction, query, document, request.max_tokens),
            };
            self.checked(encoded.map_err(engine_error)?, request.overflow, request.max_tokens)
        };
        request.pairs.iter().map(one).collect()
    }

    /// Refuses what was cut against the request's wish. A limit that the request itself set is a wish to cut.
    fn checked(&self, encoded: Encoded, overflow: Overflow, max_tokens: Option<usize>) -> Result<Sequence, BackendError> {
        let Encoded { sequence, full_len } = encoded;
        if sequence.ids.len() < full_len && overflow == Overflow::Refuse && max_tokens.is_none() {
            return Err(BackendError::PromptTooLong { prompt_tokens: full_len, max_tokens: self.model.text.max_seq_len() });
        }
        Ok(sequence)
    }
}

/// The first `dims` numbers, divided by their length where that is wanted (a vector of zeros stays one).
fn shape(vector: &mut Vec<f32>, dims: usize, normalizes: bool) {
    vector.truncate(dims);
    if normalizes {
        normalize(vector);
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The kind's name in the engine.
pub(crate) fn engine_kind(model_type: ModelType) -> Option<PoolingKind> {
    match model_type {
        ModelType::CausalLm => None,
        ModelType::Embedding => Some(PoolingKind::Embedding),
        ModelType::Reranker => Some(PoolingKind::Reranker),
    }
}

/// Whether the model of a path is for pooling, and of which kind; `wanted` wins over what the files say.
///
/// # Errors
/// A damaged file.
pub(crate) fn kind_of(path: &std::path::Path, wanted: Option<ModelType>) -> Result<Option<PoolingKind>, EngineError> {
    match wanted {
        Some(model_type) => Ok(engine_kind(model_type)),
        None => pagoda_engine::pooling::config::detect(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_cut_then_normalised() {
        let shaped = |vector: &[f32], dims, normalize| {
            let mut vector = vector.to_vec();
            shape(&mut vector, dims, normalize);
            vector
        };
        assert_eq!(shaped(&[3.0, 4.0, 12.0], 2, true), [0.6, 0.8]);
        assert_eq!(shaped(&[3.0, 4.0, 12.0], 3, false), [3.0, 4.0, 12.0]);
        assert_eq!(shaped(&[0.0, 0.0], 2, true), [0.0, 0.0]);
    }

    #[test]
    fn scores_of_any_logit_lie_between_zero_and_one() {
        for (logit, expected) in [(0.0, 0.5), (200.0, 1.0), (-200.0, 0.0), (2.0, 0.880_797)] {
            assert!((sigmoid(logit) - expected).abs() < 1e-6, "{logit}");
        }
    }
}
