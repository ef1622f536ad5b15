//! What Anthropic's clients are sent. Field order is the order on the wire.

use pagoda_backends::{StopReason, Usage};
use serde::Serialize;
use serde_json::{Map, Value};

/// A whole answer, and (without content and reason) the payload of `message_start`.
#[derive(Serialize)]
pub(crate) struct Message<'a> {
    pub(crate) id: &'a str,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) role: &'static str,
    pub(crate) model: &'a str,
    pub(crate) content: Vec<ContentBlock<'a>>,
    pub(crate) stop_reason: Option<&'static str>,
    pub(crate) stop_sequence: Option<&'a str>,
    pub(crate) usage: UsageBody,
}

impl<'a> Message<'a> {
    pub(crate) fn new(id: &'a str, model: &'a str, usage: UsageBody) -> Self {
        let (kind, role) = ("message", "assistant");
        Message { id, kind, role, model, content: Vec::new(), stop_reason: None, stop_sequence: None, usage }
    }
}

/// What stands in `signature`: some clients drop thinking that has none.
pub(crate) const SIGNATURE: &str = "pagoda";

/// A block of an answer.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ContentBlock<'a> {
    Text {
        text: &'a str,
    },
    /// `signature` proves nothing here; clients send it back with the text.
    Thinking {
        thinking: &'a str,
        signature: &'a str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: &'a Map<String, Value>,
    },
}

/// Token counts; the three input counts add up to the prompt.
#[derive(Clone, Copy, Default, Serialize)]
pub(crate) struct UsageBody {
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        UsageBody {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// Events of a stream.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StreamEvent<'a> {
    MessageStart { message: Message<'a> },
    ContentBlockStart { index: usize, content_block: ContentBlock<'a> },
    ContentBlockDelta { index: usize, delta: BlockDelta<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: MessageEnd<'a>, usage: UsageBody },
    MessageStop,
    Ping,
}

impl StreamEvent<'_> {
    /// The `event:` line; equals `data.type`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            StreamEvent::MessageStart { .. } => "message_start",
            StreamEvent::ContentBlockStart { .. } => "content_block_start",
            StreamEvent::ContentBlockDelta { .. } => "content_block_delta",
            StreamEvent::ContentBlockStop { .. } => "content_block_stop",
            StreamEvent::MessageDelta { .. } => "message_delta",
            StreamEvent::MessageStop => "message_stop",
            StreamEvent::Ping => "ping",
        }
    }
}

/// A piece of a block.
#[derive(Serialize)]
#[serde(tag = "type")]
pub(crate) enum BlockDelta<'a> {
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

/// Why a message ended.
#[derive(Serialize)]
pub(crate) struct MessageEnd<'a> {
    stop_reason: &'static str,
    stop_sequence: Option<&'a str>,
}

impl<'a> MessageEnd<'a> {
    pub(crate) fn new(reason: &'a StopReason, called: bool) -> Self {
        let (stop_reason, stop_sequence) = stop_reason(reason, called);
        MessageEnd { stop_reason, stop_sequence }
    }
}

/// `stop_reason` and `stop_sequence`; `called`: the answer has a tool call.
pub(crate) fn stop_reason(reason: &StopReason, called: bool) -> (&'static str, Option<&str>) {
    match reason {
        StopReason::EndOfTurn | StopReason::StopToken(_) | StopReason::StopSequence(_) if called => ("tool_use", None),
        StopReason::EndOfTurn | StopReason::StopToken(_) | StopReason::Aborted => ("end_turn", None),
        StopReason::StopSequence(text) => ("stop_sequence", Some(text)),
        StopReason::MaxTokens => ("max_tokens", None),
        StopReason::ContextFull => ("model_context_window_exceeded", None),
    }
}
