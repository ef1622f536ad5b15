//! `Answer`: chunks of a service's answer, or a whole one, as the backend's events.
//!
//! Choices end when the service said why and the answer is over, so that counts are known by then; an answer that stops before is a
//! fault, never an end.

use std::collections::VecDeque;

use super::fault::Fault;
use super::retry::random_bits;
use super::tokens;
use crate::{GenerateEvent, GenerateRequest, Json, Part, Prompt, ReasoningSplitter, ReasoningStyle, StopReason, TokenInfo, Usage};

/// Tokens that one chunk may count without naming them.
const MAX_UNNAMED: usize = 1 << 16;

/// State of one answer.
pub(super) struct Answer {
    /// Name of the service in messages.
    service: String,
    choices: Vec<Choice>,
    max_tokens: Option<u32>,
    /// The service was asked for fewer tokens than the client.
    is_clamped: bool,
    num_top_prompt: usize,
    /// The answer is a chat's, which may begin with reasoning.
    is_chat: bool,
    /// Prompt tokens to report where the service never says.
    estimate: usize,
    usage: Option<Usage>,
    /// Tokens passed on.
    num_tokens: usize,
    is_started: bool,
    is_over: bool,
    events: VecDeque<GenerateEvent>,
}

#[derive(Default)]
struct Choice {
    reason: Option<StopReason>,
    /// Index that the service gave the last call.
    last_call: Option<u64>,
    num_calls: usize,
    /// At most one call is passed on.
    single_call: bool,
    /// Finds reasoning in the text; None: the service takes it out, or none can come.
    splitter: Option<ReasoningSplitter>,
}

impl Choice {
    /// The last call is one too many.
    fn is_beyond_single(&self) -> bool {
        self.single_call && self.num_calls > 1
    }
}

impl Answer {
    /// Waits for the answer to `request`; `estimate` stands in for the prompt's tokens where the service never counts them.
    pub(super) fn new(service: &str, request: &GenerateRequest, is_clamped: bool, estimate: usize) -> Answer {
        let single_call = matches!(&request.prompt, Prompt::Chat(chat) if chat.single_tool_call);
        let config = &request.config;
        Answer {
            service: service.to_owned(),
            choices: (0..config.n).map(|_| Choice { single_call, ..Choice::default() }).collect(),
            max_tokens: config.max_tokens,
            is_clamped,
            is_chat: matches!(&request.prompt, Prompt::Chat(_)),
            num_top_prompt: config.prompt_logprobs.unwrap_or(0) as usize,
            estimate,
            usage: None,
            num_tokens: 0,
            is_started: false,
            is_over: false,
            events: VecDeque::new(),
        }
    }

    /// Reasoning that stands in the text of a chat's answer in this style is told from the rest.
    pub(super) fn reasoning_as(mut self, style: ReasoningStyle) -> Answer {
        if self.is_chat {
            self.choices.iter_mut().for_each(|choice| choice.splitter = Some(ReasoningSplitter::after(style, "", None)));
        }
        self
    }

    /// The next event that is ready.
    pub(super) fn pop(&mut self) -> Option<GenerateEvent> {
        self.events.pop_front()
    }

    /// Whether anything was passed on.
    pub(super) fn is_started(&self) -> bool {
        self.is_started
    }

    /// Takes the data of one event of the stream.
    pub(super) fn take_event(&mut self, data: &str) -> Result<(), Fault> {
        if self.is_over || data.trim() == "[DONE]" {
            return self.end();
        }
        let chunk: Json = serde_json::from_str(data).map_err(|_| self.nonsense("an event that is no JSON"))?;
        if !chunk["error"].is_null() || chunk["object"] == "error" {
            return Err(Fault::of_event(&self.service, &chunk));
        }
        let choices = chunk["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.note_usage(&chunk);
        if !choices.is_empty() || self.usage.is_some() {
            self.start(&chunk);
        }
        choices.iter().try_for_each(|choice| self.take_chunk(choice))
    }

    /// Takes a whole answer instead of a stream.
    pub(super) fn take_whole(&mut self, body: &[u8]) -> Result<(), Fault> {
        let whole: Json = serde_json::from_slice(body).map_err(|_| self.nonsense("an answer that is no JSON"))?;
        if !whole["error"].is_null() || whole["object"] == "error" {
            return Err(Fault::of_event(&self.service, &whole));
        }
        self.note_usage(&whole);
        self.start(&whole);
        self.prompt_logprobs(&whole)?;
        for choice in whole["choices"].as_array().map(Vec::as_slice).unwrap_or_default() {
            self.take_chunk(choice)?;
        }
        self.end()
    }

    /// The stream is over: fine once every choice ended.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        if self.is_over {
            return Ok(());
        }
        if self.choices.iter().any(|choice| choice.reason.is_none()) {
            return Err(Fault::cut(&self.service, "it stopped in the middle"));
        }
        let counted = Usage { prompt_tokens: self.estimate, cached_tokens: 0, completion_tokens: self.num_tokens };
        let usage = self.usage.unwrap_or(counted);
        // The service may have clamped the answer to its window by itself.
        let is_short = self.choices.len() == 1 && self.max_tokens.is_some_and(|max| usage.completion_tokens < max as usize);
        let is_full = self.is_clamped || (is_short && self.usage.is_some());
        for choice in 0..self.choices.len() {
            self.flush(choice as u32);
        }
        for (choice, state) in (0..).zip(&mut self.choices) {
            let reason = match state.reason.take() {
                Some(StopReason::MaxTokens) if is_full => StopReason::ContextFull,
                Some(reason) => reason,
                None => StopReason::Aborted,
            };
            self.events.push_back(GenerateEvent::Finished { choice, reason });
        }
        self.events.push_back(GenerateEvent::Done(usage));
        self.is_over = true;
        Ok(())
    }

    fn nonsense(&self, what: &str) -> Fault {
        Fault::nonsense(&self.service, what)
    }

    fn note_usage(&mut self, chunk: &Json) {
        let usage = &chunk["usage"];
        let count = |value: &Json| value.as_u64().and_then(|count| usize::try_from(count).ok());
        if let Some(prompt_tokens) = count(&usage["prompt_tokens"]) {
            let cached_tokens = count(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0).min(prompt_tokens);
            self.usage = Some(Usage { prompt_tokens, cached_tokens, completion_tokens: count(&usage["completion_tokens"]).unwrap_or(0) });
        }
    }

    fn start(&mut self, chunk: &Json) {
        if std::mem::replace(&mut self.is_started, true) {
            return;
        }
        let Usage { prompt_tokens, cached_tokens, .. } = self.usage.unwrap_or_default();
        self.events.push_back(GenerateEvent::Started { prompt_tokens, cached_tokens, prompt_token_ids: prompt_ids(chunk) });
    }

    fn prompt_logprobs(&mut self, whole: &Json) -> Result<(), Fault> {
        let positions = [&whole["prompt_logprobs"], &whole["choices"][0]["prompt_logprobs"]].into_iter().find(|list| list.is_array());
        if let Some(positions) = positions {
            let entries = tokens::of_prompt(positions, &prompt_ids(whole), self.num_top_prompt);
            let entries = entries.ok_or_else(|| self.nonsense("prompt logprobs that do not fit the prompt's ids"))?;
            self.events.push_back(GenerateEvent::PromptLogprobs(entries));
        }
        Ok(())
    }

    /// A choice of a chunk (`delta`), of a whole chat answer (`message`) or of a completion (`text`).
    fn take_chunk(&mut self, chunk: &Json) -> Result<(), Fault> {
        let choice = chunk["index"].as_u64().unwrap_or(0);
        let idx = choice as usize;
        if idx >= self.choices.len() {
            return Err(self.nonsense("a choice that was not asked for"));
        }
        let choice = choice as u32;
        let said = if chunk["message"].is_object() { &chunk["message"] } else { &chunk["delta"] };
        let text = said["content"].as_str().or(chunk["text"].as_str()).unwrap_or_default();
        let reasoning = said["reasoning_content"].as_str().or(said["reasoning"].as_str()).unwrap_or_default();
        let calls = said["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut tokens = self.tokens(chunk, !text.is_empty() || !reasoning.is_empty() || !calls.is_empty());
        if !reasoning.is_empty() {
            self.flush(choice);
            // A whole answer has both: the tokens are then all its answer's.
            let tokens = if text.is_empty() { std::mem::take(&mut tokens) } else { Vec::new() };
            self.num_tokens += tokens.len();
            self.events.push_back(GenerateEvent::Reasoning { choice, text: reasoning.to_owned(), tokens });
        }
        if !text.is_empty() || !tokens.is_empty() {
            self.num_tokens += tokens.len();
            self.push_text(choice, text, tokens);
        }
        if !calls.is_empty() {
            self.flush(choice);
        }
        for call in calls {
            self.take_call(choice, call)?;
        }
        if let Some(word) = chunk["finish_reason"].as_str() {
            self.choices[idx].reason = Some(stop_reason(word, &chunk["stop_reason"]));
        }
        Ok(())
    }

    /// Text of a choice with its tokens, as reasoning, as a part of the answer, or as both.
    fn push_text(&mut self, choice: u32, text: &str, mut tokens: Vec<TokenInfo>) {
        let Some(splitter) = &mut self.choices[choice as usize].splitter else {
            return self.events.push_back(GenerateEvent::Delta { choice, text: text.to_owned(), tokens });
        };
        let mut parts = splitter.push(text);
        if parts.is_empty() && !tokens.is_empty() {
            parts.push(if splitter.is_reasoning() { Part::Reasoning(String::new()) } else { Part::Text(String::new()) });
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

    /// The text of a choice is over, or a call follows: what is held comes out.
    fn flush(&mut self, choice: u32) {
        for part in self.choices[choice as usize].splitter.take().map(|mut splitter| splitter.finish()).unwrap_or_default() {
            self.push_part(choice, part, Vec::new());
        }
    }

    /// Tokens of a chunk; where they are not named, as many as the service counted since the last, else one a chunk that says something.
    fn tokens(&self, chunk: &Json, says_something: bool) -> Vec<TokenInfo> {
        let tokens = tokens::of_choice(chunk);
        if !tokens.is_empty() {
            return tokens;
        }
        let num = match self.usage {
            Some(usage) => usage.completion_tokens.saturating_sub(self.num_tokens).min(MAX_UNNAMED),
            None => usize::from(says_something),
        };
        vec![tokens::unknown(); num]
    }

    fn take_call(&mut self, choice: u32, delta: &Json) -> Result<(), Fault> {
        let state = &mut self.choices[choice as usize];
        let function = &delta["function"];
        let name = function["name"].as_str().filter(|name| !name.is_empty());
        // Services that count no calls begin each with its name.
        let index = delta["index"].as_u64().unwrap_or_else(|| {
            let last = state.last_call.unwrap_or(0);
            if name.is_some() && state.last_call.is_some() { last + 1 } else { last }
        });
        let text = match &function["arguments"] {
            Json::String(text) => text.clone(),
            Json::Null => String::new(),
            object => object.to_string(),
        };
        if state.last_call.is_none_or(|last| index > last) {
            let Some(name) = name else { return Err(self.nonsense("a tool call without a name")) };
            state.last_call = Some(index);
            state.num_calls += 1;
            if !state.is_beyond_single() {
                let id =
                    delta["id"].as_str().filter(|id| !id.is_empty()).map_or_else(|| format!("call_{:016x}", random_bits()), str::to_owned);
                self.events.push_back(GenerateEvent::CallStarted { choice, id, name: name.to_owned() });
            }
        } else if state.last_call.is_some_and(|last| index < last) && !text.is_empty() {
            return Err(self.nonsense("pieces of several tool calls at once"));
        }
        let state = &self.choices[choice as usize];
        if !text.is_empty() && !state.is_beyond_single() {
            self.events.push_back(GenerateEvent::CallArguments { choice, text });
        }
        Ok(())
    }
}

fn prompt_ids(body: &Json) -> Vec<u32> {
    let lists = [&body["prompt_token_ids"], &body["choices"][0]["prompt_token_ids"]];
    let ids = lists.into_iter().find_map(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    ids.iter().filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// `stop_reason` is vLLM's: the stop string or token that matched.
fn stop_reason(word: &str, stop_reason: &Json) -> StopReason {
    match (word, stop_reason) {
        ("length", _) => StopReason::MaxTokens,
        ("abort", _) => StopReason::Aborted,
        (_, Json::String(text)) => StopReason::StopSequence(text.clone()),
        (_, Json::Number(id)) => id.as_u64().and_then(|id| u32::try_from(id).ok()).map_or(StopReason::EndOfTurn, StopReason::StopToken),
        _ => StopReason::EndOfTurn,
    }
}
