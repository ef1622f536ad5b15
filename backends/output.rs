//! Whole answers, collected from a stream of events.

use futures_util::StreamExt;

use crate::{BackendError, GenerateEvent, GenerateStream, StopReason, TokenInfo, Usage};

/// One finished choice of a non-streaming call.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// What the model said to itself before.
    pub reasoning: String,
    /// Its tokens.
    pub tokens: Vec<TokenInfo>,
    /// Tool calls that the backend itself found.
    pub calls: Vec<FoundCall>,
    /// Why it ended.
    pub reason: StopReason,
}

/// A tool call that the backend itself found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCall {
    /// Its id.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// A string of JSON; cut where the answer was.
    pub arguments: String,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct GenerateOutput {
    /// Ids of the prompt.
    pub prompt_token_ids: Vec<u32>,
    /// Prompt logprobs when asked for.
    pub prompt_logprobs: Vec<TokenInfo>,
    /// In order of choice.
    pub choices: Vec<Choice>,
    /// Counts.
    pub usage: Usage,
}

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
            GenerateEvent::Reasoning { choice, text, tokens } => {
                let choice = choice_mut(&mut out.choices, choice);
                choice.reasoning.push_str(&text);
                choice.tokens.extend(tokens);
            }
            GenerateEvent::CallStarted { choice, id, name } => {
                choice_mut(&mut out.choices, choice).calls.push(FoundCall { id, name, arguments: String::new() });
            }
            GenerateEvent::CallArguments { choice, text } => {
                if let Some(call) = choice_mut(&mut out.choices, choice).calls.last_mut() {
                    call.arguments.push_str(&text);
                }
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
        let (text, reasoning) = (String::new(), String::new());
        choices.push(Choice { text, reasoning, tokens: Vec::new(), calls: Vec::new(), reason: StopReason::Aborted });
    }
    &mut choices[idx]
}
