//! Bodies of Anthropic's routes, turned into what a backend takes. The last place that knows them.

use std::collections::BTreeMap;

use pagoda_backends::{ChatPrompt, GenerationConfig};

use super::blocks::Conversation;
use super::tools::{read_tool_use, read_tools};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::model_source::Model;
use crate::sampling;
use crate::tools::ToolUse;

const MIN_THINKING_BUDGET: i64 = 1024;

/// A parsed `/v1/messages` body.
#[derive(Debug)]
pub(crate) struct MessagesRequest {
    pub(crate) prompt: ChatPrompt,
    pub(crate) config: GenerationConfig,
    pub(crate) stream: bool,
    pub(crate) tools: ToolUse,
}

impl MessagesRequest {
    /// The request to a model: calls are read in its dialect.
    pub(crate) fn of_model(mut self, model: &Model) -> MessagesRequest {
        self.tools.dialect = model.backend.capabilities().tool_dialect.unwrap_or_default();
        self
    }
}

/// Parses a body over the model's defaults.
pub(crate) fn parse_messages(body: &Fields, defaults: GenerationConfig) -> Result<MessagesRequest, ApiError> {
    let mut config = defaults;
    body.require("max_tokens")?;
    let max_tokens = body.integer("max_tokens", 1, i64::MAX)?.map(sampling::clamped);
    config.max_tokens = max_tokens;
    sampling::read_anthropic(body, &mut config)?;
    sampling::check_min_tokens(body, &config)?;
    let stream = body.boolean("stream")?.unwrap_or(false);
    check_ignored(body, max_tokens)?;
    config.user = body.object("metadata")?.map_or(Ok(None), |metadata| metadata.string("user_id"))?.map(str::to_owned);
    let mut prompt = chat_prompt(body)?;
    prompt.tools = read_tools(body)?;
    let tools = read_tool_use(body, &mut prompt)?;
    Ok(MessagesRequest { prompt, config, stream, tools })
}

/// Parses a `count_tokens` body: the same prompt, with tools.
pub(crate) fn parse_count(body: &Fields) -> Result<ChatPrompt, ApiError> {
    let mut prompt = chat_prompt(body)?;
    prompt.tools = read_tools(body)?;
    body.object("tool_choice")?;
    Ok(prompt)
}

fn chat_prompt(body: &Fields) -> Result<ChatPrompt, ApiError> {
    let turns = match body.require("messages")?.as_array() {
        Some(turns) if !turns.is_empty() => turns,
        _ => return Err(body.wrong("messages", "a non-empty array")),
    };
    let mut conversation = Conversation::default();
    conversation.push_system(body)?;
    for (idx, turn) in turns.iter().enumerate() {
        conversation.push_turn(&Fields::of(turn, format!("messages[{idx}]"))?)?;
    }
    let mut messages = conversation.messages;
    // An empty answer to continue is a new answer.
    messages.pop_if(|last| last.role == "assistant" && last.content.is_empty() && last.tool_calls.is_empty());
    if messages.is_empty() {
        return Err(body.error("messages", "at least one message with content is required"));
    }
    let is_prefill = messages.last().is_some_and(|last| last.role == "assistant" && last.tool_calls.is_empty());
    Ok(ChatPrompt {
        messages,
        add_generation_prompt: !is_prefill,
        continue_final_message: is_prefill,
        template_kwargs: with_thinking(body, template_kwargs(body)?)?,
        ..ChatPrompt::default()
    })
}

/// Names under which templates know whether the model is to reason: Qwen3's and its like, DeepSeek's and Granite's.
pub(crate) const THINKING_SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

/// Without `thinking` a model that can do both answers at once, as Anthropic's do. What `chat_template_kwargs` says wins.
fn with_thinking(body: &Fields, mut kwargs: BTreeMap<String, serde_json::Value>) -> Result<BTreeMap<String, serde_json::Value>, ApiError> {
    let wanted = match body.object("thinking")? {
        Some(thinking) => thinking.required_string("type")? != "disabled",
        None => false,
    };
    for name in THINKING_SWITCHES {
        kwargs.entry(name.to_owned()).or_insert(wanted.into());
    }
    Ok(kwargs)
}

/// `chat_template_kwargs`, the same in both families.
pub(crate) fn template_kwargs(body: &Fields) -> Result<BTreeMap<String, serde_json::Value>, ApiError> {
    let kwargs = body.object("chat_template_kwargs")?;
    Ok(kwargs.iter().flat_map(Fields::entries).map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Fields that change nothing here, but must be well formed.
fn check_ignored(body: &Fields, max_tokens: Option<u32>) -> Result<(), ApiError> {
    if let Some(metadata) = body.object("metadata")? {
        metadata.string("user_id")?;
    }
    if let Some(output) = body.object("output_config")? {
        output.string("effort")?;
    }
    body.object("cache_control")?;
    body.object("context_management")?;
    body.string("service_tier")?;
    let Some(thinking) = body.object("thinking")? else { return Ok(()) };
    match thinking.required_string("type")? {
        "adaptive" | "disabled" | "between_tools" => Ok(()),
        "enabled" => {
            thinking.require("budget_tokens")?;
            let budget = thinking.integer("budget_tokens", MIN_THINKING_BUDGET, i64::MAX)?.map(sampling::clamped);
            if budget >= max_tokens { Err(thinking.error("budget_tokens", "must be less than max_tokens")) } else { Ok(()) }
        }
        _ => Err(thinking.wrong("type", "one of enabled, adaptive, disabled, between_tools")),
    }
}
