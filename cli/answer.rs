//! Streaming one answer to the terminal.

use std::time::Instant;

use anyhow::{Result, bail};
use futures_util::StreamExt;
use pagoda_backends::{BackendError, GenerateEvent, GenerateRequest, InferenceBackend, StopReason, Usage};

use super::terminal;

/// An answer that was shown.
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended; None: stopped by the user.
    pub reason: Option<StopReason>,
    /// Counts.
    pub usage: Usage,
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// Seconds in all.
    pub total_s: f64,
}

impl Answer {
    fn note_token(&mut self, started: Instant) {
        if self.ttft_s == 0.0 {
            self.ttft_s = started.elapsed().as_secs_f64();
        }
    }

    /// One line of figures.
    pub fn summary(&self) -> String {
        let decode_s = (self.total_s - self.ttft_s).max(1e-9);
        let rate = self.usage.completion_tokens.saturating_sub(1) as f64 / decode_s;
        format!(
            "{} prompt tokens ({} cached), {} output tokens, first after {:.0} ms, then {rate:.1} tokens/s",
            self.usage.prompt_tokens,
            self.usage.cached_tokens,
            self.usage.completion_tokens,
            self.ttft_s * 1e3,
        )
    }
}

/// Generates and prints as it comes, reasoning on stderr. Ctrl-C ends the answer early and is no error.
pub async fn show(backend: &dyn InferenceBackend, request: GenerateRequest) -> Result<Answer> {
    let started = Instant::now();
    let mut stream = backend.generate_stream(request).await?;
    let mut answer = Answer { text: String::new(), reason: None, usage: Usage::default(), ttft_s: 0.0, total_s: 0.0 };
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = &mut interrupt => break,
        };
        match event {
            Some(GenerateEvent::Reasoning { text, .. }) => {
                answer.note_token(started);
                terminal::aside(&text);
            }
            Some(GenerateEvent::Delta { text, .. }) => {
                answer.note_token(started);
                terminal::print(&text)?;
                answer.text.push_str(&text);
            }
            Some(GenerateEvent::Finished { reason, .. }) => answer.reason = Some(reason),
            Some(GenerateEvent::Done(usage)) => {
                answer.usage = usage;
                break;
            }
            Some(GenerateEvent::Failed(error)) => return Err(error.into()),
            Some(_) => {}
            None => bail!(BackendError::Internal("the answer ended without a final event".into())),
        }
    }
    answer.total_s = started.elapsed().as_secs_f64();
    Ok(answer)
}
