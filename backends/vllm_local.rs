//! `VllmLocal`: pagoda's own engine behind `InferenceBackend`.
//!
//! Renders and tokenises on the blocking pool, hands token ids to the engine thread, and turns its events into text on the request's own
//! task. Knows no wire format.

mod frames;
mod grammar;
mod output;
mod params;
mod text;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use pagoda_engine::EngineError;
use pagoda_engine::core::EngineHandle;
use pagoda_engine::loader::LoadedModel;
use pagoda_engine::request::Request;
use pagoda_engine::sampling::SamplingParams;
use pagoda_engine::text::{ChatInput, ChatTemplate, Tokenizer};
use pagoda_engine::weights::checkpoint::GenerationDefaults;
use serde_json::json;

use crate::{
    BackendCapabilities, BackendError, BackendStats, ChatMessage, ChatPrompt, GenerateRequest, GenerateStream, GenerationConfig,
    InferenceBackend, Json, Prompt, ReasoningSplitter, ReasoningStyle, ToolChoice, ToolDialect,
};
use grammar::Grammars;
use output::{AnswerText, Output};
pub use text::LocalText;

/// Formats of weights that the engine runs (docs/quantization.md).
const QUANTIZATION: [&str; 16] = [
    "bitsandbytes",
    "awq",
    "gptq",
    "marlin",
    "compressed-tensors",
    "fp8",
    "nvfp4",
    "mxfp4",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q4_k",
    "q5_k",
    "q6_k",
];

/// Seconds after which a refused request may be sent again.
const RETRY_AFTER_S: u32 = 1;

/// One model on the native engine. Clones share it.
#[derive(Clone)]
pub struct VllmLocal {
    text: LocalText,
    grammars: Arc<Grammars>,
    handle: EngineHandle,
}

/// What needs no engine.
#[derive(Clone)]
struct Inner {
    tokenizer: Tokenizer,
    chat_template: Option<Arc<ChatTemplate>>,
    /// How the template marks reasoning; None: it does not.
    reasoning: Option<ReasoningStyle>,
    /// How the model writes calls.
    dialect: ToolDialect,
    /// Special tokens that reasoning needs, and those that calls need too.
    marks: [Arc<[u32]>; 2],
    eos_token_ids: Vec<u32>,
    max_model_len: usize,
    default_config: GenerationConfig,
    capabilities: BackendCapabilities,
}

/// What a `VllmLocal` is made of, for engines that the loader did not start.
pub struct Parts {
    /// The engine.
    pub handle: EngineHandle,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
    /// None: chat prompts are refused.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that the engine ends at.
    pub eos_token_ids: Vec<u32>,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// How the model writes calls of tools; None: as its chat template says.
    pub tool_dialect: Option<ToolDialect>,
}

impl VllmLocal {
    /// Wraps a loaded model.
    pub fn new(model: LoadedModel) -> VllmLocal {
        VllmLocal::writing(model, None)
    }

    /// Wraps a loaded model that writes calls in `dialect`; None: as its chat template says.
    pub fn writing(model: LoadedModel, dialect: Option<ToolDialect>) -> VllmLocal {
        let LoadedModel { handle, tokenizer, chat_template, config, generation, .. } = model;
        let eos_token_ids = config.eos_token_ids;
        VllmLocal::from_parts(Parts { handle, tokenizer, chat_template, eos_token_ids, generation, tool_dialect: dialect })
    }

    /// Wraps an engine.
    pub fn from_parts(parts: Parts) -> VllmLocal {
        let Parts { handle, tokenizer, chat_template, eos_token_ids, generation, tool_dialect } = parts;
        let text = LocalText::new(tokenizer, chat_template, eos_token_ids, &generation, handle.max_model_len());
        text.writing(tool_dialect).with_engine(handle)
    }

    /// The engine behind it.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Whether chat prompts can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.text.inner.chat_template.is_some()
    }
}

#[async_trait]
impl InferenceBackend for VllmLocal {
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        let GenerateRequest { prompt, config } = request;
        let grammars = self.grammars.clone();
        let inner = &self.text.inner;
        let prepared = inner.on_blocking_pool(move |inner| Ok((inner.request(&grammars, &prompt, &config)?, config))).await?;
        let ((request, answer), config) = prepared;
        let prompt = request.prompt.clone();
        // Ends at the room left in the window rather than at the client's own limit.
        let is_clamped = config.max_tokens.is_none_or(|max| max > request.sampling.max_tokens);
        let output = Output::new(&inner.tokenizer, &inner.eos_token_ids, config, prompt, is_clamped)?.read_as(answer);
        let stream = self.handle.submit(request).map_err(engine_error)?;
        Ok(output.into_stream(stream).boxed())
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        self.text.tokenize(prompt).await
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        self.text.detokenize(tokens).await
    }

    fn token_str(&self, token: u32) -> Option<String> {
        self.text.token_str(token)
    }

    fn default_config(&self) -> GenerationConfig {
        self.text.default_config()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        self.text.capabilities()
    }

    fn stats(&self) -> BackendStats {
        let stats = self.handle.stats();
        BackendStats {
            num_running: stats.num_running,
            num_waiting: stats.num_waiting,
            num_blocks: stats.num_blocks,
            num_used_blocks: stats.num_used_blocks,
            kv_waste: stats.kv_waste(),
            num_preemptions: stats.num_preemptions,
            num_steps: stats.num_steps,
            max_running: stats.max_running,
            block_size: stats.block_size,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            step_sizes: stats.step_sizes,
        }
    }

    fn health(&self) -> Result<(), String> {
        self.handle.health()
    }

    fn sleep(&self) -> Result<(), BackendError> {
        self.handle.sleep().map_err(engine_error)
    }

    fn wake(&self) -> Result<(), BackendError> {
        self.handle.wake().map_err(engine_error)
    }

    fn unload(&self) {
        self.handle.unload();
    }
}

impl Inner {
    /// Runs work that takes longer than an async thread should be held.
    async fn on_blocking_pool<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = self.clone();
        let outcome = tokio::task::spawn_blocking(move || work(&inner)).await;
        outcome.unwrap_or_else(|error| Err(BackendError::Internal(format!("text processing failed: {error}"))))
    }

    fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        Ok(self.read(prompt)?.0)
    }

    /// Tokens of a prompt, and how its answer is read.
    fn read(&self, prompt: &Prompt) -> Result<(Vec<u32>, AnswerText), BackendError> {
        let encode = |text: &str, add_special_tokens| self.tokenizer.encode(text, add_special_tokens).map_err(engine_error);
        match prompt {
            Prompt::Chat(chat) => {
                let text = self.render(chat)?;
                let prefill = chat.messages.last().filter(|_| chat.continue_final_message).map(|message| message.content.as_str());
                let splitter = self.reasoning.map(|style| ReasoningSplitter::after(style, &text, prefill));
                let calls = !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None;
                let marks = Some(self.marks[usize::from(calls)].clone());
                Ok((encode(&text, false)?, AnswerText { splitter, marks }))
            }
            Prompt::Text { text, add_special_tokens } => Ok((encode(text, *add_special_tokens)?, AnswerText::default())),
            Prompt::Tokens(tokens) => Ok((tokens.clone(), AnswerText::default())),
        }
    }

    fn render(&self, chat: &ChatPrompt) -> Result<String, BackendError> {
        let Some(template) = &self.chat_template else {
            let message = "this model has no chat template: use a completion instead, or start with --chat-template FILE";
            return Err(BackendError::InvalidRequest { param: Some("messages".into()), message: message.into() });
        };
        let messages: Vec<Json> = chat.messages.iter().map(message_json).collect();
        let tools: Vec<Json> = chat.tools.iter().map(tool_json).collect();
        let input = ChatInput {
            messages: &messages,
            tools: &tools,
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
            kwargs: &chat.template_kwargs,
        };
        template.render(&input).map_err(engine_error)
    }

    /// Tokens and sampling parameters, checked against the window, and how the answer is read.
    fn request(&self, grammars: &Grammars, prompt: &Prompt, config: &GenerationConfig) -> Result<(Request, AnswerText), BackendError> {
        let (tokens, answer) = self.read(prompt)?;
        let reasoning_end = answer.splitter.as_ref().and_then(ReasoningSplitter::open_end);
        let grammar = grammars.of_request(prompt, config, reasoning_end)?;
        let prompt = tokens;
        if prompt.is_empty() {
            return Err(invalid("prompt", "the prompt has no tokens; at least one is needed"));
        }
        if prompt.len() >= self.max_model_len {
            return Err(BackendError::PromptTooLong { prompt_tokens: prompt.len(), max_tokens: self.max_model_len - 1 });
        }
        let room = u32::try_from(self.max_model_len - prompt.len()).unwrap_or(u32::MAX);
        let sampling = SamplingParams { grammar, ..params::sampling(config, room, &self.tokenizer)? };
        Ok((Request { prompt, sampling, priority: config.priority, cache_salt: config.cache_salt }, answer))
    }
}

/// A message as chat templates expect it.
fn message_json(message: &ChatMessage) -> Json {
    let mut json = json!({ "role": message.role, "content": message.content });
    let mut set = |key: &str, value: Option<Json>| {
        if let Some(value) = value {
            json[key] = value;
        }
    };
    set("tool_calls", (!message.tool_calls.is_empty()).then(|| Json::from(message.tool_calls.clone())));
    set("tool_call_id", message.tool_call_id.clone().map(Json::from));
    set("name", message.name.clone().map(Json::from));
    set("reasoning_content", message.reasoning.clone().map(Json::from));
    json
}

/// A tool as chat templates expect it: `strict` is not for the model to read.
fn tool_json(tool: &Json) -> Json {
    let mut tool = tool.clone();
    if let Some(function) = tool.get_mut("function").and_then(Json::as_object_mut) {
        function.shift_remove("strict");
    }
    tool
}

fn default_config(model: &GenerationDefaults) -> GenerationConfig {
    let built_in = GenerationConfig::default();
    GenerationConfig {
        temperature: model.temperature.unwrap_or(built_in.temperature),
        top_p: model.top_p.unwrap_or(built_in.top_p),
        top_k: model.top_k.filter(|&top_k| top_k > 0).or(built_in.top_k),
        repetition_penalty: model.repetition_penalty.unwrap_or(built_in.repetition_penalty),
        ..built_in
    }
}

fn capabilities(max_context_length: usize, tool_calling: bool, dialect: ToolDialect) -> BackendCapabilities {
    BackendCapabilities {
        streaming: true,
        tool_calling,
        tool_dialect: Some(dialect),
        structured_output: true,
        batching: true,
        multi_gpu: false,
        quantization: QUANTIZATION.to_vec(),
        max_context_length,
        continuous_batching: true,
        paged_attention: true,
    }
}

fn invalid(param: &str, message: &str) -> BackendError {
    BackendError::InvalidRequest { param: Some(param.into()), message: message.into() }
}

/// Engine errors by whose fault they are.
pub(crate) fn engine_error(error: EngineError) -> BackendError {
    match error {
        EngineError::InvalidRequest(message) | EngineError::Text(message) => BackendError::InvalidRequest { param: None, message },
        EngineError::QueueFull(_) => BackendError::Overloaded { message: error.to_string(), retry_after_s: RETRY_AFTER_S },
        EngineError::EngineDead(_) => BackendError::Unavailable(error.to_string()),
        EngineError::Unsupported(what) => BackendError::Unsupported(what),
        other => BackendError::Internal(other.to_string()),
    }
}
