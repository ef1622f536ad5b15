//! `Answer`: the items of a response as they come, and the events that tell of them.

use axum::body::Bytes;
use pagoda_backends::{GenerateEvent, StopReason, Usage};
use serde_json::{Map, Value, json};

use crate::ids::{new_id, unix_time};
use crate::openai::types::arguments_text;
use crate::sse::{self, Frames};
use crate::tools::{AnswerParser, Piece, TextEnd, ToolUse};

/// What an item is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

impl Kind {
    /// Prefix of ids.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call => "fc_",
        }
    }

    /// Beginning of the names of delta and done.
    fn event(self) -> &'static str {
        match self {
            Kind::Reasoning => "response.reasoning_text",
            Kind::Message => "response.output_text",
            Kind::Call => "response.function_call_arguments",
        }
    }
}

/// The item that is being said.
struct Open {
    kind: Kind,
    id: String,
    /// Text, or arguments.
    text: String,
    /// Id and name of a call.
    call: (String, String),
}

impl Open {
    /// The part that holds the text; None: a call has no parts.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Message => Some(json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})),
            Kind::Call => None,
        }
    }

    fn item(&self, status: &str) -> Value {
        let parts: Vec<Value> = self.part().into_iter().filter(|_| status != "in_progress").collect();
        let (call_id, name) = &self.call;
        match self.kind {
            Kind::Reasoning => json!({"id": self.id, "type": "reasoning", "summary": [], "content": parts, "status": status}),
            Kind::Message => json!({"id": self.id, "type": "message", "status": status, "role": "assistant", "content": parts}),
            Kind::Call => {
                let arguments = &self.text;
                json!({"id": self.id, "type": "function_call", "status": status, "arguments": arguments, "call_id": call_id, "name": name})
            }
        }
    }
}

/// A response under construction.
pub(super) struct Answer {
    id: String,
    created: u64,
    /// What it repeats of its request.
    echo: Value,
    parser: AnswerParser,
    open: Option<Open>,
    items: Vec<Value>,
    reason: StopReason,
    usage: Usage,
    reasoning_tokens: usize,
    sequence_number: u64,
}

impl Answer {
    pub(super) fn new(echo: Value, tools: &ToolUse) -> Answer {
        Answer {
            id: new_id("resp_"),
            created: unix_time(),
            echo,
            parser: AnswerParser::new(tools),
            open: None,
            items: Vec::new(),
            reason: StopReason::Aborted,
            usage: Usage::default(),
            reasoning_tokens: 0,
            sequence_number: 0,
        }
    }

    /// Why it ended; `Aborted` while it has not.
    pub(super) fn reason(&self) -> &StopReason {
        &self.reason
    }

    /// An event with its fields and its place in the order.
    pub(super) fn frame(&mut self, name: &str, fields: Value) -> Bytes {
        let mut event = Map::new();
        event.insert("type".into(), name.into());
        event.insert("sequence_number".into(), self.sequence_number.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        self.sequence_number += 1;
        sse::named_frame(name, &event)
    }

    /// Takes an event of the backend; tells of what changed.
    pub(super) fn take(&mut self, event: GenerateEvent, frames: &mut Frames) {
        match event {
            GenerateEvent::Reasoning { text, tokens, .. } => {
                self.reasoning_tokens += tokens.len();
                self.say(Kind::Reasoning, &text, frames);
            }
            GenerateEvent::Delta { text, .. } => {
                let pieces = self.parser.feed(&text);
                self.pieces(pieces, frames);
            }
            GenerateEvent::CallStarted { id, name, .. } => {
                let pieces = self.parser.finish(TextEnd::Complete);
                self.pieces(pieces, frames);
                self.open(Kind::Call, (id, name), frames);
            }
            GenerateEvent::CallArguments { text, .. } => self.say(Kind::Call, &text, frames),
            GenerateEvent::Finished { reason, .. } => {
                let pieces = self.parser.finish(TextEnd::of(&reason));
                self.pieces(pieces, frames);
                self.reason = reason;
                let status = self.status();
                self.close(status, frames);
            }
            GenerateEvent::Done(usage) => self.usage = usage,
            GenerateEvent::Started { .. } | GenerateEvent::PromptLogprobs(_) | GenerateEvent::Failed(_) => {}
        }
    }

    fn pieces(&mut self, pieces: Vec<Piece>, frames: &mut Frames) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.say(Kind::Message, &text, frames),
                Piece::Call(call) => {
                    self.open(Kind::Call, (new_id("call_"), call.name.clone()), frames);
                    self.say(Kind::Call, &arguments_text(&call), frames);
                }
            }
        }
    }

    /// More text of an item, which is begun if it is not open.
    fn say(&mut self, kind: Kind, text: &str, frames: &mut Frames) {
        if text.is_empty() {
            return;
        }
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.open(kind, Default::default(), frames);
        }
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let mut fields = json!({"item_id": open.id, "output_index": self.items.len(), "delta": text});
        if kind != Kind::Call {
            fields["content_index"] = 0.into();
        }
        if kind == Kind::Message {
            fields["logprobs"] = json!([]);
        }
        let frame = self.frame(&format!("{}.delta", kind.event()), fields);
        frames.push_back(frame);
    }

    fn open(&mut self, kind: Kind, call: (String, String), frames: &mut Frames) {
        self.close("completed", frames);
        let open = Open { kind, id: new_id(kind.prefix()), text: String::new(), call };
        let output_index = self.items.len();
        let added = self.frame("response.output_item.added", json!({"output_index": output_index, "item": open.item("in_progress")}));
        frames.push_back(added);
        if let Some(part) = open.part() {
            let fields = json!({"item_id": open.id, "output_index": output_index, "content_index": 0, "part": part});
            let frame = self.frame("response.content_part.added", fields);
            frames.push_back(frame);
        }
        self.open = Some(open);
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, status: &str, frames: &mut Frames) {
        let Some(open) = self.open.take() else { return };
        let output_index = self.items.len();
        let mut done = json!({"item_id": open.id, "output_index": output_index});
        match open.part() {
            Some(part) => {
                done["content_index"] = 0.into();
                done["text"] = open.text.as_str().into();
                let frame = self.frame(&format!("{}.done", open.kind.event()), done);
                frames.push_back(frame);
                let fields = json!({"item_id": open.id, "output_index": output_index, "content_index": 0, "part": part});
                let frame = self.frame("response.content_part.done", fields);
                frames.push_back(frame);
            }
            None => {
                done["name"] = open.call.1.as_str().into();
                done["arguments"] = open.text.as_str().into();
                let frame = self.frame(&format!("{}.done", open.kind.event()), done);
                frames.push_back(frame);
            }
        }
        let item = open.item(status);
        let frame = self.frame("response.output_item.done", json!({"output_index": output_index, "item": item}));
        frames.push_back(frame);
        self.items.push(item);
    }

    fn is_cut(&self) -> bool {
        matches!(self.reason, StopReason::MaxTokens | StopReason::ContextFull)
    }

    /// Status of a response that has ended.
    pub(super) fn status(&self) -> &'static str {
        if self.is_cut() { "incomplete" } else { "completed" }
    }

    /// The response as it ended.
    pub(super) fn response(&self) -> Value {
        self.response_with(self.status(), Value::Null)
    }

    /// The response in another state.
    pub(super) fn response_with(&self, status: &str, error: Value) -> Value {
        let is_over = status == "completed" || status == "incomplete";
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": error,
            "incomplete_details": null,
            "output": self.items,
            "usage": null,
        });
        if self.is_cut() && is_over {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        if is_over {
            response["usage"] = json!({
                "input_tokens": self.usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.usage.cached_tokens},
                "output_tokens": self.usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
                "total_tokens": self.usage.prompt_tokens + self.usage.completion_tokens,
            });
        }
        if let (Value::Object(response), Value::Object(echo)) = (&mut response, &self.echo) {
            response.extend(echo.clone());
        }
        response
    }
}
