//! From JSON values to calls: which shapes are a call, and how sure one has to be.

use serde_json::{Map, Value};

use super::lenient_json;
use super::offered::OfferedTools;
use super::parser::TextEnd;

/// A finished call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Name of an offered tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// A call whose arguments come as text. None: they are no JSON object; in a text that was not cut, small faults are mended.
    pub(crate) fn from_text(name: &str, arguments: &str, end: TextEnd) -> Option<ToolCall> {
        let arguments = arguments_of(Some(&Value::from(arguments)), end == TextEnd::Cut)?;
        Some(ToolCall { name: name.to_owned(), arguments })
    }
}

/// What stands around a value, and so how much it has to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Inside `<tool_call>`: the tag says that it is a call.
    Tag,
    /// Inside `<tools>`, where models also repeat the definitions they were given: the arguments have to fit.
    ToolsTag,
    /// No tag: nothing but a call's own keys, and arguments that fit.
    Bare,
}

/// Keys of a call that stands on its own.
pub(super) const CALL_KEYS: [&str; 6] = ["name", "arguments", "parameters", "id", "type", "function"];

/// The call that a value is.
pub(super) fn call_of(value: &Value, tools: &OfferedTools, trust: Trust) -> Option<ToolCall> {
    let outer = value.as_object()?;
    let bare = trust == Trust::Bare;
    if bare && !outer.keys().all(|key| CALL_KEYS.contains(&key.as_str())) {
        return None;
    }
    let call = match outer.get("function") {
        Some(Value::Object(function)) if !outer.contains_key("name") => function,
        _ => outer,
    };
    let tool = tools.find(call.get("name")?.as_str()?)?;
    let given = call.get("arguments");
    let named_parameters = given.is_none() && call.contains_key("parameters");
    if bare && given.is_none() && !named_parameters {
        return None;
    }
    let arguments = arguments_of(given.or_else(|| call.get("parameters")), bare)?;
    let must_fit = bare || trust == Trust::ToolsTag || named_parameters;
    (!must_fit || tool.accepts(&arguments)).then(|| ToolCall { name: tool.name.clone(), arguments })
}

/// Arguments as an object: also from a string that holds one; nothing at all is an empty object.
fn arguments_of(value: Option<&Value>, strict: bool) -> Option<Map<String, Value>> {
    match value {
        None | Some(Value::Null) => Some(Map::new()),
        Some(Value::Object(map)) => Some(map.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => {
            let inner = if strict { serde_json::from_str(text).ok()? } else { whole(text)? };
            if let Value::Object(map) = inner { Some(map) } else { None }
        }
        Some(_) => None,
    }
}

/// A lenient value that takes the whole text.
pub(super) fn whole(text: &str) -> Option<Value> {
    let text = text.trim();
    let parsed = lenient_json::parse_prefix(text)?;
    text[parsed.len..].trim().is_empty().then_some(parsed.value)
}

/// Calls of a text that is strict JSON: one call, or an array of calls and nothing else.
pub(super) fn strict_calls(text: &str, tools: &OfferedTools) -> Option<Vec<ToolCall>> {
    match serde_json::from_str(text).ok()? {
        Value::Array(items) if !items.is_empty() => items.iter().map(|item| call_of(item, tools, Trust::Bare)).collect(),
        value => Some(vec![call_of(&value, tools, Trust::Bare)?]),
    }
}

/// What the inside of a tag came to.
pub(super) struct Region {
    /// At least one.
    pub(super) calls: Vec<ToolCall>,
    /// What stands there beside the calls.
    pub(super) rest: String,
}

/// Calls of the inside of a tag. `complete_only`: a value that the end of the text cut is no call.
pub(super) fn region_calls(text: &str, tools: &OfferedTools, trust: Trust, complete_only: bool) -> Option<Region> {
    let text = without_fence(text.trim());
    let mut region = Region { calls: Vec::new(), rest: String::new() };
    let mut at = 0;
    while let Some(offset) = text[at..].find(|c: char| !c.is_whitespace() && !matches!(c, ',' | '}' | ']' | ';')) {
        at += offset;
        let value_follows = matches!(text.as_bytes()[at], b'{' | b'[' | b'"' | b'\'');
        let parsed = if value_follows { lenient_json::parse_prefix(&text[at..]) } else { None };
        let Some(parsed) = parsed.filter(|parsed| parsed.closed || !complete_only) else {
            region.rest.push_str(&text[at..]);
            break;
        };
        let calls = calls_of(&parsed.value, tools, trust);
        if calls.is_empty() {
            region.rest.push_str(&text[at..at + parsed.len]);
        }
        region.calls.extend(calls);
        at += parsed.len;
    }
    (!region.calls.is_empty()).then_some(region)
}

/// All calls of one value, or none when a part of it is no call.
fn calls_of(value: &Value, tools: &OfferedTools, trust: Trust) -> Vec<ToolCall> {
    match value {
        Value::Array(items) => items.iter().map(|item| call_of(item, tools, trust)).collect::<Option<_>>().unwrap_or_default(),
        Value::String(text) => match whole(text) {
            Some(inner @ (Value::Object(_) | Value::Array(_))) => calls_of(&inner, tools, trust),
            _ => Vec::new(),
        },
        _ => call_of(value, tools, trust).into_iter().collect(),
    }
}

/// The inside of a code fence, when the text is one.
fn without_fence(text: &str) -> &str {
    let Some(inner) = text.strip_prefix("```") else { return text };
    let inner = inner.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    inner.trim_end().strip_suffix("```").unwrap_or(inner).trim()
}
