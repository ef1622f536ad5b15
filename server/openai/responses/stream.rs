//! `ResponseStream`: a response as it comes, as named events.

use axum::body::Bytes;
use pagoda_backends::{GenerateEvent, StopReason};
use serde_json::{Value, json};

use super::answer::Answer;
use crate::error::{ApiError, Family};
use crate::sse::{self, Encode, Frames};

/// Encoder of one response.
pub(super) struct ResponseStream {
    answer: Answer,
    has_begun: bool,
}

impl ResponseStream {
    pub(super) fn new(answer: Answer) -> ResponseStream {
        ResponseStream { answer, has_begun: false }
    }

    /// `response.created` and `response.in_progress`, before anything else.
    fn begin(&mut self, frames: &mut Frames) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        for name in ["response.created", "response.in_progress"] {
            self.tell(name, "in_progress", Value::Null, frames);
        }
    }

    fn tell(&mut self, name: &str, status: &str, error: Value, frames: &mut Frames) {
        let response = self.answer.response_with(status, error);
        frames.push_back(self.answer.frame(name, json!({"response": response})));
    }
}

impl Encode for ResponseStream {
    fn event(&mut self, _prompt_idx: usize, event: GenerateEvent, frames: &mut Frames) {
        self.begin(frames);
        self.answer.take(event, frames);
    }

    fn end(&mut self, frames: &mut Frames) {
        if *self.answer.reason() == StopReason::Aborted {
            return self.error(&sse::aborted_error(), frames);
        }
        let status = self.answer.status();
        self.tell(&format!("response.{status}"), status, Value::Null, frames);
    }

    fn ping(&self) -> Bytes {
        sse::comment_ping()
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        self.begin(frames);
        let body = error.json(Family::OpenAi, None);
        let code = match &body["error"]["code"] {
            Value::Null => body["error"]["type"].clone(),
            code => code.clone(),
        };
        self.tell("response.failed", "failed", json!({"code": code, "message": error.message}), frames);
    }
}
