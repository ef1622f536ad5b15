//! `MessageStream`: a backend's events as Anthropic's SSE sequence.
//!
//! message_start, then content blocks (thinking and text opened by their first piece, a call whole), message_delta with the final usage, message_stop. Pings before
//! message_start are comments, since it must be the first event.

use axum::body::Bytes;
use pagoda_backends::{GenerateEvent, StopReason, Usage};
use serde_json::{Map, Value};

use super::types::{BlockDelta, ContentBlock, Message, MessageEnd, SIGNATURE, StreamEvent, UsageBody};
use crate::error::{ApiError, Family};
use crate::ids::new_id;
use crate::sse::{self, Encode, Frames};
use crate::tools::{AnswerParser, Piece, TextEnd, ToolCall, ToolUse};

/// Where the stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    BeforeStart,
    BetweenBlocks,
    InThinking,
    InText,
    InCall,
}

/// Encoder of one message.
pub(crate) struct MessageStream {
    id: String,
    model_id: String,
    position: Position,
    /// Index of the open or next content block.
    index: usize,
    parser: AnswerParser,
    /// A call came that the backend itself found.
    called: bool,
    reason: StopReason,
    usage: Usage,
}

impl MessageStream {
    pub(crate) fn new(model_id: &str, tools: &ToolUse) -> Self {
        MessageStream {
            id: new_id("msg_"),
            model_id: model_id.to_owned(),
            position: Position::BeforeStart,
            index: 0,
            parser: AnswerParser::new(tools),
            called: false,
            reason: StopReason::Aborted,
            usage: Usage::default(),
        }
    }

    fn start(&mut self, usage: Usage, frames: &mut Frames) {
        let message = Message::new(&self.id, &self.model_id, UsageBody::from(usage));
        frames.push_back(frame(&StreamEvent::MessageStart { message }));
        self.position = Position::BetweenBlocks;
    }

    fn text(&mut self, text: &str, frames: &mut Frames) {
        self.open(Position::InText, ContentBlock::Text { text: "" }, frames);
        frames.push_back(frame(&StreamEvent::ContentBlockDelta { index: self.index, delta: BlockDelta::Text { text } }));
    }

    fn thinking(&mut self, thinking: &str, frames: &mut Frames) {
        self.open(Position::InThinking, ContentBlock::Thinking { thinking: "", signature: "" }, frames);
        frames.push_back(frame(&StreamEvent::ContentBlockDelta { index: self.index, delta: BlockDelta::Thinking { thinking } }));
    }

    /// Opens a block, unless it is open.
    fn open(&mut self, position: Position, content_block: ContentBlock, frames: &mut Frames) {
        if self.position != position {
            self.close_block(frames);
            frames.push_back(frame(&StreamEvent::ContentBlockStart { index: self.index, content_block }));
            self.position = position;
        }
    }

    fn call(&mut self, call: &ToolCall, frames: &mut Frames) {
        self.open_call(&new_id("toolu_"), &call.name, frames);
        self.arguments(&Value::Object(call.arguments.clone()).to_string(), frames);
        self.close_block(frames);
    }

    fn open_call(&mut self, id: &str, name: &str, frames: &mut Frames) {
        self.close_block(frames);
        self.open(Position::InCall, ContentBlock::ToolUse { id, name, input: &Map::new() }, frames);
        self.called = true;
    }

    fn arguments(&self, partial_json: &str, frames: &mut Frames) {
        let delta = BlockDelta::InputJson { partial_json };
        frames.push_back(frame(&StreamEvent::ContentBlockDelta { index: self.index, delta }));
    }

    /// Closes the open block, if there is one.
    fn close_block(&mut self, frames: &mut Frames) {
        if self.position == Position::InThinking {
            let delta = BlockDelta::Signature { signature: SIGNATURE };
            frames.push_back(frame(&StreamEvent::ContentBlockDelta { index: self.index, delta }));
        }
        if matches!(self.position, Position::InThinking | Position::InText | Position::InCall) {
            frames.push_back(frame(&StreamEvent::ContentBlockStop { index: self.index }));
            self.position = Position::BetweenBlocks;
            self.index += 1;
        }
    }

    fn pieces(&mut self, pieces: Vec<Piece>, frames: &mut Frames) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text(&text, frames),
                Piece::Call(call) => self.call(&call, frames),
            }
        }
    }
}

fn frame(event: &StreamEvent) -> Bytes {
    sse::named_frame(event.name(), event)
}

impl Encode for MessageStream {
    fn event(&mut self, _prompt_idx: usize, event: GenerateEvent, frames: &mut Frames) {
        match event {
            GenerateEvent::Started { prompt_tokens, cached_tokens, .. } => {
                self.start(Usage { prompt_tokens, cached_tokens, completion_tokens: 0 }, frames);
            }
            GenerateEvent::Delta { text, .. } => {
                let pieces = self.parser.feed(&text);
                self.pieces(pieces, frames);
            }
            GenerateEvent::Reasoning { text, .. } if !text.is_empty() => self.thinking(&text, frames),
            GenerateEvent::CallStarted { id, name, .. } => {
                let pieces = self.parser.finish(TextEnd::Complete);
                self.pieces(pieces, frames);
                self.open_call(&id, &name, frames);
            }
            GenerateEvent::CallArguments { text, .. } => self.arguments(&text, frames),
            GenerateEvent::Finished { reason, .. } => {
                let pieces = self.parser.finish(TextEnd::of(&reason));
                self.pieces(pieces, frames);
                self.reason = reason;
            }
            GenerateEvent::Done(usage) => self.usage = usage,
            GenerateEvent::Reasoning { .. } | GenerateEvent::PromptLogprobs(_) | GenerateEvent::Failed(_) => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.reason == StopReason::Aborted {
            return self.error(&sse::aborted_error(), frames);
        }
        self.close_block(frames);
        let delta = MessageEnd::new(&self.reason, self.called);
        frames.push_back(frame(&StreamEvent::MessageDelta { delta, usage: self.usage.into() }));
        frames.push_back(frame(&StreamEvent::MessageStop));
    }

    fn ping(&self) -> Bytes {
        if self.position == Position::BeforeStart { sse::comment_ping() } else { frame(&StreamEvent::Ping) }
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.push_back(sse::named_frame("error", &error.json(Family::Anthropic, None)));
    }
}
