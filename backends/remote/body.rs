//! A backend's request as the body of OpenAI's chat completions or completions, with vLLM's extras where the client asked for them.
//!
//! A value that no client set is not sent: the service has its own defaults, and some refuse fields they do not know.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Map, json};

use crate::registry::BackendKind;
use crate::{
    BackendError, ChatMessage, ChatPrompt, Constraint, ConstraintForm, GenerateRequest, GenerationConfig, Json, Prompt, ToolChoice,
};

/// Values that no client can send: they mean that the service decides.
mod unset {
    pub(super) const TEMPERATURE: f32 = -1.0;
    pub(super) const TOP_P: f32 = 0.0;
    pub(super) const TOP_K: Option<u32> = Some(0);
    pub(super) const REPETITION_PENALTY: f32 = 0.0;
}

/// Defaults over which a request is read, so that `body` can tell what the client said.
pub(super) fn default_config() -> GenerationConfig {
    GenerationConfig {
        temperature: unset::TEMPERATURE,
        top_p: unset::TOP_P,
        top_k: unset::TOP_K,
        repetition_penalty: unset::REPETITION_PENALTY,
        ..GenerationConfig::default()
    }
}

/// What a service turned out to need, learnt from its refusals and kept for later requests.
#[derive(Default)]
pub(super) struct Quirks {
    /// No parser for tool calls: the model's text is asked for, and the server parses it.
    text_calls: AtomicBool,
    /// `max_completion_tokens` instead of `max_tokens`.
    completion_tokens: AtomicBool,
}

impl Quirks {
    /// Learns from a refusal; true: the request is worth sending again.
    pub(super) fn learn(&self, message: &str) -> bool {
        // Beginnings: what a client sent may be quoted further on.
        let rules = [
            (&self.text_calls, "\"auto\" tool choice requires --enable-auto-tool-choice"),
            (&self.completion_tokens, "Unsupported parameter: 'max_tokens'"),
        ];
        rules.into_iter().any(|(quirk, begins)| message.starts_with(begins) && !quirk.swap(true, Relaxed))
    }
}

/// What else decides about a body.
pub(super) struct Shape<'a> {
    pub(super) kind: BackendKind,
    pub(super) model: &'a str,
    pub(super) quirks: &'a Quirks,
    /// Longest prompt plus answer, where known.
    pub(super) window: Option<usize>,
    /// Output tokens that were found to fit.
    pub(super) max_tokens: Option<u32>,
}

/// A request as it is sent.
pub(super) struct Body {
    /// Below `/v1/`.
    pub(super) path: &'static str,
    pub(super) json: Json,
    /// Fewer tokens may come than the client asked for.
    pub(super) is_clamped: bool,
}

/// Writes a request.
///
/// # Errors
/// `Unsupported` for what the service could only ignore.
pub(super) fn body(request: &GenerateRequest, shape: &Shape<'_>) -> Result<Body, BackendError> {
    let config = &request.config;
    let mut fields = Map::new();
    let mut set = |key: &str, value: Option<Json>| {
        if let Some(value) = value {
            fields.insert(key.to_owned(), value);
        }
    };
    set("model", Some(shape.model.into()));
    let path = match &request.prompt {
        Prompt::Chat(chat) => {
            chat_fields(chat, shape, &mut set);
            set("logprobs", config.logprobs.map(|_| true.into()));
            set("top_logprobs", config.logprobs.map(Json::from));
            "chat/completions"
        }
        Prompt::Text { text, add_special_tokens } => {
            set("prompt", Some(text.as_str().into()));
            set("add_special_tokens", (!add_special_tokens).then_some(false.into()));
            set("logprobs", config.logprobs.map(Json::from));
            "completions"
        }
        Prompt::Tokens(ids) => {
            set("prompt", Some(ids.as_slice().into()));
            set("logprobs", config.logprobs.map(Json::from));
            "completions"
        }
    };
    let is_chat = matches!(request.prompt, Prompt::Chat(_));
    // A chat without a limit gets the rest of the window; a completion without one would get 16 tokens.
    let fits = |max: u32| !is_chat || shape.window.is_none_or(|window| (max as usize) < window);
    let max_tokens = shape.max_tokens.or(config.max_tokens.filter(|&max| fits(max)));
    let renamed = is_chat && shape.quirks.completion_tokens.load(Relaxed);
    set(if renamed { "max_completion_tokens" } else { "max_tokens" }, max_tokens.map(Json::from));
    sampling_fields(config, &mut set);
    vllm_fields(config, &mut set);
    if let Some(constraint) = &config.constraint {
        constraint_fields(constraint, shape.kind, &mut set)?;
    }
    // Logprobs of the prompt come with whole answers only.
    if config.prompt_logprobs.is_none() {
        set("stream", Some(true.into()));
        let counts = shape.kind == BackendKind::VllmRemote;
        let options = if counts { json!({"include_usage": true, "continuous_usage_stats": true}) } else { json!({"include_usage": true}) };
        set("stream_options", Some(options));
    }
    let is_clamped = config.max_tokens.is_none_or(|wanted| max_tokens.is_none_or(|sent| sent < wanted));
    Ok(Body { path, json: Json::Object(fields), is_clamped })
}

/// The fields of a conversation, also for `/tokenize`.
pub(super) fn chat_fields(chat: &ChatPrompt, shape: &Shape<'_>, set: &mut impl FnMut(&str, Option<Json>)) {
    let messages: Vec<Json> = chat.messages.iter().map(|message| message_json(message, shape.kind)).collect();
    set("messages", Some(messages.into()));
    if !chat.tools.is_empty() {
        set("tools", Some(chat.tools.clone().into()));
        let choice = match &chat.tool_choice {
            ToolChoice::Auto if shape.quirks.text_calls.load(Relaxed) => Some("none".into()),
            ToolChoice::Auto => None,
            ToolChoice::None => Some("none".into()),
            ToolChoice::Required => Some("required".into()),
            ToolChoice::Function(name) => Some(json!({"type": "function", "function": {"name": name}})),
        };
        set("tool_choice", choice);
        set("parallel_tool_calls", chat.single_tool_call.then_some(false.into()));
    }
    set("continue_final_message", chat.continue_final_message.then_some(true.into()));
    set("add_generation_prompt", (!chat.add_generation_prompt).then_some(false.into()));
    let kwargs: Map<String, Json> = chat.template_kwargs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    set("chat_template_kwargs", (!kwargs.is_empty()).then_some(kwargs.into()));
}

fn message_json(message: &ChatMessage, kind: BackendKind) -> Json {
    let is_vllm = kind == BackendKind::VllmRemote;
    let mut json = json!({ "role": message.role, "content": message.content });
    if !message.tool_calls.is_empty() {
        if message.content.is_empty() {
            json["content"] = Json::Null;
        }
        json["tool_calls"] = message.tool_calls.iter().map(call_json).collect();
    }
    if let Some(id) = &message.tool_call_id {
        json["tool_call_id"] = id.as_str().into();
    }
    // Templates know the name of a tool's answer; OpenAI's own service does not.
    if let Some(name) = message.name.as_ref().filter(|_| is_vllm || message.role != "tool") {
        json["name"] = name.as_str().into();
    }
    if let Some(reasoning) = message.reasoning.as_ref().filter(|_| is_vllm) {
        json["reasoning_content"] = reasoning.as_str().into();
    }
    json
}

/// A call with its arguments as the text that the wire wants.
fn call_json(call: &Json) -> Json {
    let mut call = call.clone();
    let arguments = &call["function"]["arguments"];
    if !arguments.is_string() {
        call["function"]["arguments"] = if arguments.is_null() { "{}".into() } else { arguments.to_string().into() };
    }
    call
}

/// Fields that every service knows.
fn sampling_fields(config: &GenerationConfig, set: &mut impl FnMut(&str, Option<Json>)) {
    let given = |value: f32, unset: f32| (value != unset).then(|| number(value));
    set("temperature", given(config.temperature, unset::TEMPERATURE));
    set("top_p", given(config.top_p, unset::TOP_P));
    set("presence_penalty", given(config.presence_penalty, 0.0));
    set("frequency_penalty", given(config.frequency_penalty, 0.0));
    set("n", (config.n != 1).then_some(config.n.into()));
    set("stop", (!config.stop_sequences.is_empty()).then(|| config.stop_sequences.clone().into()));
    // Read as i64 by the server.
    set("seed", config.seed.map(|seed| (seed as i64).into()));
    let biases: Map<String, Json> = config.logit_bias.iter().map(|&(token, bias)| (token.to_string(), number(bias))).collect();
    set("logit_bias", (!biases.is_empty()).then_some(biases.into()));
    set("user", config.user.as_deref().map(Json::from));
}

/// The form of the answer, in OpenAI's words where it has some, else in vLLM's.
///
/// # Errors
/// `Unsupported` where the service could only ignore it.
fn constraint_fields(constraint: &Constraint, kind: BackendKind, set: &mut impl FnMut(&str, Option<Json>)) -> Result<(), BackendError> {
    let format = match &constraint.form {
        _ if constraint.raw || constraint.compact_json => None,
        ConstraintForm::JsonObject => Some(json!({"type": "json_object"})),
        ConstraintForm::JsonSchema { schema, name } => {
            let name = name.as_deref().unwrap_or("answer");
            Some(json!({"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": true}}))
        }
        _ => None,
    };
    if format.is_some() {
        set("response_format", format);
        return Ok(());
    }
    let (key, value) = match &constraint.form {
        ConstraintForm::JsonObject => ("json_object", true.into()),
        ConstraintForm::JsonSchema { schema, .. } => ("json", schema.clone()),
        ConstraintForm::Regex(regex) => ("regex", regex.as_str().into()),
        ConstraintForm::Choice(choices) => ("choice", choices.clone().into()),
        ConstraintForm::Grammar(grammar) => ("grammar", grammar.as_str().into()),
        ConstraintForm::StructuralTag(tag) => ("structural_tag", tag.to_string().into()),
    };
    if kind != BackendKind::VllmRemote {
        return Err(BackendError::Unsupported(format!("{}: an OpenAI-compatible service makes JSON only", constraint.field)));
    }
    let mut outputs = json!({});
    outputs[key] = value;
    if constraint.compact_json {
        outputs["disable_any_whitespace"] = true.into();
    }
    set("structured_outputs", Some(outputs));
    Ok(())
}

/// Fields that vLLM and pagoda know; others refuse them in words of their own.
fn vllm_fields(config: &GenerationConfig, set: &mut impl FnMut(&str, Option<Json>)) {
    let given = |value: f32, unset: f32| (value != unset).then(|| number(value));
    let flag = |on: bool| on.then_some(Json::from(true));
    set("top_k", (config.top_k != unset::TOP_K).then(|| config.top_k.map_or(Json::from(-1), Json::from)));
    set("min_p", given(config.min_p, 0.0));
    set("repetition_penalty", given(config.repetition_penalty, unset::REPETITION_PENALTY));
    set("min_tokens", (config.min_tokens > 0).then_some(config.min_tokens.into()));
    set("ignore_eos", flag(config.ignore_eos));
    set("stop_token_ids", (!config.stop_token_ids.is_empty()).then(|| config.stop_token_ids.clone().into()));
    set("include_stop_str_in_output", flag(config.include_stop_str));
    set("skip_special_tokens", (!config.skip_special_tokens).then_some(false.into()));
    set("bad_words", (!config.bad_words.is_empty()).then(|| config.bad_words.clone().into()));
    set("prompt_logprobs", config.prompt_logprobs.map(Json::from));
    set("return_token_ids", flag(config.return_token_ids || config.prompt_logprobs.is_some()));
    set("return_tokens_as_token_ids", flag(config.return_tokens_as_token_ids));
    set("priority", (config.priority != 0).then_some(config.priority.into()));
    set("cache_salt", (config.cache_salt != 0).then(|| format!("{:016x}", config.cache_salt).into()));
}

/// A number with the digits that the client wrote, not those of its f32.
fn number(value: f32) -> Json {
    value.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}
