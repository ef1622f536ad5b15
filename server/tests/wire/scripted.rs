//! `Scripted`: a backend without a model. It plays prepared replies, and echoes the last message when none is left.
//!
//! Tokens are characters (id = code point), so every count can be told by eye. Shared by the wire tests and the `scripted` example.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use pagoda_backends::{
    BackendCapabilities, BackendError, BackendStats, ChatPrompt, GenerateEvent, GenerateRequest, GenerateStream, GenerationConfig,
    InferenceBackend, Prompt, StopReason, TokenInfo, Usage,
};
use tokio::sync::{Notify, watch};

/// Tokens of prompt and answer together.
pub const WINDOW: usize = 4096;
/// Prefixes are cached in pieces of this many tokens.
const BLOCK: usize = 16;
/// Prompts remembered for prefix hits.
const MAX_CACHED: usize = 64;

/// One thing that happens in a prepared reply.
pub enum Step {
    /// An event comes.
    Event(GenerateEvent),
    /// Nothing comes until the test says so.
    Wait(Arc<Notify>),
    /// Nothing comes any more.
    Hang,
}

/// A prepared reply.
pub enum Reply {
    /// The request is not taken.
    Refuse(BackendError),
    /// The request is taken, and this comes.
    Play(Vec<Step>),
    /// The backend has a bug.
    Panic,
}

/// A backend that does as it is told.
pub struct Scripted {
    replies: Mutex<VecDeque<Reply>>,
    requests: Mutex<Vec<GenerateRequest>>,
    cached: Mutex<VecDeque<Vec<u32>>>,
    health: Mutex<Result<(), String>>,
    num_live: Arc<watch::Sender<usize>>,
    capabilities: BackendCapabilities,
}

impl Default for Scripted {
    fn default() -> Self {
        Scripted {
            replies: Mutex::default(),
            requests: Mutex::default(),
            cached: Mutex::default(),
            health: Mutex::new(Ok(())),
            num_live: Arc::new(watch::Sender::new(0)),
            capabilities: BackendCapabilities {
                streaming: true,
                tool_calling: false,
                tool_dialect: None,
                structured_output: true,
                batching: true,
                multi_gpu: false,
                quantization: vec!["gguf"],
                max_context_length: WINDOW,
                continuous_batching: true,
                paged_attention: true,
            },
        }
    }
}

/// Counts a stream until it is dropped.
struct Live(Arc<watch::Sender<usize>>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.send_modify(|num| *num -= 1);
    }
}

impl Scripted {
    /// Prepares the next reply.
    pub fn push(&self, reply: Reply) {
        lock(&self.replies).push_back(reply);
    }

    /// Prepares a reply that plays `events` at once.
    pub fn play(&self, events: Vec<GenerateEvent>) {
        self.push(Reply::Play(events.into_iter().map(Step::Event).collect()));
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<GenerateRequest> {
        lock(&self.requests).clone()
    }

    /// The last request.
    pub fn last(&self) -> GenerateRequest {
        lock(&self.requests).last().cloned().expect("a request came")
    }

    /// From now on the backend is dead.
    pub fn die(&self, reason: &str) {
        *lock(&self.health) = Err(reason.to_owned());
    }

    /// Completes when `num` streams are alive.
    pub async fn live(&self, num: usize) {
        let mut receiver = self.num_live.subscribe();
        receiver.wait_for(|live| *live == num).await.expect("the backend outlives its streams");
    }

    fn cached_tokens(&self, prompt: &[u32]) -> usize {
        let mut cached = lock(&self.cached);
        let common = |known: &Vec<u32>| known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always computed, since its logits are needed.
        let longest = cached.iter().map(common).max().unwrap_or(0).min(prompt.len() - 1);
        cached.push_back(prompt.to_vec());
        if cached.len() > MAX_CACHED {
            cached.pop_front();
        }
        longest / BLOCK * BLOCK
    }

    /// What the backend says without a prepared reply: the last message again, `n` times.
    fn echo(&self, request: &GenerateRequest) -> Result<Vec<Step>, BackendError> {
        let prompt_token_ids = ids(&request.prompt);
        if prompt_token_ids.is_empty() {
            return Err(BackendError::InvalidRequest { param: Some("prompt".into()), message: "the prompt is empty".into() });
        }
        if prompt_token_ids.len() >= WINDOW {
            return Err(BackendError::PromptTooLong { prompt_tokens: prompt_token_ids.len(), max_tokens: WINDOW - 1 });
        }
        let (config, prompt_tokens) = (&request.config, prompt_token_ids.len());
        let cached_tokens = self.cached_tokens(&prompt_token_ids);
        let mut events = Vec::new();
        if let Some(top) = config.prompt_logprobs {
            events.push(GenerateEvent::PromptLogprobs(prompt_token_ids[1..].iter().map(|&id| token(id, Some(top))).collect()));
        }
        events.insert(0, GenerateEvent::Started { prompt_tokens, cached_tokens, prompt_token_ids });
        let mut completion_tokens = 0;
        for choice in 0..config.n {
            completion_tokens += answer(choice, &said(&request.prompt), config, WINDOW - prompt_tokens, &mut events);
        }
        events.push(GenerateEvent::Done(Usage { prompt_tokens, cached_tokens, completion_tokens }));
        Ok(events.into_iter().map(Step::Event).collect())
    }

    fn stream(&self, steps: Vec<Step>) -> GenerateStream {
        self.num_live.send_modify(|num| *num += 1);
        let live = Live(Arc::clone(&self.num_live));
        let events = stream::unfold((VecDeque::from(steps), live), |(mut steps, live)| async move {
            loop {
                match steps.pop_front()? {
                    Step::Event(event) => return Some((event, (steps, live))),
                    Step::Wait(notify) => notify.notified().await,
                    Step::Hang => std::future::pending::<()>().await,
                }
                // Streams give way to each other, as tokens of a batch do.
                tokio::task::yield_now().await;
            }
        });
        events.boxed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds the lock")
}

/// Events of one choice; returns its tokens.
fn answer(choice: u32, said: &str, config: &GenerationConfig, room: usize, events: &mut Vec<GenerateEvent>) -> usize {
    let max_tokens = config.max_tokens.map_or(room, |max| (max as usize).min(room));
    let matched = config.stop_sequences.iter().filter_map(|stop| said.find(stop).map(|at| (at, stop))).min();
    let (text, sampled, ending) = match matched {
        Some((at, stop)) => (&said[..at], &said[..at + stop.len()], StopReason::StopSequence(stop.clone())),
        None => (said, said, StopReason::EndOfTurn),
    };
    let (mut num_tokens, mut reason) = (0, ending);
    for (idx, character) in sampled.chars().enumerate() {
        if num_tokens == max_tokens {
            reason = StopReason::MaxTokens;
            break;
        }
        let visible = idx < text.chars().count();
        let text = if visible { character.to_string() } else { String::new() };
        events.push(GenerateEvent::Delta { choice, text, tokens: vec![token(u32::from(character), config.logprobs)] });
        num_tokens += 1;
    }
    if reason == StopReason::EndOfTurn {
        if num_tokens == max_tokens {
            reason = StopReason::MaxTokens;
        } else {
            let end = TokenInfo { bytes: Vec::new(), text: String::new(), ..token(0, config.logprobs) };
            events.push(GenerateEvent::Delta { choice, text: String::new(), tokens: vec![end] });
            num_tokens += 1;
        }
    }
    events.push(GenerateEvent::Finished { choice, reason });
    num_tokens
}

/// A character as a token; with logprobs, its alternatives are its neighbours.
pub fn token(id: u32, top: Option<u32>) -> TokenInfo {
    let text = char::from_u32(id).map(String::from).unwrap_or_default();
    let entry = |id: u32, logprob| TokenInfo { logprob: Some(logprob), ..token(id, None) };
    TokenInfo {
        id,
        bytes: text.clone().into_bytes(),
        text,
        logprob: top.map(|_| -0.25),
        top: (0..top.unwrap_or(0)).map(|rank| entry(id + rank, -0.25 - rank as f32)).collect(),
    }
}

fn said(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat(chat) => chat.messages.iter().rev().find(|message| message.role != "assistant").map_or("", |m| &m.content).to_owned(),
        Prompt::Text { text, .. } => text.clone(),
        Prompt::Tokens(ids) => ids.iter().filter_map(|&id| char::from_u32(id)).collect(),
    }
}

fn ids(prompt: &Prompt) -> Vec<u32> {
    match prompt {
        Prompt::Chat(chat) => render(chat).chars().map(u32::from).collect(),
        Prompt::Text { text, .. } => text.chars().map(u32::from).collect(),
        Prompt::Tokens(ids) => ids.clone(),
    }
}

/// The chat template: tools, then `role: content` lines, then the assistant's opening.
fn render(chat: &ChatPrompt) -> String {
    let mut text: String = chat.tools.iter().map(|tool| format!("{tool}\n")).collect();
    for message in &chat.messages {
        text.push_str(&format!("{}: {}", message.role, message.content));
        message.tool_calls.iter().for_each(|call| text.push_str(&call.to_string()));
        text.push('\n');
    }
    if chat.continue_final_message {
        text.pop();
    } else if chat.add_generation_prompt {
        text.push_str("assistant: ");
    }
    text
}

#[async_trait]
impl InferenceBackend for Scripted {
    async fn generate_stream(&self, request: GenerateRequest) -> Result<GenerateStream, BackendError> {
        lock(&self.requests).push(request.clone());
        let reply = lock(&self.replies).pop_front();
        match reply {
            None => Ok(self.stream(self.echo(&request)?)),
            Some(Reply::Play(steps)) => Ok(self.stream(steps)),
            Some(Reply::Refuse(error)) => Err(error),
            Some(Reply::Panic) => panic!("scripted"),
        }
    }

    async fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, BackendError> {
        Ok(ids(prompt))
    }

    async fn detokenize(&self, tokens: &[u32]) -> Result<String, BackendError> {
        Ok(tokens.iter().filter_map(|&id| char::from_u32(id)).collect())
    }

    fn token_str(&self, token: u32) -> Option<String> {
        char::from_u32(token).map(String::from)
    }

    fn default_config(&self) -> GenerationConfig {
        GenerationConfig::default()
    }

    fn capabilities(&self) -> &BackendCapabilities {
        &self.capabilities
    }

    fn stats(&self) -> BackendStats {
        BackendStats { num_running: *self.num_live.borrow(), ..BackendStats::default() }
    }

    fn health(&self) -> Result<(), String> {
        lock(&self.health).clone()
    }
}
