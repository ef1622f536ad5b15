//! What a fence holds, and whether a bracket can begin a call at all.

use super::call::{CALL_KEYS, ToolCall, strict_calls};
use super::extent::{Extent, Progress};
use super::offered::OfferedTools;
use super::parser::{FENCE, TextEnd};

/// What a fence came to.
pub(super) enum FenceCalls {
    /// Nothing but calls; the bytes of the whole fence.
    Calls(Vec<ToolCall>, usize),
    /// Something else.
    None,
    /// Not decided.
    Open,
}

/// The calls of a fence whose header ends at `header`.
pub(super) fn fence_calls(held: &str, header: usize, tools: &OfferedTools, end: Option<TextEnd>) -> FenceCalls {
    let mut calls = Vec::new();
    let mut at = header;
    loop {
        let rest = held[at..].trim_start();
        at = held.len() - rest.len();
        if rest.starts_with(FENCE) {
            return if calls.is_empty() { FenceCalls::None } else { FenceCalls::Calls(calls, at + FENCE.len()) };
        }
        if rest.is_empty() || FENCE.starts_with(rest) {
            return match end {
                None => FenceCalls::Open,
                Some(_) if rest.is_empty() && !calls.is_empty() => FenceCalls::Calls(calls, at),
                Some(_) => FenceCalls::None,
            };
        }
        match plausible_call(rest) {
            Some(true) => {}
            None if end.is_none() => return FenceCalls::Open,
            _ => return FenceCalls::None,
        }
        let mut extent = Extent::new(false);
        let Some(len) = rest.bytes().position(|byte| extent.push(byte) == Progress::Done) else {
            return if end.is_none() { FenceCalls::Open } else { FenceCalls::None };
        };
        match strict_calls(&rest[..=len], tools) {
            Some(more) => calls.extend(more),
            None => return FenceCalls::None,
        }
        at += len + 1;
    }
}

/// Whether a text that begins with a bracket can be a call: its first key is one of a call's. `None`: too short to say.
pub(super) fn plausible_call(text: &str) -> Option<bool> {
    let rest = match text.strip_prefix('[') {
        Some(inside) => inside.trim_start(),
        None => text,
    };
    if rest.is_empty() {
        return None;
    }
    let Some(inside) = rest.strip_prefix('{') else { return Some(false) };
    let inside = inside.trim_start();
    // Doubled braces are repaired where an end tag follows.
    let inside = inside.strip_prefix('{').map_or(inside, str::trim_start);
    let quote = inside.chars().next()?;
    if !matches!(quote, '"' | '\'') {
        return Some(false);
    }
    let key = &inside[1..];
    match key.find(quote) {
        Some(len) => Some(CALL_KEYS.contains(&&key[..len])),
        None if CALL_KEYS.iter().any(|known| known.starts_with(key)) => None,
        None => Some(false),
    }
}

/// Whether the first quote of a value is a single one.
pub(super) fn single_quoted(text: &str) -> bool {
    text.bytes().find(|b| matches!(b, b'"' | b'\'')) == Some(b'\'')
}
