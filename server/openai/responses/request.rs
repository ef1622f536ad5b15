//! From a body of `/v1/responses` to one of `/v1/chat/completions`, and what of it a response repeats.

use pagoda_backends::GenerationConfig;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// Fields with the same name and meaning in both bodies.
const SHARED: [&str; 24] = [
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "ignore_eos",
    "min_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "bad_words",
    "structured_outputs",
    "chat_template_kwargs",
    "priority",
    "cache_salt",
];

/// Names of chat's fields and of those they come from.
const RENAMED: [(&str, &str); 4] = [
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
];

/// An error about a field of the chat body, in the words of the response's.
pub(super) fn in_own_words(mut error: ApiError) -> ApiError {
    let Some(param) = &error.param else { return error };
    let Some((chat, own)) = RENAMED.iter().find(|(chat, _)| param.starts_with(chat)) else { return error };
    // An input becomes several messages: the place inside it is not known.
    let renamed = if *own == "input" { (*own).to_owned() } else { format!("{own}{}", &param[chat.len()..]) };
    error.message = error.message.replacen(param.as_str(), &renamed, 1);
    error.param = Some(renamed);
    error
}

/// The chat body that asks for the same.
pub(super) fn chat_body(body: &Fields) -> Result<Value, ApiError> {
    body.refuse(&["previous_response_id", "conversation", "prompt"])?;
    body.refuse_true(&["background"])?;
    if body.string("truncation")?.is_some_and(|kind| kind != "disabled" && kind != "auto") {
        return Err(body.wrong("truncation", "one of auto, disabled"));
    }
    let mut chat = Map::new();
    for name in SHARED {
        if let Some(value) = body.get(name) {
            chat.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(max_tokens) = body.integer("max_output_tokens", 1, i64::MAX)? {
        chat.insert("max_tokens".into(), max_tokens.into());
    }
    chat.insert("messages".into(), messages(body)?.into());
    if let Some(tools) = body.array("tools")? {
        let tools = tools.iter().enumerate().map(|(idx, tool)| chat_tool(&Fields::of(tool, format!("tools[{idx}]"))?));
        chat.insert("tools".into(), Value::Array(tools.collect::<Result<_, _>>()?));
    }
    if let Some(choice) = body.get("tool_choice") {
        chat.insert("tool_choice".into(), chat_tool_choice(choice));
    }
    if let Some(text) = body.object("text")?
        && let Some(format) = text.object("format")?
    {
        chat.insert("response_format".into(), chat_format(&format)?);
    }
    if let Some(reasoning) = body.object("reasoning")?
        && let Some(effort) = reasoning.string("effort")?
    {
        chat.insert("reasoning_effort".into(), effort.into());
    }
    Ok(Value::Object(chat))
}

fn messages(body: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut messages = Vec::new();
    if let Some(instructions) = body.string("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match body.require("input")? {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) if !items.is_empty() => {
            for (idx, item) in items.iter().enumerate() {
                push_item(&Fields::of(item, format!("input[{idx}]"))?, &mut messages)?;
            }
        }
        _ => return Err(body.wrong("input", "a string or a non-empty array of items")),
    }
    Ok(messages)
}

fn push_item(item: &Fields, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    match item.string("type")?.unwrap_or("message") {
        "message" => {
            let content = content(item, "content")?;
            match item.required_string("role")? {
                "assistant" => {
                    let is_empty = |last: &Value| last["content"] == "" && last["tool_calls"].is_null();
                    assistant(messages, is_empty)["content"] = content.into();
                }
                role @ ("user" | "system" | "developer") => messages.push(json!({"role": role, "content": content})),
                _ => return Err(item.wrong("role", "one of user, system, developer, assistant")),
            }
        }
        "function_call" => {
            let (id, name) = (item.required_string("call_id")?, item.required_string("name")?);
            let arguments = item.string("arguments")?.unwrap_or_default();
            let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            match &mut assistant(messages, |_| true)["tool_calls"] {
                Value::Array(calls) => calls.push(call),
                none => *none = json!([call]),
            }
        }
        "function_call_output" => {
            let id = item.required_string("call_id")?;
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": content(item, "output")?}));
        }
        "reasoning" => {
            let text = if item.get("content").is_some() { content(item, "content")? } else { String::new() };
            if !text.is_empty() {
                // Reasoning comes first, so it begins the assistant's next message.
                messages.push(json!({"role": "assistant", "content": "", "reasoning_content": text}));
            }
        }
        kind => return Err(item.error("type", format!("items of type {kind:?} are not supported"))),
    }
    Ok(())
}

/// The last message, if it is the assistant's and `takes` more; else a new one of it.
fn assistant(messages: &mut Vec<Value>, takes: fn(&Value) -> bool) -> &mut Value {
    if !messages.last().is_some_and(|last| last["role"] == "assistant" && takes(last)) {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

/// A string, or parts with text.
fn content(item: &Fields, name: &str) -> Result<String, ApiError> {
    let parts = match item.require(name)? {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(item.wrong(name, "a string or an array of parts")),
    };
    let text = |(idx, part)| {
        let part = Fields::of(part, format!("{}[{idx}]", item.path(name)))?;
        match part.required_string("type")? {
            "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => {
                part.require("text")?.as_str().ok_or_else(|| part.wrong("text", "a string"))
            }
            "refusal" => part.require("refusal")?.as_str().ok_or_else(|| part.wrong("refusal", "a string")),
            "input_image" => Err(part.error("type", "images are not supported: this model reads text only")),
            "input_file" => Err(part.error("type", "files are not supported: this model reads text only")),
            kind => Err(part.error("type", format!("parts of type {kind:?} are not supported"))),
        }
    };
    let texts: Vec<&str> = parts.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// A tool as chat has it: the function in an object of its own.
fn chat_tool(tool: &Fields) -> Result<Value, ApiError> {
    if tool.required_string("type")? != "function" {
        return Err(tool.wrong("type", "\"function\": hosted tools are not supported"));
    }
    let function: Map<String, Value> =
        tool.entries().filter(|(name, _)| *name != "type").map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(json!({"type": "function", "function": function}))
}

fn chat_tool_choice(choice: &Value) -> Value {
    match (choice["type"].as_str(), choice["name"].as_str()) {
        (Some("function"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        _ => choice.clone(),
    }
}

/// A text format as chat has it: the schema in an object of its own.
fn chat_format(format: &Fields) -> Result<Value, ApiError> {
    let kind = format.required_string("type")?;
    if kind != "json_schema" {
        return Ok(json!({"type": kind}));
    }
    let schema: Map<String, Value> =
        format.entries().filter(|(name, _)| *name != "type").map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(json!({"type": kind, "json_schema": schema}))
}

/// What a response repeats of its request.
pub(super) fn echo(body: &Fields, config: &GenerationConfig) -> Value {
    let given = |name: &str, default: Value| body.get(name).cloned().unwrap_or(default);
    json!({
        "instructions": given("instructions", Value::Null),
        "max_output_tokens": given("max_output_tokens", Value::Null),
        "metadata": given("metadata", json!({})),
        "model": given("model", Value::Null),
        "parallel_tool_calls": given("parallel_tool_calls", true.into()),
        "previous_response_id": null,
        "reasoning": given("reasoning", json!({"effort": null, "summary": null})),
        "store": false,
        "temperature": config.temperature,
        "text": given("text", json!({"format": {"type": "text"}})),
        "tool_choice": given("tool_choice", "auto".into()),
        "tools": given("tools", json!([])),
        "top_p": config.top_p,
        "truncation": given("truncation", "disabled".into()),
        "user": given("user", Value::Null),
    })
}
