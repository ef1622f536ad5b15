//! `Recording`: what is noted of one request while its events pass, and what the meter gets of it in the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_backends::{BackendError, GenerateEvent, GenerationConfig, Usage};

use super::meter::{Ending, Meter};

/// One request under way. Dropped before its last event, it counts as aborted.
pub(crate) struct Recording {
    meter: Arc<Meter>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    /// Time of each choice's last token.
    last_tokens: Vec<Option<Instant>>,
    ending: Ending,
    is_over: bool,
}

impl Recording {
    /// A request arrives.
    pub(crate) fn new(meter: Arc<Meter>, config: &GenerationConfig) -> Recording {
        meter.choices.add(f64::from(config.n));
        if let Some(max_tokens) = config.max_tokens {
            meter.max_tokens.add(f64::from(max_tokens));
        }
        let last_tokens = vec![None; config.n as usize];
        Recording { meter, arrived: Instant::now(), started: None, first_token: None, last_tokens, ending: Ending::Abort, is_over: false }
    }

    /// A request arrives that generates nothing.
    pub(crate) fn of_prompt(meter: Arc<Meter>) -> Recording {
        let (arrived, last_tokens) = (Instant::now(), Vec::new());
        Recording { meter, arrived, started: None, first_token: None, last_tokens, ending: Ending::Abort, is_over: false }
    }

    /// It was answered, and told that so many tokens went through the model.
    pub(crate) fn answered(mut self, prompt_tokens: usize) {
        self.is_over = true;
        self.meter.ended(Ending::Stop);
        self.meter.used(&Usage { prompt_tokens, ..Usage::default() });
        self.meter.request_s.add(seconds(self.arrived.elapsed()));
    }

    /// The backend does not take it.
    pub(crate) fn refused(mut self, error: &BackendError) {
        self.meter.refused(error);
        self.is_over = true;
    }

    /// An event passes.
    pub(crate) fn note(&mut self, event: &GenerateEvent) {
        match event {
            GenerateEvent::Started { .. } => {
                self.started.get_or_insert_with(Instant::now);
            }
            GenerateEvent::Delta { choice, text, tokens } if !text.is_empty() || !tokens.is_empty() => self.note_token(*choice as usize),
            GenerateEvent::Reasoning { choice, .. } => self.note_token(*choice as usize),
            GenerateEvent::Finished { reason, .. } => self.ending = Ending::of(reason),
            GenerateEvent::Done(usage) => self.done(usage),
            // Never begun: another server may take it, and nothing failed.
            GenerateEvent::Failed(error) if self.started.is_none() => {
                self.meter.refused(error);
                self.is_over = true;
            }
            GenerateEvent::Failed(_) => {
                self.meter.ended(Ending::Error);
                self.is_over = true;
            }
            GenerateEvent::CallStarted { choice, .. } | GenerateEvent::CallArguments { choice, .. } => self.note_token(*choice as usize),
            GenerateEvent::Delta { .. } | GenerateEvent::PromptLogprobs(_) => {}
        }
    }

    fn note_token(&mut self, choice: usize) {
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.meter.first_token_s.add(seconds(now - self.arrived));
        }
        let Some(last) = self.last_tokens.get_mut(choice) else { return };
        if let Some(before) = last.replace(now) {
            self.meter.inter_token_s.add(seconds(now - before));
        }
    }

    fn done(&mut self, usage: &Usage) {
        self.is_over = true;
        self.meter.ended(self.ending);
        if self.ending == Ending::Abort {
            return;
        }
        let now = Instant::now();
        let started = self.started.unwrap_or(self.arrived);
        let first_token = self.first_token.unwrap_or(now);
        let last_token = self.last_tokens.iter().flatten().max().copied().unwrap_or(first_token);
        self.meter.used(usage);
        self.meter.queue_s.add(seconds(started - self.arrived));
        self.meter.prefill_s.add(seconds(first_token.saturating_duration_since(started)));
        self.meter.decode_s.add(seconds(last_token - first_token));
        self.meter.request_s.add(seconds(now - self.arrived));
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.is_over {
            self.meter.ended(Ending::Abort);
        }
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
