//! `OnDemand`: one model of a pool as a backend. Reads and counts prompts without the model being loaded; generating, embedding and scoring
//! load it, and what it cannot do is refused without.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;

use super::ModelPool;
use crate::{
    BackendCapabilities, BackendError, BackendStats, EmbedRequest, Embeddings, GenerateRequest, GenerateStream, GenerationConfig,
    InferenceBackend, ModelType, Prompt, ScoreRequest, Scores,
};

/// A model that is loaded when it is used.
pub struct OnDemand {
    pool: Arc<ModelPool>,
    idx: usize,
    /// What is known without its weights.
    face: Arc<dyn InferenceBackend>,
}

impl OnDemand {
    /// Model `idx` of a pool; `face` answers whatever needs no weights.
    pub fn new(pool: &Arc<ModelPool>, idx: usize, face: Arc<dyn InferenceBackend>) -> OnDemand {
        OnDemand { pool: Arc::clone(pool), idx, face }
    }
}

#[async_trait]
impl InferenceBackend for OnDemand {
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        if self.model_type() != ModelType::CausalLm {
            return self.face.generate_stream(request).await;
        }
        let lease = self.pool.acquire(self.idx).await?;
        let events = lease.backend().generate_stream(request).await?;
        // The lease goes with the stream.
        Ok(events
            .map(move |event| {
                let _held = &lease;
                event
            })
            .boxed())
    }

    fn model_type(&self) -> ModelType {
        self.face.model_type()
    }

    async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, BackendError> {
        if self.model_type() != ModelType::Embedding {
            return self.face.embed(request).await;
        }
        let lease = self.pool.acquire(self.idx).await?;
        lease.backend().embed(request).await
    }

    async fn score(&self, request: ScoreRequest) -> Result<Scores, BackendError> {
        if self.model_type() != ModelType::Reranker {
            return self.face.score(request).await;
        }
        let lease = self.pool.acquire(self.idx).await?;
        lease.backend().score(request).await
    }

    async fn count_tokens(&self, prompt: &Prompt) -> Result<usize, BackendError> {
        self.face.count_tokens(prompt).await
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        self.face.tokenize(prompt).await
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        self.face.detokenize(tokens).await
    }

    fn token_str(&self, token: u32) -> Option<String> {
        self.face.token_str(token)
    }

    async fn token_strs(&self, prompt: &Prompt, tokens: &[u32]) -> Result<Vec<Option<String>>, BackendError> {
        self.face.token_strs(prompt, tokens).await
    }

    fn unknown_token(&self, tokens: &[u32]) -> Option<usize> {
        self.face.unknown_token(tokens)
    }

    fn default_config(&self) -> GenerationConfig {
        self.face.default_config()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        self.face.capabilities()
    }

    /// Counts of all its lives; while it is not loaded, nothing runs and nothing is held.
    fn stats(&self) -> BackendStats {
        let (loaded, sleeping, mut stats, num_waiting) = {
            let (state, idx) = (self.pool.lock(), self.idx);
            (state.loaded_backend(idx), state.sleeping_backend(idx), state.retired(idx), state.num_waiting_for(idx))
        };
        if let Some(backend) = sleeping {
            stats.add_counts(&backend.stats());
        }
        if let Some(backend) = loaded {
            let now = backend.stats();
            stats.add_counts(&now);
            stats = BackendStats { num_running: now.num_running, num_waiting: now.num_waiting, ..stats };
            (stats.num_blocks, stats.num_used_blocks) = (now.num_blocks, now.num_used_blocks);
            (stats.block_size, stats.kv_waste) = (now.block_size, now.kv_waste);
        }
        stats.num_waiting += num_waiting;
        stats
    }

    /// A model that is not loaded is well.
    fn health(&self) -> Result<(), String> {
        let loaded = self.pool.lock().loaded_backend(self.idx);
        loaded.map_or(Ok(()), |backend| backend.health())
    }
}
