//! Messages of OpenAI's chat, turned into the plain messages that chat templates render.

use std::collections::BTreeMap;

use pagoda_backends::{ChatMessage, ChatPrompt, ToolChoice};
use serde_json::{Value, json};

use crate::anthropic::convert::{THINKING_SWITCHES, template_kwargs};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::tools::ToolUse;

/// What stands between the text parts of one message, as in vLLM.
const PART_SEPARATOR: &str = "\n";

/// `messages` and the switches of the template. Also read by `/tokenize`.
pub(crate) fn read_chat_prompt(body: &Fields) -> Result<ChatPrompt, ApiError> {
    let items = match body.require("messages")?.as_array() {
        Some(items) if !items.is_empty() => items,
        _ => return Err(body.wrong("messages", "a non-empty array")),
    };
    let message = |(idx, item)| read_message(&Fields::of(item, format!("messages[{idx}]"))?);
    let messages: Vec<ChatMessage> = items.iter().enumerate().map(message).collect::<Result<_, _>>()?;
    let continue_final_message = body.boolean("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = body.boolean("add_generation_prompt")?;
    if continue_final_message {
        if add_generation_prompt == Some(true) {
            return Err(body.error("continue_final_message", "cannot be combined with add_generation_prompt: true"));
        }
        if messages.last().is_none_or(|last| last.role != "assistant") {
            return Err(body.error("continue_final_message", "needs a last message of the assistant"));
        }
    }
    Ok(ChatPrompt {
        messages,
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        template_kwargs: with_effort(body, template_kwargs(body)?)?,
        ..ChatPrompt::default()
    })
}

/// `reasoning_effort` as templates know it; "none" switches reasoning off. What `chat_template_kwargs` says wins.
fn with_effort(body: &Fields, mut kwargs: BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>, ApiError> {
    let Some(effort) = body.string("reasoning_effort")? else { return Ok(kwargs) };
    kwargs.entry("reasoning_effort".to_owned()).or_insert(effort.into());
    if effort == "none" {
        for name in THINKING_SWITCHES {
            kwargs.entry(name.to_owned()).or_insert(false.into());
        }
    }
    Ok(kwargs)
}

fn read_message(message: &Fields) -> Result<ChatMessage, ApiError> {
    let role = match message.required_string("role")? {
        // Templates know `system` only.
        "system" | "developer" => "system",
        role @ ("user" | "assistant" | "tool") => role,
        _ => return Err(message.wrong("role", "one of system, developer, user, assistant, tool")),
    };
    let tool_calls = if role == "assistant" { read_tool_calls(message)? } else { Vec::new() };
    let content = match message.get("content") {
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(message.error("content", "field required")),
        Some(_) => read_content(message)?,
    };
    let tool_call_id = if role == "tool" { Some(message.required_string("tool_call_id")?.to_owned()) } else { None };
    let reasoning = match message.string("reasoning_content")? {
        Some(text) => Some(text),
        None => message.string("reasoning")?,
    };
    Ok(ChatMessage {
        role: role.to_owned(),
        content,
        tool_calls,
        tool_call_id,
        name: message.string("name")?.map(str::to_owned),
        reasoning: reasoning.map(str::to_owned),
    })
}

/// A string, or text parts.
fn read_content(message: &Fields) -> Result<String, ApiError> {
    let parts = match message.require("content")? {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(message.wrong("content", "a string or an array of parts")),
    };
    let text = |(idx, part)| {
        let part = Fields::of(part, format!("{}[{idx}]", message.path("content")))?;
        match part.required_string("type")? {
            "text" => part.require("text")?.as_str().ok_or_else(|| part.wrong("text", "a string")),
            "refusal" => part.require("refusal")?.as_str().ok_or_else(|| part.wrong("refusal", "a string")),
            "image_url" => Err(part.error("type", "images are not supported: this model reads text only")),
            "input_audio" => Err(part.error("type", "audio is not supported: this model reads text only")),
            kind => Err(part.error("type", format!("parts of type {kind:?} are not supported"))),
        }
    };
    let texts: Vec<&str> = parts.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    Ok(texts.join(PART_SEPARATOR))
}

/// Calls of an assistant message, arguments as an object where they are one.
fn read_tool_calls(message: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut calls = Vec::new();
    for (idx, item) in message.array("tool_calls")?.unwrap_or_default().iter().enumerate() {
        let call = Fields::of(item, format!("{}[{idx}]", message.path("tool_calls")))?;
        let function = Fields::of(call.require("function")?, call.path("function"))?;
        let name = function.required_string("name")?;
        let arguments = match function.get("arguments") {
            None => json!({}),
            Some(Value::String(text)) if text.trim().is_empty() => json!({}),
            Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())),
            Some(object @ Value::Object(_)) => object.clone(),
            Some(_) => return Err(function.wrong("arguments", "a string of JSON")),
        };
        let id = call.string("id")?.unwrap_or_default();
        calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
    }
    Ok(calls)
}

/// `tools` in OpenAI's shape, checked and passed on as they are.
pub(crate) fn read_tools(body: &Fields) -> Result<Vec<Value>, ApiError> {
    let items = body.array("tools")?.unwrap_or_default();
    for (idx, item) in items.iter().enumerate() {
        let tool = Fields::of(item, format!("tools[{idx}]"))?;
        if tool.required_string("type")? != "function" {
            return Err(tool.wrong("type", "\"function\""));
        }
        let function = Fields::of(tool.require("function")?, tool.path("function"))?;
        function.required_string("name")?;
        function.object("parameters")?;
        function.boolean("strict")?;
    }
    Ok(items.to_vec())
}

/// Reads `tool_choice` and `parallel_tool_calls` onto a prompt that has its tools; gives what answers may call.
pub(crate) fn read_tool_use(body: &Fields, prompt: &mut ChatPrompt) -> Result<ToolUse, ApiError> {
    prompt.single_tool_call = body.boolean("parallel_tool_calls")? == Some(false);
    prompt.tool_choice = match body.get("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => return Err(body.wrong("tool_choice", CHOICES)),
        },
        Some(choice @ Value::Object(_)) => named_choice(&Fields::of(choice, body.path("tool_choice"))?)?,
        Some(_) => return Err(body.wrong("tool_choice", CHOICES)),
    };
    if prompt.tool_choice.is_forced() && prompt.tools.is_empty() {
        return Err(body.error("tool_choice", "needs tools, and there are none"));
    }
    if let ToolChoice::Function(name) = &prompt.tool_choice
        && !prompt.tools.iter().any(|tool| tool["function"]["name"] == *name)
    {
        return Err(body.error("tool_choice", format!("names {name:?}, which is not in tools")));
    }
    Ok(ToolUse::of_prompt(prompt))
}

/// `{"type": "function", "function": {"name": ...}}`
fn named_choice(choice: &Fields) -> Result<ToolChoice, ApiError> {
    if choice.string("type")?.is_some_and(|kind| kind != "function") {
        return Err(choice.wrong("type", "\"function\""));
    }
    let function = Fields::of(choice.require("function")?, choice.path("function"))?;
    Ok(ToolChoice::Function(function.required_string("name")?.to_owned()))
}

const CHOICES: &str = "one of \"none\", \"auto\", \"required\", or an object";
