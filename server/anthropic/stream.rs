//! `MessageStream`: a backend's events as Anthropic's SSE sequence.
//!
//! message_start, then a content block (opened by its first text), message_delta with the final usage, message_stop. Pings before
//! message_start are comments, since it must be the first event.

use axum::body::Bytes;
use pagoda_backends::{GenerateEvent, StopReason, Usage};

use super::types::{BlockDelta, ContentBlock, Message, MessageEnd, StreamEvent, UsageBody};
use crate::error::{ApiError, Family};
use crate::ids::new_id;
use crate::sse::{self, Encode, Frames};

/// Where the stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    BeforeStart,
    BetweenBlocks,
    InText,
}

/// Encoder of one message.
pub(crate) struct MessageStream {
    id: String,
    model_id: String,
    position: Position,
    reason: StopReason,
    usage: Usage,
}

impl MessageStream {
    pub(crate) fn new(model_id: &str) -> Self {
        MessageStream {
            id: new_id("msg_"),
            model_id: model_id.to_owned(),
            position: Position::BeforeStart,
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
        if self.position != Position::InText {
            frames.push_back(frame(&StreamEvent::ContentBlockStart { index: 0, content_block: ContentBlock::Text { text: "" } }));
            self.position = Position::InText;
        }
        frames.push_back(frame(&StreamEvent::ContentBlockDelta { index: 0, delta: BlockDelta::TextDelta { text } }));
    }
}

fn frame(event: &StreamEvent) -> Bytes {
    sse::named_frame(event.name(), event)
}

impl Encode for MessageStream {
    fn event(&mut self, _prompt_idx: usize, event: GenerateEvent, frames: &mut Frames) {
        match event {
            GenerateEvent::Started { prompt_token_ids, cached_tokens } => {
                self.start(Usage { prompt_tokens: prompt_token_ids.len(), cached_tokens, completion_tokens: 0 }, frames);
            }
            GenerateEvent::Delta { text, .. } if !text.is_empty() => self.text(&text, frames),
            GenerateEvent::Finished { reason, .. } => self.reason = reason,
            GenerateEvent::Done(usage) => self.usage = usage,
            GenerateEvent::Delta { .. } | GenerateEvent::PromptLogprobs(_) | GenerateEvent::Failed(_) => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.reason == StopReason::Aborted {
            return self.error(&sse::aborted_error(), frames);
        }
        if self.position == Position::InText {
            frames.push_back(frame(&StreamEvent::ContentBlockStop { index: 0 }));
        }
        frames.push_back(frame(&StreamEvent::MessageDelta { delta: MessageEnd::from(&self.reason), usage: self.usage.into() }));
        frames.push_back(frame(&StreamEvent::MessageStop));
    }

    fn ping(&self) -> Bytes {
        if self.position == Position::BeforeStart { sse::comment_ping() } else { frame(&StreamEvent::Ping) }
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.push_back(sse::named_frame("error", &error.json(Family::Anthropic, None)));
    }
}
