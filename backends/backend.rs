//! `InferenceBackend`: the one trait the server talks to, and the plain types that cross it.
//!
//! Depends on no HTTP and no wire format. A backend takes a prompt (chat, text or tokens) and a `GenerationConfig`, and answers with a
//! stream of `GenerateEvent`s that ends with exactly one `Done` or `Failed`. Dropping the stream aborts the request.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::pooling::{EmbedRequest, Embeddings, ScoreRequest, Scores, wrong_kind};
use crate::registry::ModelType;
use crate::{BackendCapabilities, BackendError, BackendStats, Constraint, GenerateOutput};

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
    /// Tool definitions in OpenAI's function shape, as chat templates expect, `strict` where asked for; empty: none.
    pub tools: Vec<Json>,
    /// Append the assistant's opening (default for a new answer).
    pub add_generation_prompt: bool,
    /// The last message is an assistant's and the answer continues it (prefill).
    pub continue_final_message: bool,
    /// Further arguments of the template (`chat_template_kwargs`).
    pub template_kwargs: BTreeMap<String, Json>,
    /// Which of the tools the answer may call. That it calls none or one at most is also seen to by whoever parses the answer.
    pub tool_choice: ToolChoice,
    /// At most one call an answer.
    pub single_tool_call: bool,
}

/// Which tools an answer may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one of them.
    Required,
    /// This one.
    Function(String),
}

impl ToolChoice {
    /// Whether the answer has to call.
    pub fn is_forced(&self) -> bool {
        matches!(self, ToolChoice::Required | ToolChoice::Function(_))
    }
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
    /// The client's own name for its user, for services that ask for one.
    pub user: Option<String>,
    /// The caller reads ids of tokens: a backend that has to ask for them asks.
    pub return_token_ids: bool,
    /// The caller names tokens in logprobs by id.
    pub return_tokens_as_token_ids: bool,
    /// What the text must be.
    pub constraint: Option<Constraint>,
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
            user: None,
            return_token_ids: false,
            return_tokens_as_token_ids: false,
            constraint: None,
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
        /// Tokens of the prompt; 0 where the backend is told only at the end.
        prompt_tokens: usize,
        /// Of these, read from the prefix cache.
        cached_tokens: usize,
        /// Ids of the prompt; empty where the backend does not know them.
        prompt_token_ids: Vec<u32>,
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
    /// The same of a choice's reasoning, which comes before its answer; only for chat prompts, of models that reason.
    Reasoning {
        /// Which of the `n` outputs.
        choice: u32,
        /// Complete characters, without the tags around the reasoning.
        text: String,
        /// Tokens sampled since the last delta of this choice, those of the tags among them.
        tokens: Vec<TokenInfo>,
    },
    /// A tool call begins that the backend itself found: the text of the answer has no trace of it. Calls of a choice come one after
    /// another, and text ends a call.
    CallStarted {
        /// Which output.
        choice: u32,
        /// Its id, unique in the answer.
        id: String,
        /// Name of the tool.
        name: String,
    },
    /// More of the last call's arguments; all of them together are a JSON object, unless the answer was cut.
    CallArguments {
        /// Which output.
        choice: u32,
        /// The piece.
        text: String,
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

/// A backend: one loaded model behind one way of running it.
#[async_trait]
pub trait InferenceBackend: Send + Sync + 'static {
    /// The whole answer.
    async fn generate(&self, request: GenerateRequest) -> Result<GenerateOutput, BackendError> {
        crate::collect(self.generate_stream(request).await?).await
    }
    /// The answer as it comes. Errors found before the first token are returned, not streamed.
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError>;
    /// What the model is for.
    fn model_type(&self) -> ModelType {
        ModelType::CausalLm
    }
    /// Vectors of texts; only of a model of embeddings.
    async fn embed(&self, _request: EmbedRequest) -> Result<Embeddings, BackendError> {
        Err(wrong_kind(self.model_type(), "embed"))
    }
    /// Scores of pairs of texts; only of a reranker.
    async fn score(&self, _request: ScoreRequest) -> Result<Scores, BackendError> {
        Err(wrong_kind(self.model_type(), "rerank"))
    }
    /// Tokens of the prompt, exactly as `generate` would count them.
    async fn count_tokens(&self, prompt: &Prompt) -> Result<usize, BackendError> {
        Ok(self.tokenize(prompt).await?.len())
    }
    /// Ids of the prompt, exactly as `generate` would feed them.
    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError>;
    /// Text of token ids, special tokens included.
    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError>;
    /// The token as the vocabulary writes it (`Ġworld`); None: not in it, or no vocabulary at hand.
    fn token_str(&self, token: u32) -> Option<String>;
    /// The tokens of a prompt as the vocabulary writes them, for `return_token_strs`.
    async fn token_strs(&self, _prompt: &Prompt, tokens: &[u32]) -> Result<Vec<Option<String>>, BackendError> {
        Ok(tokens.iter().map(|&id| self.token_str(id)).collect())
    }
    /// Place of the first id that the vocabulary lacks. A backend that has no vocabulary at hand finds none: `detokenize` will tell.
    fn unknown_token(&self, tokens: &[u32]) -> Option<usize> {
        tokens.iter().position(|&id| self.token_str(id).is_none())
    }
    /// Defaults of this model (generation_config.json over the built-in ones).
    fn default_config(&self) -> GenerationConfig;
    /// What this backend can do.
    fn capabilities(&self) -> &BackendCapabilities;
    /// Live numbers.
    fn stats(&self) -> BackendStats;
    /// Err with the reason once the backend cannot serve any more.
    fn health(&self) -> Result<(), String>;
    /// Gives the device's memory to other models and keeps the weights in host memory, once nothing runs any more; nothing is asked of it
    /// before `wake`. Blocks.
    ///
    /// # Errors
    /// `Unsupported`, or there is no room for the weights: then it goes on as before.
    fn sleep(&self) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("a backend of this kind cannot be put aside".into()))
    }
    /// Undoes `sleep`. Blocks.
    ///
    /// # Errors
    /// There is no memory: then it sleeps on.
    fn wake(&self) -> Result<(), BackendError> {
        Ok(())
    }
    /// Frees what the backend holds and waits until it is free; requests that still run are ended. Blocks.
    fn unload(&self) {}
}
