//! `CompletionStream`: the events of one or many prompts as chunks of a completion.

use axum::body::Bytes;
use pagoda_backends::{GenerateEvent, StopReason, TokenInfo, Usage};

use super::chat_stream::DONE;
use super::completions::{Echo, add};
use super::convert::{CompletionRequest, Format};
use super::logprobs::TextLogprobs;
use super::types::{TextChoice, TextCompletion, finish_reason, stop_reason, token_ids};
use crate::error::{ApiError, Family};
use crate::ids::{new_id, unix_time};
use crate::sse::{self, Encode, Frames};

/// Encoder of one completion.
pub(crate) struct CompletionStream {
    id: String,
    created: u64,
    model_id: String,
    format: Format,
    /// Choices of each prompt; choice k of prompt p has index `p * num_choices + k`.
    num_choices: usize,
    prompts: Vec<PromptState>,
    /// Characters sent, by index, for `text_offset`.
    offsets: Vec<usize>,
    aborted: bool,
}

struct PromptState {
    echo: Option<Echo>,
    token_ids: Vec<u32>,
    usage: Usage,
}

impl CompletionStream {
    pub(super) fn new(model_id: &str, parsed: &CompletionRequest, echoes: Vec<Echo>) -> Self {
        let num_choices = parsed.config.n as usize;
        let state = |echo| PromptState { echo: parsed.echo.then_some(echo), token_ids: Vec::new(), usage: Usage::default() };
        CompletionStream {
            id: new_id("cmpl-"),
            created: unix_time(),
            model_id: model_id.to_owned(),
            format: parsed.format,
            num_choices,
            offsets: vec![0; echoes.len() * num_choices],
            prompts: echoes.into_iter().map(state).collect(),
            aborted: false,
        }
    }

    fn usage(&self) -> Usage {
        let mut total = Usage::default();
        self.prompts.iter().for_each(|prompt| add(&mut total, prompt.usage));
        total
    }

    fn push(&self, choices: Vec<TextChoice>, usage: Option<Usage>, frames: &mut Frames) {
        let usage = usage.or_else(|| self.format.continuous_usage.then(|| self.usage()));
        frames.push_back(sse::data_frame(&TextCompletion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model_id,
            choices,
            usage: usage.map(Into::into),
        }));
    }

    /// What comes before a prompt's first token: its echo and its ids. Waits for prompt logprobs where those are echoed.
    fn open(&mut self, prompt_idx: usize, prompt_logprobs: &[TokenInfo], frames: &mut Frames) {
        let Some(echo) = self.prompts[prompt_idx].echo.take() else { return };
        for choice in 0..self.num_choices {
            let index = prompt_idx * self.num_choices + choice;
            let logprobs = echo.first_token.as_ref().map(|first| {
                let mut lists = TextLogprobs::default();
                lists.extend_first(first, self.format.token_names, &mut self.offsets[index]);
                lists.extend(prompt_logprobs, self.format.token_names, &mut self.offsets[index]);
                lists
            });
            self.push(vec![TextChoice { index, text: echo.text.clone(), logprobs, ..TextChoice::default() }], None, frames);
        }
    }

    fn delta(&mut self, prompt_idx: usize, choice: usize, text: String, tokens: &[TokenInfo], frames: &mut Frames) {
        self.open(prompt_idx, &[], frames);
        self.prompts[prompt_idx].usage.completion_tokens += tokens.len();
        let format = self.format;
        let tokens_matter = (format.logprobs || format.token_ids) && !tokens.is_empty();
        if text.is_empty() && !tokens_matter {
            return;
        }
        let index = prompt_idx * self.num_choices + choice;
        let logprobs = (format.logprobs && !tokens.is_empty()).then(|| {
            let mut lists = TextLogprobs::default();
            lists.extend(tokens, format.token_names, &mut self.offsets[index]);
            lists
        });
        let token_ids = format.token_ids.then(|| token_ids(tokens));
        let prompt_token_ids = self.first_prompt_ids(prompt_idx);
        self.push(vec![TextChoice { index, text, logprobs, token_ids, prompt_token_ids, ..TextChoice::default() }], None, frames);
    }

    /// The prompt's ids, once, with its first chunk.
    fn first_prompt_ids(&mut self, prompt_idx: usize) -> Option<Vec<u32>> {
        let ids = std::mem::take(&mut self.prompts[prompt_idx].token_ids);
        (self.format.token_ids && !ids.is_empty()).then_some(ids)
    }

    fn finish(&mut self, prompt_idx: usize, choice: usize, reason: &StopReason, frames: &mut Frames) {
        self.open(prompt_idx, &[], frames);
        if *reason == StopReason::Aborted {
            self.aborted = true;
            return;
        }
        let choice = TextChoice {
            index: prompt_idx * self.num_choices + choice,
            finish_reason: Some(finish_reason(reason, false)),
            stop_reason: stop_reason(reason),
            prompt_token_ids: self.first_prompt_ids(prompt_idx),
            ..TextChoice::default()
        };
        self.push(vec![choice], None, frames);
    }
}

impl Encode for CompletionStream {
    fn event(&mut self, prompt_idx: usize, event: GenerateEvent, frames: &mut Frames) {
        match event {
            GenerateEvent::Started { prompt_tokens, cached_tokens, prompt_token_ids } => {
                let usage = Usage { prompt_tokens, cached_tokens, completion_tokens: 0 };
                let prompt = &mut self.prompts[prompt_idx];
                (prompt.usage, prompt.token_ids) = (usage, prompt_token_ids);
                if prompt.echo.as_ref().is_some_and(|echo| echo.first_token.is_none()) {
                    self.open(prompt_idx, &[], frames);
                }
            }
            GenerateEvent::PromptLogprobs(tokens) => self.open(prompt_idx, &tokens, frames),
            GenerateEvent::Delta { choice, text, tokens } | GenerateEvent::Reasoning { choice, text, tokens } => {
                self.delta(prompt_idx, choice as usize, text, &tokens, frames)
            }
            GenerateEvent::Finished { choice, reason } => self.finish(prompt_idx, choice as usize, &reason, frames),
            GenerateEvent::Done(usage) => self.prompts[prompt_idx].usage = usage,
            GenerateEvent::CallStarted { .. } | GenerateEvent::CallArguments { .. } | GenerateEvent::Failed(_) => {}
        }
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.aborted {
            return self.error(&sse::aborted_error(), frames);
        }
        if self.format.include_usage {
            self.push(Vec::new(), Some(self.usage()), frames);
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
