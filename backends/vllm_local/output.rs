//! The outputs of one request: engine events in, text out. Detokenises, finds stop strings, counts what the client gets.
//!
//! Polled by whoever reads the answer, so a slow client slows nobody else; dropping it drops the engine's stream, which aborts.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{Stream, stream};
use pagoda_engine::core::RequestStream;
use pagoda_engine::request::{Event, FinishReason};
use pagoda_engine::sampling::TokenLogprobs;
use pagoda_engine::text::{Detokenizer, StopMatcher, Tokenizer};

use super::engine_error;
use crate::{BackendError, GenerateEvent, GenerationConfig, Part, ReasoningSplitter, StopReason, TokenInfo, Usage};

/// State of a request's outputs.
pub(super) struct Output {
    tokenizer: Tokenizer,
    config: GenerationConfig,
    eos_token_ids: Vec<u32>,
    prompt: Vec<u32>,
    is_clamped: bool,
    choices: Vec<Choice>,
    usage: Usage,
    events: VecDeque<GenerateEvent>,
    /// Special tokens that are never left out of the text.
    marks: Arc<[u32]>,
}

/// How the text of a request's outputs is read.
#[derive(Clone, Default)]
pub(super) struct AnswerText {
    /// Tells reasoning from the answer; None: no reasoning can come.
    pub(super) splitter: Option<ReasoningSplitter>,
    /// Special tokens that the text needs: marks of reasoning and of calls.
    pub(super) marks: Option<Arc<[u32]>>,
}

/// One of the `n` outputs.
struct Choice {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// None: no reasoning can come.
    splitter: Option<ReasoningSplitter>,
    num_tokens: u32,
    ended: bool,
}

impl Output {
    /// Prepares the outputs of a request.
    ///
    /// # Errors
    /// `InvalidRequest` for stop strings that are empty, too long or too many.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        eos_token_ids: &[u32],
        config: GenerationConfig,
        prompt: Vec<u32>,
        is_clamped: bool,
    ) -> Result<Output, BackendError> {
        let mut choices = Vec::with_capacity(config.n as usize);
        for _ in 0..config.n {
            choices.push(Choice {
                detokenizer: Detokenizer::new(tokenizer.clone(), config.skip_special_tokens),
                stops: StopMatcher::new(config.stop_sequences.clone(), config.include_stop_str).map_err(engine_error)?,
                splitter: None,
                num_tokens: 0,
                ended: false,
            });
        }
        Ok(Output {
            tokenizer: tokenizer.clone(),
            config,
            eos_token_ids: eos_token_ids.to_vec(),
            usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
            prompt,
            is_clamped,
            choices,
            events: VecDeque::new(),
            marks: Arc::from([]),
        })
    }

    /// Every output is read as `answer` says.
    pub(super) fn read_as(mut self, answer: AnswerText) -> Output {
        self.marks = answer.marks.unwrap_or(self.marks);
        for choice in &mut self.choices {
            choice.splitter.clone_from(&answer.splitter);
            choice.detokenizer.keep(self.marks.clone());
        }
        self
    }

    /// The answer's events, driven by the engine's.
    pub(super) fn into_stream(self, engine: RequestStream) -> impl Stream<Item = GenerateEvent> + Send + 'static {
        stream::unfold((self, Some(engine)), |(mut output, mut engine)| async move {
            loop {
                if let Some(event) = output.events.pop_front() {
                    return Some((event, (output, engine)));
                }
                let stream = engine.as_mut()?;
                match stream.next().await {
                    Some(event) => output.take(event, stream),
                    None => output.fail("the engine's stream ended without a final event".into(), false),
                }
                // The last event is on its way: dropping the engine's stream ends whatever still runs.
                if matches!(output.events.back(), Some(GenerateEvent::Done(_) | GenerateEvent::Failed(_))) {
                    engine = None;
                }
            }
        })
    }

    fn take(&mut self, event: Event, engine: &RequestStream) {
        match event {
            Event::Started { cached_tokens } => {
                self.usage.cached_tokens = cached_tokens;
                let prompt_token_ids = std::mem::take(&mut self.prompt);
                let prompt_tokens = prompt_token_ids.len();
                self.events.push_back(GenerateEvent::Started { prompt_tokens, cached_tokens, prompt_token_ids });
            }
            Event::PromptLogprobs(entries) => {
                let entries = entries.iter().map(|entry| self.token_info(entry.token, Some(entry))).collect();
                self.events.push_back(GenerateEvent::PromptLogprobs(entries));
            }
            Event::Token { choice, token, logprobs } => self.take_token(choice, token, logprobs.as_ref(), engine),
            Event::Finished { choice, reason } => self.finish(choice, reason),
            Event::Done(_) => self.events.push_back(GenerateEvent::Done(self.usage)),
            Event::Failed { message, caller_fault } => self.fail(message, caller_fault),
            Event::Refused { message } => self.events.push_back(GenerateEvent::Failed(BackendError::Unavailable(message))),
        }
    }

    fn fail(&mut self, message: String, caller_fault: bool) {
        let error = match caller_fault {
            true => BackendError::InvalidRequest { param: None, message },
            false => BackendError::Internal(message),
        };
        self.events.push_back(GenerateEvent::Failed(error));
    }

    fn take_token(&mut self, idx: u32, token: u32, logprobs: Option<&TokenLogprobs>, engine: &RequestStream) {
        let is_end = self.is_end(token);
        // The token that ends an output is no text of it, unless the client wants to see what ended it.
        let is_hidden_end = is_end && !self.config.include_stop_str;
        let mut info = self.token_info(token, logprobs);
        if is_hidden_end || self.config.skip_special_tokens && self.tokenizer.is_special(token) && !self.marks.contains(&token) {
            info.bytes.clear();
        }
        let choice = &mut self.choices[idx as usize];
        if choice.ended {
            return; // sampled after a stop string matched
        }
        choice.num_tokens += 1;
        self.usage.completion_tokens += 1;
        let piece = if is_hidden_end { Ok(String::new()) } else { choice.detokenizer.push(token) };
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => return self.fail(error.to_string(), false),
        };
        // No stop before min_tokens: what came earlier is not searched.
        let (text, matched) = if choice.num_tokens < self.config.min_tokens {
            (piece, None)
        } else {
            let found = choice.stops.push(&piece);
            (found.text, found.matched)
        };
        self.push_text(idx, text, vec![info]);
        if let Some(stop) = matched {
            self.end(idx, StopReason::StopSequence(stop));
            match self.choices.iter().all(|choice| choice.ended) {
                true => self.events.push_back(GenerateEvent::Done(self.usage)),
                false => engine.end_choice(idx),
            }
        }
    }

    /// The engine ended an output: what is held back comes out.
    fn finish(&mut self, idx: u32, reason: FinishReason) {
        let choice = &mut self.choices[idx as usize];
        if choice.ended {
            return; // ended by a stop string before
        }
        let tail = choice.detokenizer.flush();
        let mut text = choice.stops.push(&tail).text;
        text.push_str(&choice.stops.flush());
        let matched = choice.stops.matched().map(str::to_string);
        if !text.is_empty() {
            self.push_text(idx, text, Vec::new());
        }
        let reason = match (matched, reason) {
            (Some(stop), _) => StopReason::StopSequence(stop),
            (None, FinishReason::Eos) => StopReason::EndOfTurn,
            (None, FinishReason::StopToken(token)) => StopReason::StopToken(token),
            (None, FinishReason::MaxTokens | FinishReason::ContextFull) if self.is_clamped => StopReason::ContextFull,
            (None, FinishReason::MaxTokens | FinishReason::ContextFull) => StopReason::MaxTokens,
            (None, FinishReason::Aborted) => StopReason::Aborted,
        };
        self.end(idx, reason);
    }

    /// Text of an output with its tokens, as reasoning, as a part of the answer, or as both.
    fn push_text(&mut self, choice: u32, text: String, mut tokens: Vec<TokenInfo>) {
        let Some(splitter) = &mut self.choices[choice as usize].splitter else {
            return self.events.push_back(GenerateEvent::Delta { choice, text, tokens });
        };
        let parts = splitter.push(&text);
        if parts.is_empty() {
            let event = match splitter.is_reasoning() {
                true => GenerateEvent::Reasoning { choice, text: String::new(), tokens },
                false if tokens.is_empty() => return,
                false => GenerateEvent::Delta { choice, text: String::new(), tokens },
            };
            return self.events.push_back(event);
        }
        for part in parts {
            self.push_part(choice, part, std::mem::take(&mut tokens));
        }
    }

    fn push_part(&mut self, choice: u32, part: Part, tokens: Vec<TokenInfo>) {
        self.events.push_back(match part {
            Part::Reasoning(text) => GenerateEvent::Reasoning { choice, text, tokens },
            Part::Text(text) => GenerateEvent::Delta { choice, text, tokens },
        });
    }

    fn end(&mut self, idx: u32, reason: StopReason) {
        let choice = &mut self.choices[idx as usize];
        choice.ended = true;
        for part in choice.splitter.take().map(|mut splitter| splitter.finish()).unwrap_or_default() {
            self.push_part(idx, part, Vec::new());
        }
        self.events.push_back(GenerateEvent::Finished { choice: idx, reason });
    }

    /// Whether the engine ends an output with this token.
    fn is_end(&self, token: u32) -> bool {
        self.config.stop_token_ids.contains(&token) || !self.config.ignore_eos && self.eos_token_ids.contains(&token)
    }

    fn token_info(&self, token: u32, logprobs: Option<&TokenLogprobs>) -> TokenInfo {
        let top = logprobs.map_or(&[][..], |entry| &entry.top);
        TokenInfo {
            logprob: logprobs.map(|entry| entry.logprob),
            top: top.iter().map(|&(token, logprob)| TokenInfo { logprob: Some(logprob), ..self.plain(token) }).collect(),
            ..self.plain(token)
        }
    }

    fn plain(&self, token: u32) -> TokenInfo {
        let bytes = self.tokenizer.token_bytes(token);
        TokenInfo { id: token, text: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob: None, top: Vec::new() }
    }
}
