//! Tool definitions of Anthropic's API, turned into OpenAI's function shape, which chat templates expect.

use std::collections::HashSet;

use pagoda_backends::{ChatPrompt, ToolChoice};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::tools::ToolUse;

/// Tools a request may define.
const MAX_TOOLS: usize = 1024;
const MAX_NAME_BYTES: usize = 128;

/// The `tools` field; absent, null and empty mean none.
pub(crate) fn read_tools(body: &Fields) -> Result<Vec<Value>, ApiError> {
    let items = body.array("tools")?.unwrap_or_default();
    if items.len() > MAX_TOOLS {
        return Err(body.error("tools", format!("at most {MAX_TOOLS} entries, got {}", items.len())));
    }
    let mut names = HashSet::new();
    let mut tools = Vec::with_capacity(items.len());
    for (idx, item) in items.iter().enumerate() {
        let tool = Fields::of(item, format!("tools[{idx}]"))?;
        if let Some(kind) = tool.string("type")?.filter(|kind| *kind != "custom") {
            return Err(tool.error("type", format!("server tools are not supported, got {kind:?}")));
        }
        let name = tool.required_string("name")?;
        if !is_tool_name(name) {
            return Err(tool.wrong("name", "1 to 128 letters, digits, `_` or `-`"));
        }
        if !names.insert(name) {
            return Err(tool.error("name", format!("tool names must be unique, got {name:?} twice")));
        }
        tools.push(function(&tool, name)?);
    }
    Ok(tools)
}

/// Reads `tool_choice` onto a prompt that has its tools; gives what the answer may call.
pub(crate) fn read_tool_use(body: &Fields, prompt: &mut ChatPrompt) -> Result<ToolUse, ApiError> {
    if let Some(choice) = body.object("tool_choice")? {
        prompt.single_tool_call = choice.boolean("disable_parallel_tool_use")?.unwrap_or(false);
        prompt.tool_choice = match choice.required_string("type")? {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "any" => ToolChoice::Required,
            "tool" => ToolChoice::Function(choice.required_string("name")?.to_owned()),
            _ => return Err(choice.wrong("type", "one of auto, any, tool, none")),
        };
        if prompt.tool_choice.is_forced() && prompt.tools.is_empty() {
            return Err(body.error("tool_choice", "needs tools, and there are none"));
        }
        if let ToolChoice::Function(name) = &prompt.tool_choice
            && !prompt.tools.iter().any(|tool| tool["function"]["name"] == *name)
        {
            return Err(choice.error("name", format!("names {name:?}, which is not in tools")));
        }
    }
    Ok(ToolUse::of_prompt(prompt))
}

fn function(tool: &Fields, name: &str) -> Result<Value, ApiError> {
    let schema = tool.require("input_schema")?;
    if !schema.is_object() {
        return Err(tool.wrong("input_schema", "an object"));
    }
    let mut function = json!({"name": name});
    if let Some(description) = tool.string("description")? {
        function["description"] = description.into();
    }
    function["parameters"] = schema.clone();
    if let Some(strict) = tool.boolean("strict")? {
        function["strict"] = strict.into();
    }
    Ok(json!({"type": "function", "function": function}))
}

fn is_tool_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
