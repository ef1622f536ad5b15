//! Content blocks of Anthropic's messages, turned into the plain messages that chat templates render.

use std::collections::HashMap;

use pagoda_backends::ChatMessage;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// What stands between the text blocks of one message.
const BLOCK_SEPARATOR: &str = "\n";
/// Clients put a line with session data into their first system block. Rendered, it would keep any prefix from being shared.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// Messages under construction: turns of one role in a row become one message.
#[derive(Default)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<ChatMessage>,
    /// Names of the tools called so far, by call id.
    tool_names: HashMap<String, String>,
}

impl Conversation {
    /// Adds the `system` field: a string or text blocks.
    pub(crate) fn push_system(&mut self, body: &Fields) -> Result<(), ApiError> {
        if body.get("system").is_some() {
            let text = system_text(body, "system")?;
            if !text.is_empty() {
                self.push(message("system", text));
            }
        }
        Ok(())
    }

    /// Adds one entry of `messages`.
    pub(crate) fn push_turn(&mut self, turn: &Fields) -> Result<(), ApiError> {
        match turn.required_string("role")? {
            "system" => {
                let text = system_text(turn, "content")?;
                if !text.is_empty() {
                    self.push(message("system", text));
                }
                Ok(())
            }
            "user" => self.push_user(turn),
            "assistant" => self.push_assistant(turn),
            _ => Err(turn.wrong("role", "one of user, assistant, system")),
        }
    }

    /// Tool results come before the user's own text, whatever their order in the turn.
    fn push_user(&mut self, turn: &Fields) -> Result<(), ApiError> {
        let mut texts = Vec::new();
        for block in content_blocks(turn, "content")? {
            match block {
                Block::Text(text) => texts.push(text),
                Block::Typed("tool_result", block) => self.push_tool_result(&block)?,
                Block::Typed(_, block) => return Err(unexpected(&block)),
            }
        }
        if !texts.is_empty() {
            self.push(message("user", texts.join(BLOCK_SEPARATOR)));
        }
        Ok(())
    }

    fn push_tool_result(&mut self, block: &Fields) -> Result<(), ApiError> {
        let id = block.required_string("tool_use_id")?;
        let mut texts = Vec::new();
        if block.get("content").is_some() {
            for part in content_blocks(block, "content")? {
                match part {
                    Block::Text(text) => texts.push(text),
                    Block::Typed("tool_reference", part) => texts.push(part.required_string("tool_name")?),
                    Block::Typed(_, part) => return Err(unexpected(&part)),
                }
            }
        }
        let mut content = texts.join(BLOCK_SEPARATOR);
        if block.boolean("is_error")? == Some(true) {
            content.insert_str(0, "Error: ");
        }
        let name = self.tool_names.get(id).cloned();
        self.messages.push(ChatMessage { tool_call_id: Some(id.to_owned()), name, ..message("tool", content) });
        Ok(())
    }

    fn push_assistant(&mut self, turn: &Fields) -> Result<(), ApiError> {
        let (mut texts, mut reasoning, mut tool_calls) = (Vec::new(), Vec::new(), Vec::new());
        for block in content_blocks(turn, "content")? {
            match block {
                Block::Text(text) => texts.push(text),
                Block::Typed("thinking", block) => reasoning.push(text_of(&block, "thinking")?),
                Block::Typed("redacted_thinking" | "tool_reference", _) => {}
                Block::Typed("tool_use", block) => tool_calls.push(self.tool_call(&block)?),
                Block::Typed(_, block) => return Err(unexpected(&block)),
            }
        }
        let reasoning = (!reasoning.is_empty()).then(|| reasoning.join(BLOCK_SEPARATOR));
        self.push(ChatMessage { tool_calls, reasoning, ..message("assistant", texts.join(BLOCK_SEPARATOR)) });
        Ok(())
    }

    /// A `tool_use` block in OpenAI's shape, arguments as an object.
    fn tool_call(&mut self, block: &Fields) -> Result<Value, ApiError> {
        let (id, name) = (block.required_string("id")?, block.required_string("name")?);
        let input = block.require("input")?;
        if !input.is_object() {
            return Err(block.wrong("input", "an object"));
        }
        self.tool_names.insert(id.to_owned(), name.to_owned());
        Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}))
    }

    /// Appends a message, or merges it into the last one of the same role.
    fn push(&mut self, next: ChatMessage) {
        match self.messages.last_mut().filter(|last| last.role == next.role) {
            Some(last) => {
                join(&mut last.content, &next.content);
                last.tool_calls.extend(next.tool_calls);
                if let Some(reasoning) = next.reasoning {
                    join(last.reasoning.get_or_insert_default(), &reasoning);
                }
            }
            None => self.messages.push(next),
        }
    }
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content, ..ChatMessage::default() }
}

fn join(target: &mut String, more: &str) {
    if !target.is_empty() && !more.is_empty() {
        target.push_str(BLOCK_SEPARATOR);
    }
    target.push_str(more);
}

/// A block: text, or another type that its place in the conversation must allow.
enum Block<'a> {
    Text(&'a str),
    Typed(&'a str, Fields<'a>),
}

/// The blocks of a field that is a string or an array of blocks.
fn content_blocks<'a>(owner: &Fields<'a>, name: &str) -> Result<Vec<Block<'a>>, ApiError> {
    let items = match owner.require(name)? {
        Value::String(text) => return Ok(vec![Block::Text(text)]),
        Value::Array(items) => items,
        _ => return Err(owner.wrong(name, "a string or an array of content blocks")),
    };
    let block = |(idx, item)| {
        let block = Fields::of(item, format!("{}[{idx}]", owner.path(name)))?;
        block.object("cache_control")?;
        match block.required_string("type")? {
            "text" => Ok(Block::Text(text_of(&block, "text")?)),
            kind => Ok(Block::Typed(kind, block)),
        }
    };
    items.iter().enumerate().map(block).collect()
}

/// A string that must be there, empty or not.
fn text_of<'a>(block: &Fields<'a>, name: &str) -> Result<&'a str, ApiError> {
    block.require(name)?.as_str().ok_or_else(|| block.wrong(name, "a string"))
}

fn unexpected(block: &Fields) -> ApiError {
    match block.string("type") {
        Ok(Some("image")) => block.error("type", "images are not supported: this model reads text only"),
        Ok(Some("document")) => block.error("type", "documents are not supported: this model reads text only"),
        Ok(Some(kind)) => block.error("type", format!("blocks of type {kind:?} are not supported here")),
        _ => block.wrong("type", "a string"),
    }
}

/// System text without billing lines. A string and an array of one block give the same text.
fn system_text(owner: &Fields, name: &str) -> Result<String, ApiError> {
    let mut texts = Vec::new();
    for block in content_blocks(owner, name)? {
        let Block::Text(text) = block else {
            let Block::Typed(_, block) = block else { continue };
            return Err(unexpected(&block));
        };
        let text = without_billing_header(text);
        if !text.is_empty() {
            texts.push(text);
        }
    }
    Ok(texts.join(BLOCK_SEPARATOR))
}

fn without_billing_header(text: &str) -> &str {
    match text.strip_prefix(BILLING_HEADER) {
        Some(rest) => rest.split_once('\n').map_or("", |(_, rest)| rest),
        None => text,
    }
}
