//! `LocalText`: the side of a model on pagoda's own engine that needs no weights: its template, tokeniser and defaults.

use std::sync::Arc;

use async_trait::async_trait;
use pagoda_engine::core::EngineHandle;
use pagoda_engine::text::{ChatTemplate, Tokenizer};
use pagoda_engine::weights::checkpoint::GenerationDefaults;

use super::frames::CallFrame;
use super::grammar::Grammars;
use super::{Inner, VllmLocal, capabilities, default_config, engine_error};
use crate::{
    BackendCapabilities, BackendError, BackendStats, GenerateRequest, GenerateStream, GenerationConfig, InferenceBackend, Prompt,
    ReasoningStyle, ToolDialect,
};

/// A model without its engine: reads and counts prompts, and refuses to generate. Clones share it.
#[derive(Clone)]
pub struct LocalText {
    pub(super) inner: Arc<Inner>,
}

impl LocalText {
    /// The text side of a model whose engine holds at most `max_model_len` tokens of a sequence.
    pub fn new(
        tokenizer: Tokenizer,
        chat_template: Option<ChatTemplate>,
        eos_token_ids: Vec<u32>,
        generation: &GenerationDefaults,
        max_model_len: usize,
    ) -> LocalText {
        let source = chat_template.as_ref().map_or("", |template| template.source());
        let (dialect, reasoning) = (ToolDialect::of_template(source), ReasoningStyle::of_template(source));
        let mut inner = Inner {
            max_model_len,
            default_config: default_config(generation),
            capabilities: capabilities(max_model_len, source.contains("tools"), dialect),
            tokenizer,
            reasoning,
            dialect,
            marks: [Arc::from([]), Arc::from([])],
            chat_template: chat_template.map(Arc::new),
            eos_token_ids,
        };
        inner.find_marks();
        LocalText { inner: Arc::new(inner) }
    }

    /// The same model, whose calls are written in `dialect`; None: as its chat template says.
    pub fn writing(mut self, dialect: Option<ToolDialect>) -> LocalText {
        if let Some(dialect) = dialect {
            let inner = Arc::make_mut(&mut self.inner);
            inner.dialect = dialect;
            inner.capabilities.tool_dialect = Some(dialect);
            inner.find_marks();
        }
        self
    }

    /// The model with an engine that runs it.
    pub fn with_engine(&self, handle: EngineHandle) -> VllmLocal {
        let Inner { tokenizer, eos_token_ids, chat_template, dialect, marks: [_, marks], .. } = &*self.inner;
        let frame = CallFrame::of(*dialect, chat_template.as_ref().map_or("", |template| template.source()));
        let grammars = Grammars::new(tokenizer.clone(), handle.vocab_size(), eos_token_ids, marks.clone(), frame);
        VllmLocal { text: self.clone(), grammars: Arc::new(grammars), handle }
    }
}

impl Inner {
    /// Looks up the special tokens that reasoning and calls need as text.
    fn find_marks(&mut self) {
        let reasoning = self.reasoning.map(ReasoningStyle::marks).unwrap_or_default();
        let calls = reasoning.iter().chain(self.dialect.marks()).copied().collect::<Vec<_>>();
        self.marks = [reasoning, calls].map(|texts| {
            let ids = texts.into_iter().filter_map(|text| self.tokenizer.token_id(text));
            ids.filter(|id| self.tokenizer.is_special(*id) && !self.eos_token_ids.contains(id)).collect()
        });
    }
}

#[async_trait]
impl InferenceBackend for LocalText {
    async fn generate_stream(&self, _request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        Err(BackendError::Unavailable("the model is not loaded".into()))
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        let prompt = prompt.clone();
        self.inner.on_blocking_pool(move |inner| inner.tokenize(&prompt)).await
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        let tokens = tokens.to_vec();
        self.inner.on_blocking_pool(move |inner| inner.tokenizer.decode(&tokens, false).map_err(engine_error)).await
    }

    fn token_str(&self, token: u32) -> Option<String> {
        self.inner.tokenizer.token_str(token)
    }

    fn default_config(&self) -> GenerationConfig {
        self.inner.default_config.clone()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.inner.capabilities
    }

    fn stats(&self) -> BackendStats {
        BackendStats::default()
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}
