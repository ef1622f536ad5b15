//! `ChatTemplate`: a model's Jinja chat template, rendered as transformers renders it, inside bounds.
//!
//! Templates come with checkpoints and messages from clients, so both are untrusted: instructions, recursion and output are limited, and
//! a template reaches nothing but its input. What differs from transformers: `arguments` of tool calls given as a JSON string are parsed
//! first (as vLLM does), and content given as text parts is joined for templates that know strings only.
//! The environment follows transformers' `chat_template_utils.py` (Apache-2.0).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde_json::Value as Json;

use super::template_filters;
use crate::error::{EngineError, Result};
use crate::weights::checkpoint::TextConfig;

/// Longest template source.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Longest rendered prompt.
pub const MAX_RENDERED_BYTES: usize = 16 << 20;
/// Instructions (and 64-byte pieces of strings) a render may use.
const MAX_FUEL: u64 = 4_000_000;
/// The same for the two renders that find out what the template does with `content`.
const PROBE_FUEL: u64 = 100_000;
/// Nesting of blocks, macros and values.
const MAX_RECURSION: usize = 128;
const NAME: &str = "chat";
/// Put after the last message to find its end in the rendered text; ends in a space to see whether the template trims.
const END_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// Strings of special tokens, by name.
    special_tokens: Vec<(String, String)>,
    content: ContentFormat,
}

/// What the template does with `content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentFormat {
    Text,
    Parts,
    Both,
}

/// What is rendered.
pub struct ChatInput<'a> {
    /// Messages in the shape of OpenAI's chat API.
    pub messages: &'a [Json],
    /// Tools in the same shape; none is `None` for the template.
    pub tools: &'a [Json],
    /// Ends with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The rendered text ends right after the last message's content.
    pub continue_final_message: bool,
    /// Further variables (`enable_thinking`); they may replace special tokens, not the fields above.
    pub kwargs: &'a BTreeMap<String, Json>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// `Text` with the line of a syntax error, or when the source is too long.
    pub fn new(source: &str, text: &TextConfig) -> Result<ChatTemplate> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(EngineError::Text(format!("chat template has {} bytes, at most {MAX_TEMPLATE_BYTES} are allowed", source.len())));
        }
        let environment = environment(source).map_err(|error| EngineError::Text(format!("chat template: {error:#}")))?;
        let named = [("bos_token", &text.bos_token), ("eos_token", &text.eos_token)];
        let mut special_tokens: Vec<(String, String)> =
            named.into_iter().filter_map(|(name, token)| Some((name.to_owned(), token.clone()?))).collect();
        special_tokens.extend(text.special_tokens.iter().cloned());
        let mut template = ChatTemplate { environment, source: source.to_owned(), special_tokens, content: ContentFormat::Text };
        template.content = template.probe_content();
        template.environment.set_fuel(Some(MAX_FUEL));
        Ok(template)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// `InvalidRequest` when the template refuses the messages (`raise_exception`), uses too much, or when the last message cannot be
    /// continued.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String> {
        if !input.continue_final_message {
            let messages: Vec<Cow<'_, Json>> = input.messages.iter().map(|message| prepare(message, self.content)).collect();
            return self.render_messages(&messages, input);
        }
        if input.add_generation_prompt {
            return Err(refused("continue_final_message and add_generation_prompt exclude each other"));
        }
        let Some((last, earlier)) = input.messages.split_last() else {
            return Err(refused("continue_final_message needs a message"));
        };
        let mut messages: Vec<Cow<'_, Json>> = earlier.iter().map(|message| prepare(message, self.content)).collect();
        let mut last = prepare(last, self.content).into_owned();
        if !last.get_mut("content").is_some_and(append_tag) {
            return Err(refused("continue_final_message needs a last message with text content"));
        }
        messages.push(Cow::Owned(last));
        let mut text = self.render_messages(&messages, input)?;
        let Some(at) = text.rfind(END_TAG.trim_end()) else {
            return Err(refused("continue_final_message: the template does not show the last message"));
        };
        let trimmed = !text[at..].starts_with(END_TAG);
        text.truncate(at);
        if trimmed {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    fn render_messages(&self, messages: &[Cow<'_, Json>], input: &ChatInput<'_>) -> Result<String> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            variables.insert(name, Value::from(token.as_str()));
        }
        variables.insert("documents", Value::from(()));
        for (name, value) in input.kwargs {
            variables.insert(name, Value::from(Serde(value)));
        }
        variables.insert("messages", Value::from(Serde(messages)));
        variables.insert("tools", if input.tools.is_empty() { Value::from(()) } else { Value::from(Serde(input.tools)) });
        variables.insert("add_generation_prompt", Value::from(input.add_generation_prompt));

        let template = self.environment.get_template(NAME).expect("added in new");
        let mut output = Capped::default();
        template.render_captured_to(Value::from(variables), &mut output).map_err(|error| {
            if output.full {
                return refused(&format!("the rendered prompt is longer than {MAX_RENDERED_BYTES} bytes"));
            }
            refused(&innermost(&error))
        })?;
        String::from_utf8(output.bytes).map_err(|error| refused(&error.to_string()))
    }

    /// Renders a user message as a string and as parts, and looks whether the text comes out by itself.
    fn probe_content(&self) -> ContentFormat {
        const TEXT: &str = "probe-of-content";
        let shows = |content: Json| {
            let message = serde_json::json!({"role": "user", "content": content});
            let empty = BTreeMap::new();
            let input =
                ChatInput { messages: &[], tools: &[], add_generation_prompt: false, continue_final_message: false, kwargs: &empty };
            let quoted = [format!("\"{TEXT}\""), format!("'{TEXT}'")];
            self.render_messages(&[Cow::Owned(message)], &input)
                .is_ok_and(|text| text.contains(TEXT) && !quoted.iter().any(|quoted| text.contains(quoted.as_str())))
        };
        match (shows(Json::from(TEXT)), shows(serde_json::json!([{"type": "text", "text": TEXT}]))) {
            (true, true) => ContentFormat::Both,
            (false, true) => ContentFormat::Parts,
            _ => ContentFormat::Text,
        }
    }
}

fn refused(reason: &str) -> EngineError {
    EngineError::InvalidRequest(format!("chat template: {reason}"))
}

/// The message of the error that a chain of errors ends in, with the place in the template.
fn innermost(error: &minijinja::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}

fn environment(source: &str) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(PROBE_FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    template_filters::add_to(&mut environment);
    environment.add_template_owned(NAME, template_filters::without_generation_tags(source).into_owned())?;
    Ok(environment)
}

/// A message as templates expect it.
fn prepare(message: &Json, format: ContentFormat) -> Cow<'_, Json> {
    let mut message = Cow::Borrowed(message);
    let content = match (&message["content"], format) {
        (Json::Array(parts), ContentFormat::Text) => joined_text(parts).map(Json::from),
        (Json::String(text), ContentFormat::Parts) => Some(serde_json::json!([{"type": "text", "text": text}])),
        _ => None,
    };
    if let Some(content) = content {
        message.to_mut()["content"] = content;
    }
    let is_string = |call: &Json| call["function"]["arguments"].is_string();
    if message["tool_calls"].as_array().is_some_and(|calls| calls.iter().any(is_string)) {
        for call in message.to_mut()["tool_calls"].as_array_mut().into_iter().flatten() {
            let parsed = call["function"]["arguments"].as_str().and_then(|text| serde_json::from_str::<Json>(text).ok());
            if let Some(parsed @ Json::Object(_)) = parsed {
                call["function"]["arguments"] = parsed;
            }
        }
    }
    message
}

/// The texts of `parts`, a line each; None when a part is no text.
fn joined_text(parts: &[Json]) -> Option<String> {
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part.as_str().or_else(|| part["text"].as_str())).collect();
    texts.map(|texts| texts.join("\n"))
}

/// Puts the end tag after the text; false when there is no text.
fn append_tag(content: &mut Json) -> bool {
    match content {
        Json::String(text) => text.push_str(END_TAG),
        Json::Array(parts) => match parts.iter_mut().rev().find_map(|part| part.get_mut("text")) {
            Some(Json::String(text)) => text.push_str(END_TAG),
            _ => return false,
        },
        _ => return false,
    }
    true
}

/// Output with a bound.
#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + data.len() > MAX_RENDERED_BYTES {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
