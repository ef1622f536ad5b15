//! What OpenAI's clients are sent. Field order is the order on the wire.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pagoda_backends::{FoundCall, StopReason, TokenInfo, Usage};
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{ChatLogprobs, TextLogprobs};
use crate::ids::new_id;
use crate::tools::ToolCall;

/// Token counts.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct UsageBody {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        UsageBody {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}

/// `finish_reason`; `called`: the answer has a tool call.
pub(crate) fn finish_reason(reason: &StopReason, called: bool) -> &'static str {
    match reason {
        StopReason::EndOfTurn | StopReason::StopSequence(_) | StopReason::StopToken(_) if called => "tool_calls",
        StopReason::EndOfTurn | StopReason::StopSequence(_) | StopReason::StopToken(_) => "stop",
        StopReason::MaxTokens | StopReason::ContextFull => "length",
        StopReason::Aborted => "abort",
    }
}

/// vLLM's `stop_reason`: the stop string or token that matched.
pub(crate) fn stop_reason(reason: &StopReason) -> Option<Value> {
    match reason {
        StopReason::StopSequence(text) => Some(text.as_str().into()),
        StopReason::StopToken(token) => Some((*token).into()),
        _ => None,
    }
}

/// Ids of tokens, for `token_ids`.
pub(crate) fn token_ids(tokens: &[TokenInfo]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

/// vLLM's `prompt_logprobs`: null for the first token, then a map from token id to its logprob.
pub(crate) type PromptLogprobs = Vec<Option<BTreeMap<String, PromptLogprob>>>;

/// One entry of `prompt_logprobs`.
#[derive(Clone, Serialize)]
pub(crate) struct PromptLogprob {
    pub(crate) logprob: f32,
    pub(crate) rank: Option<usize>,
    pub(crate) decoded_token: String,
}

/// A chat answer.
#[derive(Serialize)]
pub(crate) struct ChatCompletion<'a> {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<ChatChoice<'a>>,
    pub(crate) usage: UsageBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
}

/// One of a chat answer's choices.
#[derive(Serialize)]
pub(crate) struct ChatChoice<'a> {
    pub(crate) index: usize,
    pub(crate) message: ChatMessageBody<'a>,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: &'static str,
    pub(crate) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Serialize)]
pub(crate) struct ChatMessageBody<'a> {
    pub(crate) role: &'static str,
    pub(crate) content: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<&'a str>,
    pub(crate) refusal: Option<&'static str>,
    pub(crate) tool_calls: Option<Vec<ToolCallBody>>,
}

/// A call of a whole answer.
#[derive(Serialize)]
pub(crate) struct ToolCallBody {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionBody,
}

#[derive(Serialize)]
struct FunctionBody {
    name: String,
    /// A string of JSON.
    arguments: String,
}

impl ToolCallBody {
    pub(crate) fn new(call: &ToolCall) -> ToolCallBody {
        let arguments = arguments_text(call);
        ToolCallBody { id: new_id("call_"), kind: "function", function: FunctionBody { name: call.name.clone(), arguments } }
    }

    /// A call that the backend found, as it is.
    pub(crate) fn found(call: &FoundCall) -> ToolCallBody {
        let function = FunctionBody { name: call.name.clone(), arguments: call.arguments.clone() };
        ToolCallBody { id: call.id.clone(), kind: "function", function }
    }
}

/// The arguments as the wire has them.
pub(crate) fn arguments_text(call: &ToolCall) -> String {
    Value::Object(call.arguments.clone()).to_string()
}

/// What a chunk adds to a call: first id and name, then arguments.
#[derive(Serialize)]
pub(crate) struct ToolCallDelta<'a> {
    pub(crate) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionDelta<'a>,
}

/// The function of a `ToolCallDelta`.
#[derive(Serialize)]
pub(crate) struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<&'a str>,
    pub(crate) arguments: &'a str,
}

/// A chunk of a chat stream.
#[derive(Serialize)]
pub(crate) struct ChatChunk<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) choices: Vec<ChatChunkChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<UsageBody>,
}

/// What one choice adds.
#[derive(Default, Serialize)]
pub(crate) struct ChatChunkChoice<'a> {
    pub(crate) index: usize,
    pub(crate) delta: ChatDelta<'a>,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// A piece of the assistant's message.
#[derive(Default, Serialize)]
pub(crate) struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_calls: Option<[ToolCallDelta<'a>; 1]>,
}

/// A completion, whole or a chunk of one: both have the same object name.
#[derive(Serialize)]
pub(crate) struct TextCompletion<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<TextChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<UsageBody>,
}

/// One choice of a completion, or what it adds.
#[derive(Default, Serialize)]
pub(crate) struct TextChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<TextLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}
