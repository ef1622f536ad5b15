//! The kinds of backend behind pagoda's server, and the one trait over them.
//!
//! Knows the engine; knows no wire format of a client (`server/`) and no sockets it listens on.
#![forbid(unsafe_code)]

mod backend;
pub mod config;
pub mod factory;
pub mod options;
pub mod registry;
pub mod settings;
mod vllm_local;

pub use backend::*;
pub use vllm_local::{Parts, VllmLocal};

use futures_util::StreamExt;

/// Collects a stream into a whole answer.
///
/// # Errors
/// The stream's own `Failed`, or `Internal` when it ends without a final event.
pub async fn collect(mut stream: GenerateStream) -> Result<GenerateOutput, BackendError> {
    let mut out =
        GenerateOutput { prompt_token_ids: Vec::new(), prompt_logprobs: Vec::new(), choices: Vec::new(), usage: Usage::default() };
    while let Some(event) = stream.next().await {
        match event {
            GenerateEvent::Started { prompt_token_ids, .. } => out.prompt_token_ids = prompt_token_ids,
            GenerateEvent::PromptLogprobs(entries) => out.prompt_logprobs = entries,
            GenerateEvent::Delta { choice, text, tokens } => {
                let choice = choice_mut(&mut out.choices, choice);
                choice.text.push_str(&text);
                choice.tokens.extend(tokens);
            }
            GenerateEvent::Finished { choice, reason } => choice_mut(&mut out.choices, choice).reason = reason,
            GenerateEvent::Done(usage) => {
                out.usage = usage;
                return Ok(out);
            }
            GenerateEvent::Failed(error) => return Err(error),
        }
    }
    Err(BackendError::Internal("the backend's stream ended without a final event".into()))
}

fn choice_mut(choices: &mut Vec<Choice>, idx: u32) -> &mut Choice {
    let idx = idx as usize;
    while choices.len() <= idx {
        choices.push(Choice { text: String::new(), tokens: Vec::new(), reason: StopReason::Aborted });
    }
    &mut choices[idx]
}
