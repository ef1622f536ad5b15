//! `InferenceBackend`: the one trait the server talks to, and the plain types that cross it.
//!
//! Depends on no HTTP and no wire format. A backend takes a prompt (chat, text or tokens) and a `GenerationConfig`, and answers with a
//! stream of `GenerateEvent`s that ends with exactly one `Done` or `Failed`. Dropping the stream aborts the request.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

/// A JSON value: tool schemas, template arguments. Plain data, no wire type.
pub type Json = serde_json::Value;

/// What the model continues.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Messages, rendered through the model's chat template.
    Chat(ChatPrompt),
    /// Text, tokenised; special tokens in it are recognised.
    Text {
        /// The text.
        text: String,
        /// Let the tokeniser add BOS and the like where the model wants it.
        add_special_tokens: bool,
    },
    /// Token ids as they are.
    Tokens(Vec<u32>),
}

/// A conversation.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    /// In order.
    pub messages: Vec<ChatMessage>,
    /// Tool definitions in OpenAI's function shape, as chat templates expect; empty: none.
    pub tools: Vec<Json>,
    /// Append the assistant's opening (default for a new answer).
    pub add_generation_prompt: bool,
    /// The last message is an assistant's and the answer continues it (prefill).
    pub continue_final_message: bool,
    /// Further arguments of the template (`chat_template_kwargs`).
    pub template_kwargs: BTreeMap<String, Json>,
}

/// One message of a conversation.
#[derive(Clone, Debug, Default)]
pub struct ChatMessage {
    /// system, user, assistant, tool, developer.
    pub role: String,
    /// Text content; empty where a message only carries tool calls.
    pub content: String,
    /// Calls of an assistant message, in OpenAI's shape (arguments as an object).
    pub tool_calls: Vec<Json>,
    /// The call a tool message answers.
    pub tool_call_id: Option<String>,
    /// Name of a tool or participant.
    pub name: Option<String>,
    /// Reasoning of an assistant message.
    pub reasoning: Option<String>,
}

/// How to generate. Values set by a request win; then the model's generation_config.json; then these defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// Output tokens at most; None: what is left of the context window. Clamped to the window.
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus.
    pub top_p: f32,
    /// None: off.
    pub top_k: Option<u32>,
    /// Relative to the best token's probability.
    pub min_p: f32,
    /// Strings that end the output; the output ends right before the earliest match.
    pub stop_sequences: Vec<String>,
    /// Keep the matched stop string in the output.
    pub include_stop_str: bool,
    /// Tokens that end the output.
    pub stop_token_ids: Vec<u32>,
    /// See `SamplingParams`.
    pub repetition_penalty: f32,
    /// See `SamplingParams`.
    pub presence_penalty: f32,
    /// See `SamplingParams`.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Words that must not appear.
    pub bad_words: Vec<String>,
    /// EOS does not end the output.
    pub ignore_eos: bool,
    /// No stop before this many tokens (EOS, stop tokens and stop strings alike).
    pub min_tokens: u32,
    /// Makes sampling reproducible.
    pub seed: Option<u64>,
    /// Outputs of the request.
    pub n: u32,
    /// Logprobs of sampled tokens with this many alternatives (0: only the token's own).
    pub logprobs: Option<u32>,
    /// Logprobs of prompt tokens with this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Lower runs earlier.
    pub priority: i32,
    /// Separates prefix caches of tenants.
    pub cache_salt: u64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        GenerationConfig {
            max_tokens: Some(1024),
            temperature: 0.7,
            top_p: 0.9,
            top_k: None,
            min_p: 0.0,
            stop_sequences: Vec::new(),
            include_stop_str: false,
            stop_token_ids: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            seed: None,
            n: 1,
            logprobs: None,
            prompt_logprobs: None,
            skip_special_tokens: true,
            priority: 0,
            cache_salt: 0,
        }
    }
}

/// A prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub config: GenerationConfig,
}

/// Logprob of a token, its rank and alternatives, with the bytes each token stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    /// Token id.
    pub id: u32,
    /// The token as text (lossy where it is part of a character).
    pub text: String,
    /// The bytes it adds to the answer: the token's own, none for an end or a special token that is left out of the text.
    pub bytes: Vec<u8>,
    /// Log probability; None when not asked for.
    pub logprob: Option<f32>,
    /// Alternatives in descending order, without their own alternatives.
    pub top: Vec<TokenInfo>,
}

/// Why an output ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// End of turn: an EOS token.
    EndOfTurn,
    /// A stop string of the request matched.
    StopSequence(String),
    /// A stop token of the request was sampled.
    StopToken(u32),
    /// `max_tokens` reached.
    MaxTokens,
    /// The context window is full.
    ContextFull,
    /// Aborted by the server (shutdown).
    Aborted,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All prompt tokens.
    pub prompt_tokens: usize,
    /// Of these, read from the prefix cache.
    pub cached_tokens: usize,
    /// All sampled tokens, EOS included, over all choices; tokens sampled after a stop string matched are not counted.
    pub completion_tokens: usize,
}

/// A piece of an answer.
#[derive(Clone, Debug)]
pub enum GenerateEvent {
    /// First event: the prompt was accepted and scheduled.
    Started {
        /// Ids of the prompt.
        prompt_token_ids: Vec<u32>,
        /// Of these, read from the prefix cache.
        cached_tokens: usize,
    },
    /// Logprobs of the prompt's tokens from the second on; only when asked for.
    PromptLogprobs(Vec<TokenInfo>),
    /// Text and tokens of one choice. Text may lag behind tokens (incomplete characters, possible stop strings) and then come with
    /// later tokens or with none; concatenated it is the answer.
    Delta {
        /// Which of the `n` outputs.
        choice: u32,
        /// Complete characters, never a part of one.
        text: String,
        /// Tokens sampled since the last delta of this choice.
        tokens: Vec<TokenInfo>,
    },
    /// One choice ended.
    Finished {
        /// Which.
        choice: u32,
        /// Why.
        reason: StopReason,
    },
    /// Last event of a good stream.
    Done(Usage),
    /// Last event of a failed stream.
    Failed(BackendError),
}

/// Stream of events.
pub type GenerateStream = BoxStream<'static, GenerateEvent>;

/// One finished choice of a non-streaming call.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<TokenInfo>,
    /// Why it ended.
    pub reason: StopReason,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct GenerateOutput {
    /// Ids of the prompt.
    pub prompt_token_ids: Vec<u32>,
    /// Prompt logprobs when asked for.
    pub prompt_logprobs: Vec<TokenInfo>,
    /// In order of choice.
    pub choices: Vec<Choice>,
    /// Counts.
    pub usage: Usage,
}

/// What a backend can do; served at `/v1/models/{id}` and printed by `pagoda doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendCapabilities {
    /// Tokens arrive one by one.
    pub streaming: bool,
    /// Tool calls are understood.
    pub tool_calling: bool,
    /// Several requests share a step.
    pub batching: bool,
    /// More than one GPU.
    pub multi_gpu: bool,
    /// Names accepted by VLLM_QUANTIZATION and formats read.
    pub quantization: Vec<&'static str>,
    /// Longest prompt plus answer, tokens.
    pub max_context_length: usize,
    /// Requests join and leave at every step.
    pub continuous_batching: bool,
    /// KV memory is paged.
    pub paged_attention: bool,
}

/// Live numbers of a backend, for `/health` and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackendStats {
    /// Sequences in the running batch.
    pub num_running: usize,
    /// Sequences waiting.
    pub num_waiting: usize,
    /// Blocks of the KV pool.
    pub num_blocks: usize,
    /// Of these, held by sequences.
    pub num_used_blocks: usize,
    /// Slots allocated and unused / slots allocated, over the running sequences (0 when none run).
    pub kv_waste: f32,
    /// Preemptions since start.
    pub num_preemptions: u64,
    /// Steps since start.
    pub num_steps: u64,
    /// Most sequences ever seen in one step.
    pub max_running: usize,
}

/// Errors of a backend by whose fault they are. The server maps them to statuses in one table.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum BackendError {
    /// The request is wrong; 400.
    #[error("{message}")]
    InvalidRequest {
        /// Field that is wrong, when one is.
        param: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// The prompt does not fit; 400 with the wording clients match.
    #[error("prompt is too long: {prompt_tokens} tokens > {max_tokens} maximum")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Largest prompt.
        max_tokens: usize,
    },
    /// The queue is full; 429 or 529 with retry-after.
    #[error("overloaded: {message}")]
    Overloaded {
        /// Why.
        message: String,
        /// Seconds after which to try again.
        retry_after_s: u32,
    },
    /// The backend is ending or has ended, and ran nothing of the request; 503: another server may take it.
    #[error("{0}")]
    Unavailable(String),
    /// The model is not served here; 404.
    #[error("model `{0}` not found")]
    ModelNotFound(String),
    /// The backend cannot do this; 400.
    #[error("not supported by this backend: {0}")]
    Unsupported(String),
    /// The backend failed; 500.
    #[error("{0}")]
    Internal(String),
}

/// A backend: one loaded model behind one way of running it.
#[async_trait]
pub trait InferenceBackend: Send + Sync + 'static {
    /// The whole answer.
    async fn generate(&self, request: GenerateRequest) -> Result<GenerateOutput, BackendError> {
        crate::collect(self.generate_stream(request).await?).await
    }
    /// The answer as it comes. Errors found before the first token are returned, not streamed.
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError>;
    /// Tokens of the prompt, exactly as `generate` would count them.
    async fn count_tokens(&self, prompt: &Prompt) -> Result<usize, BackendError> {
        Ok(self.tokenize(prompt).await?.len())
    }
    /// Ids of the prompt, exactly as `generate` would feed them.
    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError>;
    /// Text of token ids, special tokens included.
    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError>;
    /// The token as the vocabulary writes it (`Ġworld`), for `return_token_strs`.
    fn token_str(&self, token: u32) -> Option<String>;
    /// Defaults of this model (generation_config.json over the built-in ones).
    fn default_config(&self) -> GenerationConfig;
    /// What this backend can do.
    fn capabilities(&self) -> &BackendCapabilities;
    /// Live numbers.
    fn stats(&self) -> BackendStats;
    /// Err with the reason once the backend cannot serve any more.
    fn health(&self) -> Result<(), String>;
}
