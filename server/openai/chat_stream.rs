//! `ChatStream`: a backend's events as chunks of a chat completion.

use axum::body::Bytes;
use pagoda_backends::{GenerateEvent, StopReason, TokenInfo, Usage};

use super::convert::Format;
use super::logprobs::ChatLogprobs;
use super::types::{
    ChatChunk, ChatChunkChoice, ChatDelta, FunctionDelta, ToolCallDelta, arguments_text, finish_reason, stop_reason, token_ids,
};
use crate::error::{ApiError, Family};
use crate::ids::{new_id, unix_time};
use crate::sse::{self, Encode, Frames};
use crate::tools::{AnswerParser, Piece, TextEnd, ToolCall, ToolUse};

/// The last frame of every stream.
pub(super) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Encoder of one chat completion.
pub(crate) struct ChatStream {
    id: String,
    created: u64,
    model_id: String,
    format: Format,
    /// One parser a choice, and the calls it gave.
    choices: Vec<(AnswerParser, usize)>,
    usage: Usage,
    aborted: bool,
}

impl ChatStream {
    pub(crate) fn new(model_id: &str, num_choices: usize, format: Format, tools: &ToolUse) -> Self {
        ChatStream {
            id: new_id("chatcmpl-"),
            created: unix_time(),
            model_id: model_id.to_owned(),
            format,
            choices: (0..num_choices).map(|_| (AnswerParser::new(tools), 0)).collect(),
            usage: Usage::default(),
            aborted: false,
        }
    }

    fn chunk<'a>(&'a self, choices: Vec<ChatChunkChoice<'a>>) -> ChatChunk<'a> {
        ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model_id,
            prompt_token_ids: None,
            choices,
            usage: self.format.continuous_usage.then(|| self.usage.into()),
        }
    }

    /// The role of every choice, before its content.
    fn start(&mut self, prompt_token_ids: &[u32], frames: &mut Frames) {
        for index in 0..self.choices.len() {
            let delta = ChatDelta { role: Some("assistant"), content: Some(""), ..ChatDelta::default() };
            let mut chunk = self.chunk(vec![ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }]);
            chunk.prompt_token_ids = (self.format.token_ids && index == 0).then_some(prompt_token_ids);
            frames.push_back(sse::data_frame(&chunk));
        }
    }

    fn delta(&mut self, index: usize, text: &str, tokens: &[TokenInfo], frames: &mut Frames) {
        self.usage.completion_tokens += tokens.len();
        let pieces = self.choices[index].0.feed(text);
        let mut tokens = tokens;
        for piece in &pieces {
            match piece {
                Piece::Text(text) => self.content(index, text, std::mem::take(&mut tokens), frames),
                Piece::Call(call) => self.call(index, call, frames),
            }
        }
        if (self.format.logprobs || self.format.token_ids) && !tokens.is_empty() {
            self.content(index, "", tokens, frames);
        }
    }

    fn reasoning(&mut self, index: usize, text: &str, tokens: &[TokenInfo], frames: &mut Frames) {
        self.usage.completion_tokens += tokens.len();
        if !text.is_empty() || (self.format.logprobs || self.format.token_ids) && !tokens.is_empty() {
            self.piece(index, ChatDelta { reasoning_content: Some(text), ..ChatDelta::default() }, tokens, frames);
        }
    }

    fn content(&self, index: usize, text: &str, tokens: &[TokenInfo], frames: &mut Frames) {
        self.piece(index, ChatDelta { content: Some(text), ..ChatDelta::default() }, tokens, frames);
    }

    fn piece(&self, index: usize, delta: ChatDelta, tokens: &[TokenInfo], frames: &mut Frames) {
        let choice = ChatChunkChoice {
            index,
            delta,
            logprobs: (self.format.logprobs && !tokens.is_empty()).then(|| ChatLogprobs::new(tokens, self.format.token_names)),
            token_ids: self.format.token_ids.then(|| token_ids(tokens)),
            ..ChatChunkChoice::default()
        };
        frames.push_back(sse::data_frame(&self.chunk(vec![choice])));
    }

    /// A whole call: its name, then its arguments.
    fn call(&mut self, index: usize, call: &ToolCall, frames: &mut Frames) {
        self.call_delta(index, Some((&new_id("call_"), &call.name)), "", frames);
        self.arguments(index, &arguments_text(call), frames);
    }

    /// A call that the backend found: what the parser holds back was text.
    fn open_call(&mut self, index: usize, id: &str, name: &str, frames: &mut Frames) {
        let pieces = self.choices[index].0.finish(TextEnd::Complete);
        self.pieces(index, pieces, frames);
        self.call_delta(index, Some((id, name)), "", frames);
    }

    fn arguments(&mut self, index: usize, text: &str, frames: &mut Frames) {
        self.call_delta(index, None, text, frames);
    }

    /// The beginning of the next call (`head`: its id and name), or more of the last one's arguments.
    fn call_delta(&mut self, index: usize, head: Option<(&str, &str)>, arguments: &str, frames: &mut Frames) {
        let num_calls = &mut self.choices[index].1;
        *num_calls += usize::from(head.is_some());
        let call_index = num_calls.saturating_sub(1);
        let function = FunctionDelta { name: head.map(|(_, name)| name), arguments };
        let (id, kind) = (head.map(|(id, _)| id), head.map(|_| "function"));
        let delta = ChatDelta { tool_calls: Some([ToolCallDelta { index: call_index, id, kind, function }]), ..ChatDelta::default() };
        frames.push_back(sse::data_frame(&self.chunk(vec![ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }])));
    }

    fn pieces(&mut self, index: usize, pieces: Vec<Piece>, frames: &mut Frames) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.content(index, &text, &[], frames),
                Piece::Call(call) => self.call(index, &call, frames),
            }
        }
    }

    fn finish(&mut self, index: usize, reason: &StopReason, frames: &mut Frames) {
        if *reason == StopReason::Aborted {
            self.aborted = true;
            return;
        }
        let pieces = self.choices[index].0.finish(TextEnd::of(reason));
        self.pieces(index, pieces, frames);
        let choice = ChatChunkChoice {
            index,
            finish_reason: Some(finish_reason(reason, self.choices[index].1 > 0)),
            stop_reason: stop_reason(reason),
            ..ChatChunkChoice::default()
        };
        frames.push_back(sse::data_frame(&self.chunk(vec![choice])));
    }
}

impl Encode for ChatStream {
    fn event(&mut self, _prompt_idx: usize, event: GenerateEvent, frames: &mut Frames) {
        match event {
            GenerateEvent::Started { prompt_tokens, cached_tokens, prompt_token_ids } => {
                self.usage = Usage { prompt_tokens, cached_tokens, completion_tokens: 0 };
                self.start(&prompt_token_ids, frames);
            }
            GenerateEvent::Delta { choice, text, tokens } => self.delta(choice as usize, &text, &tokens, frames),
            GenerateEvent::CallStarted { choice, id, name } => self.open_call(choice as usize, &id, &name, frames),
            GenerateEvent::CallArguments { choice, text } => self.arguments(choice as usize, &text, frames),
            GenerateEvent::Reasoning { choice, text, tokens } => self.reasoning(choice as usize, &text, &tokens, frames),
            GenerateEvent::Finished { choice, reason } => self.finish(choice as usize, &reason, frames),
            GenerateEvent::Done(usage) => self.usage = usage,
            GenerateEvent::PromptLogprobs(_) | GenerateEvent::Failed(_) => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.aborted {
            return self.error(&sse::aborted_error(), frames);
        }
        if self.format.include_usage {
            let mut chunk = self.chunk(Vec::new());
            chunk.usage = Some(self.usage.into());
            frames.push_back(sse::data_frame(&chunk));
        }
        frames.push_back(DONE);
    }

    fn ping(&self) -> Bytes {
        sse::comment_ping()
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.push_back(sse::data_frame(&error.json(Family::OpenAi, None)));
        frames.push_back(DONE);
    }
}
