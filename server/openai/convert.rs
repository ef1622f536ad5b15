//! Bodies of OpenAI's generating routes, turned into what a backend takes. The last place that knows them.

use pagoda_backends::{ChatPrompt, GenerationConfig, Prompt};
use serde_json::Value;

use super::logprobs::TokenNames;
use super::messages::{read_chat_prompt, read_tool_use, read_tools};
use crate::error::ApiError;
use crate::fields::{Fields, token_ids};
use crate::model_source::Model;
use crate::sampling;
use crate::tools::ToolUse;

/// Answers of one `/v1/completions` request at most: prompts times n.
const MAX_COMPLETIONS: usize = 1024;
const DEFAULT_COMPLETION_TOKENS: u32 = 16;
const MAX_COMPLETION_LOGPROBS: i64 = 5;

/// How an answer is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) stream: bool,
    /// One more chunk with the usage.
    pub(crate) include_usage: bool,
    /// Usage in every chunk.
    pub(crate) continuous_usage: bool,
    /// `logprobs` were asked for.
    pub(crate) logprobs: bool,
    /// `token_ids` and `prompt_token_ids` were asked for.
    pub(crate) token_ids: bool,
    pub(crate) token_names: TokenNames,
}

impl Format {
    /// Tells a backend what of its tokens will be read.
    fn tell(self, config: &mut GenerationConfig) {
        config.return_token_ids = self.token_ids;
        config.return_tokens_as_token_ids = self.logprobs && self.token_names == TokenNames::Ids;
    }
}

/// A parsed `/v1/chat/completions` body.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) prompt: ChatPrompt,
    pub(crate) config: GenerationConfig,
    pub(crate) format: Format,
    pub(crate) tools: ToolUse,
}

impl ChatRequest {
    /// The request to a model: calls are read in its dialect.
    pub(crate) fn of_model(mut self, model: &Model) -> ChatRequest {
        self.tools.dialect = model.backend.capabilities().tool_dialect.unwrap_or_default();
        self
    }
}

/// A parsed `/v1/completions` body.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) config: GenerationConfig,
    pub(crate) format: Format,
    /// The prompt is part of the text.
    pub(crate) echo: bool,
    /// `prompt_logprobs` were asked for by name.
    pub(crate) prompt_logprobs: bool,
    /// `max_tokens: 0`: only the prompt is scored. A backend samples at least one token, which is left out.
    pub(crate) prompt_only: bool,
}

/// Parses a chat body over the model's defaults.
pub(crate) fn parse_chat(body: &Fields, defaults: GenerationConfig) -> Result<ChatRequest, ApiError> {
    let mut config = defaults;
    let max_tokens = body.integer("max_tokens", 1, i64::MAX)?;
    let max_completion_tokens = body.integer("max_completion_tokens", 1, i64::MAX)?;
    config.max_tokens = max_completion_tokens.or(max_tokens).map(sampling::clamped);
    sampling::read_openai(body, &mut config)?;
    sampling::check_min_tokens(body, &config)?;
    let wants_logprobs = body.boolean("logprobs")?.unwrap_or(false);
    let top_logprobs = body.integer("top_logprobs", 0, sampling::MAX_TOP_LOGPROBS)?.unwrap_or(0);
    if top_logprobs > 0 && !wants_logprobs {
        return Err(body.error("top_logprobs", "needs logprobs: true"));
    }
    config.logprobs = wants_logprobs.then_some(top_logprobs as u32);
    refuse_unsupported_chat(body)?;
    let format = read_format(body, wants_logprobs)?;
    let mut prompt = read_chat_prompt(body)?;
    prompt.tools = read_tools(body)?;
    let tools = read_tool_use(body, &mut prompt)?;
    format.tell(&mut config);
    Ok(ChatRequest { prompt, config, format, tools })
}

/// Parses a completions body over the model's defaults.
pub(crate) fn parse_completion(body: &Fields, defaults: GenerationConfig) -> Result<CompletionRequest, ApiError> {
    let mut config = defaults;
    let echo = body.boolean("echo")?.unwrap_or(false);
    let stream = body.boolean("stream")?.unwrap_or(false);
    let fewest = i64::from(!echo || stream);
    let max_tokens = body.integer("max_tokens", fewest, i64::MAX)?.map_or(DEFAULT_COMPLETION_TOKENS, sampling::clamped);
    config.max_tokens = Some(max_tokens.max(1));
    sampling::read_openai(body, &mut config)?;
    sampling::check_min_tokens(body, &config)?;
    let prompt_logprobs = config.prompt_logprobs.is_some();
    let logprobs = body.integer("logprobs", 0, MAX_COMPLETION_LOGPROBS)?.map(|top| top as u32);
    config.logprobs = logprobs;
    if echo && logprobs.is_some() {
        config.prompt_logprobs = config.prompt_logprobs.max(logprobs);
    }
    body.refuse(&["suffix", "prompt_embeds"])?;
    if let Some(best_of) = body.integer("best_of", 1, i64::MAX)?.filter(|best_of| *best_of != i64::from(config.n)) {
        let reason = if best_of < i64::from(config.n) { "must be at least n" } else { "more than n is not supported by this server" };
        return Err(body.error("best_of", format!("{reason}, got {best_of} with n {}", config.n)));
    }
    let format = read_format(body, logprobs.is_some())?;
    format.tell(&mut config);
    let prompts = read_prompts(body)?;
    if prompts.len() * config.n as usize > MAX_COMPLETIONS {
        return Err(body.error("prompt", format!("at most {MAX_COMPLETIONS} answers a request (prompts times n)")));
    }
    Ok(CompletionRequest { prompts, config, format, echo, prompt_logprobs, prompt_only: max_tokens == 0 })
}

fn read_format(body: &Fields, logprobs: bool) -> Result<Format, ApiError> {
    let stream = body.boolean("stream")?.unwrap_or(false);
    let options = body.object("stream_options")?;
    if options.is_some() && !stream {
        return Err(body.error("stream_options", "only allowed with stream: true"));
    }
    let option = |name| options.as_ref().map_or(Ok(None), |options| options.boolean(name));
    let by_id = body.boolean("return_tokens_as_token_ids")?.unwrap_or(false);
    Ok(Format {
        stream,
        include_usage: option("include_usage")?.unwrap_or(false),
        continuous_usage: option("continuous_usage_stats")?.unwrap_or(false),
        logprobs,
        token_ids: body.boolean("return_token_ids")?.unwrap_or(false),
        token_names: if by_id { TokenNames::Ids } else { TokenNames::Text },
    })
}

/// Known fields of chat that need another modality, or are OpenAI's first names of others.
fn refuse_unsupported_chat(body: &Fields) -> Result<(), ApiError> {
    body.refuse(&["functions", "function_call", "audio", "documents", "chat_template"])?;
    body.refuse_true(&["echo", "add_special_tokens"])?;
    if let Some(modalities) = body.array("modalities")?
        && modalities.iter().any(|modality| modality != "text")
    {
        return Err(body.unsupported("modalities"));
    }
    Ok(())
}

/// `prompt`: a string, strings, token ids, or lists of token ids.
fn read_prompts(body: &Fields) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, an array of strings, an array of token ids, or an array of arrays of token ids";
    let add_special_tokens = body.boolean("add_special_tokens")?.unwrap_or(true);
    let text = |text: &str| Prompt::Text { text: text.to_owned(), add_special_tokens };
    let items = match body.require("prompt")? {
        Value::String(prompt) => return Ok(vec![text(prompt)]),
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(body.wrong("prompt", &format!("{expected}, not empty"))),
    };
    if items[0].is_number() {
        return Ok(vec![Prompt::Tokens(token_ids(items, "prompt")?)]);
    }
    if items.len() > MAX_COMPLETIONS {
        return Err(body.error("prompt", format!("at most {MAX_COMPLETIONS} prompts, got {}", items.len())));
    }
    let prompt = |(idx, item): (usize, &Value)| match (&items[0], item) {
        (Value::String(_), Value::String(prompt)) => Ok(text(prompt)),
        (Value::Array(_), Value::Array(ids)) if !ids.is_empty() => Ok(Prompt::Tokens(token_ids(ids, &format!("prompt[{idx}]"))?)),
        _ => Err(body.error("prompt", format!("must be {expected}; entry {idx} does not fit"))),
    };
    items.iter().enumerate().map(prompt).collect()
}
